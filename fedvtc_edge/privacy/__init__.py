"""Differential privacy: what may be claimed, and what it costs."""

from .accountant import epsilon_spent, noise_for
from .sampler import discrete_gaussian

__all__ = ["discrete_gaussian", "epsilon_spent", "noise_for"]
