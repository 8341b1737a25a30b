"""A run as a directory: its files, its lock, its checkpoints and the model in it."""
