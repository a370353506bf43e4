"""Adversaries: what each sees of a run, and whom it attacks."""
