"""The mesh and the layout of arrays on it, the table of chips, processes, signals, memory pages."""
