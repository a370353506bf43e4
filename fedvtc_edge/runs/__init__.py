"""Run directories: layout, records, checkpoints, and the reading of finished runs."""
