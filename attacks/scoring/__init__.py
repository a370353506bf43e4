"""Scores of attacks, with confidence limits; numpy alone."""

from .metrics import auc, epsilon_lower_bound, tpr_at_fpr

__all__ = ["auc", "epsilon_lower_bound", "tpr_at_fpr"]
