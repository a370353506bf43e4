"""One process of several that train and measure clients of one run.

Started by :mod:`fedvtc_edge.federation.parallel` with a pipe at its standard input and one at its
output. The first line of input says what the run is, each further one is a job; each job is
answered by one line of JSON. Weights travel as files of the run's
:class:`~fedvtc_edge.runs.weights.WeightStore`, images as files that are mapped. Where the input
ends the process does: the run is over, or the process that started this one is no more.
"""

from __future__ import annotations

import json
import os
import queue
import sys
import threading
import traceback
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch

from fedvtc_edge.config import Config, load_config
from fedvtc_edge.data import Dataset
from fedvtc_edge.documents import parse_json
from fedvtc_edge.errors import FedVTCError
from fedvtc_edge.federation.assembly import roster_of
from fedvtc_edge.federation.evaluation import Evaluator, TestSet
from fedvtc_edge.federation.methods import Federation, method_of
from fedvtc_edge.privacy.release_store import ReleaseStore
from fedvtc_edge.runs.checkpoint import decode
from fedvtc_edge.runs.weights import WeightStore
from fedvtc_edge.training.compute import Compute, as_images, deterministic

ARRAYS = "x_train", "y_train", "x_test", "y_test"
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
        arrays = {name: np.load(folder / f"{name}.npy", mmap_mode="r") for name in ARRAYS}
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
    replies, jobs = os.fdopen(os.dup(1), "wb"), queue.Queue[bytes]()
    os.dup2(2, 1)  # what a plug-in prints must not come between the replies
    threading.Thread(target=_read, args=(sys.stdin.buffer, jobs), daemon=True).start()
    worker: Worker | None = None
    with deterministic():
        setup = parse_json(jobs.get())
        while True:
            job = parse_json(jobs.get())
            try:
                worker = worker or Worker(setup)
                reply = worker.do(job)
            except FedVTCError as error:
                reply = {"error": type(error).__name__, "text": str(error), "hint": error.hint}
            except MemoryError as error:
                reply = {"error": "MemoryError", "text": str(error)}
            except Exception:
                reply = {"error": "", "text": traceback.format_exc()}
            replies.write(json.dumps(reply, allow_nan=False).encode() + b"\n")
            replies.flush()


def _read(lines: BinaryIO, jobs: queue.Queue[bytes]) -> None:
    """Hand lines over; end the process with them, whatever it is at."""
    for line in lines:
        jobs.put(line)
    os._exit(0)


if __name__ == "__main__":
    main()
