"""One process of several that train and measure clients of one run.

Started by :mod:`fedvtc_edge.federation.parallel`; see :mod:`fedvtc_edge.federation.processes`.
Weights travel as files of the run's :class:`~fedvtc_edge.runs.weights.WeightStore`, images as
files that are mapped.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from fedvtc_edge.config import Config, load_config
from fedvtc_edge.data import Dataset
from fedvtc_edge.federation.assembly import roster_of
from fedvtc_edge.federation.evaluation import Evaluator, TestSet
from fedvtc_edge.federation.methods import Federation, method_of
from fedvtc_edge.federation.processes import answer_jobs
from fedvtc_edge.privacy.release_store import ReleaseStore
from fedvtc_edge.runs.checkpoint import decode
from fedvtc_edge.runs.weights import WeightStore
from fedvtc_edge.training.compute import Compute, as_images, deterministic

ARRAYS = "x_train", "y_train", "x_test", "y_test", "x_public"
"""Names of the files with the run's data."""


class Worker:
    """The clients of a run in a process that holds some of them at a time.

    Args:
        setup: ``config``, ``run``, ``baselines``, ``class_names``; and folders: ``data`` with
            :data:`ARRAYS`, ``weights`` and ``releases``.
    """

    def __init__(self, setup: dict[str, Any]) -> None:
        config: Config = load_config(setup["config"])
        folder = Path(setup["data"])
        files = {name: folder / f"{name}.npy" for name in ARRAYS}
        arrays = {name: np.load(p, mmap_mode="r") for name, p in files.items() if p.exists()}
        data = Dataset(name="shared", class_names=tuple(setup["class_names"]), **arrays)
        compute, kind = Compute.of(config.engine), method_of(config)
        self._roster = roster_of(config, data, compute, kind, WeightStore(Path(setup["weights"])))
        federation = Federation(
            config,
            self._roster,
            self._roster.shape,
            data.classes,
            compute,
            setup["run"],
            releases=ReleaseStore(Path(setup["releases"])),
            public=None if data.x_public is None else as_images(data.x_public, compute.device),
        )
        self._method = kind(federation)
        images = as_images(data.x_test, compute.device)
        self._test = TestSet(images, torch.from_numpy(np.array(data.y_test)))
        self._evaluator = Evaluator(self._method, self._test)
        self._baselines, self._published = bool(setup["baselines"]), ""

    def do(self, job: dict[str, Any]) -> dict[str, Any]:
        """Do a job with one client.

        Args:
            job: ``client``, ``weights``, ``seconds``, ``samples`` and the file ``published``;
                ``round``; and what to do, in this order: the work of step ``step``, train the
                ``baseline``, ``measure`` accuracies.

        Returns:
            The client's ``weights``, ``seconds`` and ``samples``, and ``measured`` or null.
        """
        roster, name, number = self._roster, job["client"], job["round"]
        if job["published"] != self._published:
            self._published = job["published"]
            self._method.restore(decode(Path(self._published))[1])
        self._method.done = number - 1
        roster.adopt(name, job["weights"], job["seconds"], job["samples"])
        work = None if job["step"] is None else self._method.steps(number)[job["step"]].work
        if work is not None:
            work(roster.at_work(name))
        if job["baseline"]:
            roster.baseline(name, at_work=True).train(number)
        measured = None
        if job["measure"]:
            alone = roster.baseline(name) if self._baselines else None
            measured = self._evaluator.of(roster.client(name), alone)
        weights = roster.keep(name)
        seconds, samples = roster.spent(name)
        roster.forget_names()
        return {"weights": weights, "seconds": seconds, "samples": samples, "measured": measured}


def main() -> None:
    """Answer jobs until the input ends."""
    with deterministic():
        answer_jobs(lambda setup: Worker(setup).do)


if __name__ == "__main__":
    main()
