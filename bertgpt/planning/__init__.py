"""Predictions of memory, time and price, from programs compiled for machines that are absent."""
