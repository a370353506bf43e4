"""A child process as of ``attacks.fuzzing.guided``, with the planted readers."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

from fedvtc_edge.attacks.fuzzing.guided import fuzz
from fedvtc_edge.attacks.fuzzing.probing import Target


def load() -> Callable[[Path], list[Target]]:
    from planted import targets

    return targets


if __name__ == "__main__":
    fuzz(sys.argv[1:], load, instrument=["planted"])
