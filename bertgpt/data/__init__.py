"""Data, from text to batches. NumPy only: reader processes must start without JAX."""
