"""How particles move, one file per method."""
