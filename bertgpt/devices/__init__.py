"""The mesh, the layout of arrays on it, chips, processes, signals and memory pages."""
