"""A run is a directory: its files, its lock, its checkpoints and the model in it."""
