"""The mesh and how arrays lie on it; the table of chips; processes, signals and memory pages."""
