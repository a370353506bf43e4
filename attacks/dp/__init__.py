"""Audits of noise: a lower bound on ε from uploads of two worlds, or a refutation of a claim.

:mod:`claims` says what is claimed and what no measurement could save, :mod:`releases` makes
uploads of two worlds that differ in one unit, :mod:`bounds` scores them and turns scores into
a lower bound on ε, :mod:`game` says what it comes to.
"""
