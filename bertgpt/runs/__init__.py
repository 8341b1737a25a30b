"""A run is a directory: its files, its lock, its checkpoints, and the model that can be loaded from it."""
