"""Audit of one exported bundle: what a device holds, and whether it tells of anybody's data."""
