"""Processes that answer jobs over pipes: one line of JSON for each job, one for each reply.

The first line that a process reads is the setup, each further one a job. Where its input ends a
process does: the work is over, or the process that started it is no more.
"""

from __future__ import annotations

import json
import os
import queue
import selectors
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable, Iterable
from typing import IO, Any, BinaryIO, Self, cast

from fedvtc_edge.documents import parse_json
from fedvtc_edge.errors import FedVTCError, RunError

Document = dict[str, Any]

_END_S = 10.0
"""So long a process may take to end once its input has."""


class ProcessPool:
    """Processes that run one module and answer jobs; a context that ends them.

    Args:
        module: Dotted name of a module that calls :func:`answer_jobs`.
        number: Of processes, all started at once.
    """

    def __init__(self, module: str, number: int) -> None:
        self._workers = [_start(module) for _ in range(number)]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for worker in self._workers:
            _pipe(worker.stdin).close()  # it ends with its input, also in the middle of a job
        for worker in self._workers:
            try:
                worker.wait(_END_S)
            except subprocess.TimeoutExpired:
                worker.kill()
                worker.wait()
            _pipe(worker.stdout).close()

    def tell(self, setup: Document) -> None:
        """Send the setup to all processes; once, before the first job."""
        for worker in self._workers:
            _send(worker, setup)

    def run(self, jobs: Iterable[Document], taken: Callable[[Any, Document], None]) -> None:
        """Do jobs, each by the next process that is free.

        Args:
            jobs: What takes longest first.
            taken: Given each job and its reply, as they come.

        Raises:
            FedVTCError: As in one process, the first that is heard of.
            RunError: A process ended.
        """
        left = iter(jobs)
        with selectors.DefaultSelector() as busy:
            for worker in self._workers:
                _next(busy, worker, left)
            while busy.get_map():
                for key, _ in busy.select():
                    worker, job = key.data
                    busy.unregister(key.fileobj)
                    taken(job, _reply(worker))
                    _next(busy, worker, left)


def answer_jobs(prepare: Callable[[Document], Callable[[Document], Document]]) -> None:
    """Answer jobs in a process of a pool, until the input ends.

    Args:
        prepare: Given the setup when the first job is there; what it returns does each job. An
            error in either is the reply, and the next job is taken.
    """
    replies, jobs = os.fdopen(os.dup(1), "wb"), queue.Queue[bytes]()
    os.dup2(2, 1)  # what a plug-in prints must not come between the replies
    threading.Thread(target=_read, args=(sys.stdin.buffer, jobs), daemon=True).start()
    setup, do = parse_json(jobs.get()), None
    while True:
        job = parse_json(jobs.get())
        try:
            do = do or prepare(setup)
            reply = do(job)
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


def _start(module: str) -> subprocess.Popen[bytes]:
    # A session of its own: Ctrl-C is for the process that waits, which ends this one.
    return subprocess.Popen(  # noqa: S603
        [sys.executable, "-m", module],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        start_new_session=True,
    )


def _next(
    busy: selectors.BaseSelector, worker: subprocess.Popen[bytes], jobs: Iterable[Document]
) -> None:
    """Give a process the next job, if there is one."""
    job = next(iter(jobs), None)
    if job is not None:
        _send(worker, job)
        busy.register(_pipe(worker.stdout), selectors.EVENT_READ, (worker, job))


def _send(worker: subprocess.Popen[bytes], document: Document) -> None:
    try:
        pipe = _pipe(worker.stdin)
        pipe.write(json.dumps(document).encode() + b"\n")
        pipe.flush()
    except BrokenPipeError:
        raise _ended(worker) from None


def _reply(worker: subprocess.Popen[bytes]) -> Document:
    line = _pipe(worker.stdout).readline()
    if not line.endswith(b"\n"):
        raise _ended(worker)
    reply = cast(Document, parse_json(line))
    if "error" not in reply:
        return reply
    if reply["error"] == "MemoryError":
        raise MemoryError(reply["text"])
    kinds = {kind.__name__: kind for kind in _kinds(FedVTCError)}
    if reply["error"] not in kinds:
        raise RuntimeError(f"in a worker process:\n{reply['text']}")
    raise kinds[reply["error"]](reply["text"], hint=reply["hint"])


def _kinds(kind: type[FedVTCError]) -> Iterable[type[FedVTCError]]:
    yield kind
    for child in kind.__subclasses__():
        yield from _kinds(child)


def _ended(worker: subprocess.Popen[bytes]) -> RunError:
    code = worker.wait()
    how = f"signal {-code}" if code < 0 else f"exit code {code}"
    return RunError(
        f"a worker process ended ({how})",
        hint="was it killed, or is memory short? set fewer engine.workers; what is done is kept, "
        "and can be resumed",
    )


def _pipe(stream: IO[bytes] | None) -> IO[bytes]:
    assert stream is not None
    return stream
