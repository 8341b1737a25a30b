"""The report of a run at its end."""
