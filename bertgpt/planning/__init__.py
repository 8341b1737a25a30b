"""Predictions of memory, time and price, from programs compiled for machines not present."""
