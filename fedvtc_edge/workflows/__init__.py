"""Whole tasks from settings to files: run, compare, serve."""
