"""Rows and batches: a pure function of (corpus, config, seed, step)."""
