"""The integer grid on which sums are released, and how coarse its noise must be."""

from __future__ import annotations

GRID = 2**20
"""Steps of the integer grid per unit of the clip bound's space."""

MARGIN = 1.0 + 2.0**-14
"""Noise over what the accountant asks for. It accounts for continuous noise, and discrete
noise of at least LEAST_SIGMA in up to 2^18 numbers differs from that, rounded, by less."""

LEAST_SIGMA, LARGEST_SIGMA = 2.0**12, 2.0**44
"""Scales of the noise in grid steps under which the claim holds and the sums fit the wire."""
