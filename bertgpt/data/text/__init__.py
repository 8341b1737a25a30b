"""Text from files, documentation and datasets, decoded and identified."""
