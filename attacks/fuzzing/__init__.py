"""Hostile bytes: mutants of envelopes and payloads against everything that reads them.

``python -m fedvtc_edge.attacks.fuzzing`` runs a campaign. One way: :mod:`targets` says what
is read and what may come of it, :mod:`mutation` makes mutants, :mod:`probing` judges one,
:mod:`guided` lets coverage choose them, :mod:`campaign` counts.
"""
