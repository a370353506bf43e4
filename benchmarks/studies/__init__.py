"""Studies of whole runs: ``python -m fedvtc_edge.benchmarks.studies.NAME``."""
