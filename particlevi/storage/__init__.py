"""Where draws and checkpoints are kept."""
