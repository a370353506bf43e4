"""Sub-commands of the benchmarks."""
