"""Inference attacks: membership, exact recovery, differencing, reconstruction, memorisation."""
