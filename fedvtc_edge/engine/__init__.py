"""Engines carry out rounds: ``local`` in this process."""
