"""Predictions of memory, time and price of a run, from programs compiled for machines that are absent."""
