"""How long to measure."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Preset:
    """When one row's measurement ends.

    Args:
        samples: Time at least so many inferences ...
        seconds: ... and for at least so long,
        longest: but no longer than so many seconds; None sets no end.
        warm_up: Inferences before the first that counts.
        timeout: Seconds after which a process is taken to hang.
        batches: Measured if none are asked for.
    """

    samples: int
    seconds: float
    longest: float | None
    warm_up: int
    timeout: float
    batches: tuple[int, ...]


PRESETS = {
    "quick": Preset(100, 0.3, 3.0, 10, 120.0, (1, 32)),
    # MLPerf Inference's single-stream scenario: Reddi et al. 2020, arXiv 1911.02549.
    "mlperf": Preset(1024, 60.0, None, 100, 7200.0, (1, 8, 32)),
}
