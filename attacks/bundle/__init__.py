"""Scan of exported bundles for data that they must not hold."""
