"""Tasks from settings to files: run, compare, serve."""
