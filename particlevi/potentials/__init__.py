"""What is sampled: potentials from modules, Pyro models and functions."""
