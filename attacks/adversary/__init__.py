"""Adversaries: what each sees of a run, and the trials that attacks are put to."""
