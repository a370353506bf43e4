"""Sums per class that add up across clients; numpy alone, never torch."""

from .class_statistics import ClassStatistics, GlobalStatistics

__all__ = ["ClassStatistics", "GlobalStatistics"]
