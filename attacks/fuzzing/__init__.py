"""Fuzzing of everything that reads untrusted bytes: envelopes, statistics, weights, masking keys.

:mod:`targets` lists the readers and what may come of a mutant, :mod:`probing` judges one mutant
and all of a target, :mod:`guided` lets atheris make them by coverage. Tests make them with
hypothesis. ``python -m fedvtc_edge.attacks.fuzzing`` attacks every target.
"""
