"""One process of several that work on cells; see :mod:`fedvtc_edge.federation.processes`."""

from __future__ import annotations

from fedvtc_edge.federation.processes import answer_jobs

from .worker import Workplace

if __name__ == "__main__":
    answer_jobs(lambda setup: Workplace().do)
