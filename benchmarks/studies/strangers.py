"""Study of a deployment's port under strangers: what they cost its server and its members.

``python -m fedvtc_edge.benchmarks.studies strangers --rounds 8 --descriptors 256``

A real ``serve`` and real ``join`` processes go through their rounds on loopback. After the
first rounds, which are quiet, a process of strangers comes, who know the port and nothing
else, all kinds at once until the last round: headers without an end, bodies of 60 MiB,
connections that are idle, that send a byte a second, that never finish TLS, and requests
for paths that are not there. Whoever is cut off comes back. Memory is of the gate and of
the SuperLink (PSS, read five times a second), a round's time runs from one line of the
server's to the next. Linux only.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import os
import resource
import socket
import ssl
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import ExitStack, suppress
from pathlib import Path

from fedvtc_edge.errors import GateError

from .runner import Document, Study, positive, pss_mb, table

QUIET = 3  # rounds before the strangers come; the first of them is not counted
_CLIENTS = 3
_LOOK_S = 0.2
_PATIENCE_S = 900.0
_CEILING_MB = 4096.0
_AGAIN_S = 0.5  # until one who was cut off comes back
_SETTINGS = (
    *("data.limit=300", "data.test_limit=60", "clients.count=3", "training.epochs=1"),
    *("training.decoder_steps=5", "training.finetune_last=20", "training.finetune_steps=5"),
    "server.deadline_s=300",
)
_HEAD = (
    b"POST /v1/fleet/push-object HTTP/1.1\r\nhost: localhost\r\n"
    b"content-type: application/protobuf\r\n"
)
_BODY = 60 << 20
KINDS = {"headers": 8, "bodies": 20, "slow": 250, "idle": 250, "handshakes": 60, "paths": 4}
"""Strangers of each kind."""


# ---------------------------------------------------------------- strangers


async def attack(
    port: int, ended: asyncio.Event, kinds: Mapping[str, int] = KINDS
) -> dict[str, dict[str, float]]:
    """All strangers at once, each of whom comes back when it is cut off.

    Args:
        port: Of 127.0.0.1.
        ended: Set when they are to go.
        kinds: How many there are of each kind.

    Returns:
        By kind: connections ``tried``, of which TLS ``let in``, and ``MB sent`` over them.
    """
    trusting = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    trusting.check_hostname = False
    trusting.verify_mode = ssl.CERT_NONE
    met = {kind: {"tried": 0.0, "let in": 0.0, "MB sent": 0.0} for kind in kinds}

    async def visit(kind: str) -> None:
        met[kind]["tried"] += 1
        heard, plain = await asyncio.open_connection("127.0.0.1", port)
        try:
            if kind not in _ACTS:
                plain.write(b"\x16\x03\x01\x02\x00\x01\x00")  # the begin of a TLS handshake
                await heard.read()
                return
            await plain.start_tls(trusting, ssl_handshake_timeout=60)
            met[kind]["let in"] += 1
            writer = Writer(plain)
            try:
                await _ACTS[kind](writer)
            finally:
                met[kind]["MB sent"] += writer.sent / 1e6
        finally:
            plain.transport.abort()

    async def stranger(kind: str) -> None:
        while True:
            with suppress(OSError):  # cut off, as it should be
                await visit(kind)
            await asyncio.sleep(_AGAIN_S)

    everybody = [
        asyncio.create_task(stranger(kind)) for kind, count in kinds.items() for _ in range(count)
    ]
    await ended.wait()
    for task in everybody:
        task.cancel()
    await asyncio.gather(*everybody, return_exceptions=True)
    return met


async def attack_until_told(port: int, kinds: Mapping[str, int] = KINDS) -> None:
    """:func:`attack` until standard input is closed; prints what was met as JSON."""
    ended = asyncio.Event()
    asyncio.get_running_loop().add_reader(sys.stdin.fileno(), ended.set)
    print(json.dumps(await attack(port, ended, kinds)))


class Writer:
    """A stream that counts what it sends, and notices when the other side is gone."""

    def __init__(self, stream: asyncio.StreamWriter) -> None:
        self.stream = stream
        self.sent = 0

    async def send(self, data: bytes) -> None:
        """Send it, once there is room for it."""
        if self.stream.transport.is_closing():
            raise ConnectionResetError
        self.stream.write(data)
        await self.stream.drain()
        self.sent += len(data)

    async def until_cut(self) -> None:
        """Send nothing more."""
        while not self.stream.transport.is_closing():
            await asyncio.sleep(_LOOK_S)


async def _endless_header(writer: Writer) -> None:
    await writer.send(_HEAD)
    while True:
        await writer.send(b"x-%d: %s\r\n" % (writer.sent, b"a" * 60_000))
        await asyncio.sleep(0)


async def _body(writer: Writer) -> None:
    await writer.send(_HEAD + b"content-length: %d\r\n\r\n" % _BODY)
    while writer.sent < _BODY:
        await writer.send(bytes(1 << 16))
        await asyncio.sleep(0)
    await writer.until_cut()


async def _slow(writer: Writer) -> None:
    for byte in _HEAD + b"x: " + b"a" * 100_000:
        await writer.send(bytes([byte]))
        await asyncio.sleep(1.0)


async def _idle(writer: Writer) -> None:
    await writer.until_cut()


async def _paths(writer: Writer) -> None:
    await writer.send(b"GET /%s HTTP/1.1\r\nhost: localhost\r\n\r\n" % (b"x" * 200))
    await writer.until_cut()


_ACTS: dict[str, Callable[[Writer], Awaitable[None]]] = {
    "headers": _endless_header,
    "bodies": _body,
    "slow": _slow,
    "idle": _idle,
    "paths": _paths,
}


# ---------------------------------------------------------------- the study


def measure(rounds: int, descriptors: int | None) -> Document:
    """One run, quiet at first and then under strangers.

    Args:
        rounds: Of the run, more than :data:`QUIET`.
        descriptors: Limit of the server's processes (RLIMIT_NOFILE); None leaves it.

    Returns:
        ``{"schema", "clients", "rounds", "descriptors", "quiet", "strangers", "grown_mb",
        "slower", "newcomer_s", "log_mb", "met"}``; ``quiet`` and ``strangers`` hold
        ``{"round_s", "peak_mb", "open"}``: median seconds of a round, and of gate and SuperLink
        together the largest memory and the most open descriptors.

    Raises:
        GateError: The run did not end well.
    """
    if rounds <= QUIET:
        raise GateError(f"{rounds} rounds", hint=f"give more than {QUIET}, which are quiet")
    with tempfile.TemporaryDirectory(prefix="fedvtc-") as name, ExitStack() as stack:
        folder = Path(name)
        _command("keys", "trial", str(folder / "keys"), "--clients", str(_CLIENTS)).wait()
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        words = [f"--set={setting}" for setting in (*_SETTINGS, f"method.rounds={rounds}")]
        keys, out = folder / "keys", folder / "run"
        server = _command(
            *("serve", *words, "--keys", str(keys / "server"), "--port", str(port)),
            *("--out", str(out)),
            descriptors=descriptors,
            log=folder / "server.log",
        )
        stack.callback(_end, server)
        for index in range(_CLIENTS):
            client = _command(
                *("join", f"localhost:{port}", "--keys", str(keys / f"client-{index:02d}")),
                *("--home", str(folder / f"home-{index}"), "--wait", "120", "--no-privacy"),
                log=folder / f"client-{index}.log",
            )
            stack.callback(_end, client)
        return _watch(server, folder, port, rounds, descriptors)


def _watch(
    server: subprocess.Popen[bytes],
    folder: Path,
    port: int,
    rounds: int,
    descriptors: int | None,
) -> Document:
    ends: list[float] = []
    seen = {phase: {"round_s": 0.0, "peak_mb": 0.0, "open": 0} for phase in ("quiet", "strangers")}
    newcomers: list[float] = []
    flower, logs, said = folder / "run" / "checkpoint" / "flower", 0, ""
    strangers: subprocess.Popen[str] | None = None
    knocking = threading.Event()
    until = time.monotonic() + _PATIENCE_S
    try:
        while len(ends) < rounds:
            text = (folder / "server.log").read_text("utf-8", "replace")
            for number in range(len(ends) + 1, rounds + 1):
                if f"rounds: {number}/{rounds}" in text:
                    ends.append(time.monotonic())
            if server.poll() is not None or time.monotonic() > until:
                if len(ends) < rounds:
                    raise GateError(f"the run failed: {text[-2000:]}", hint="try it when quiet")
                break
            if len(ends) >= QUIET and strangers is None:
                strangers = start_strangers(port)
                threading.Thread(target=_knock, args=(port, newcomers, knocking)).start()
            phase = seen["quiet" if strangers is None else "strangers"]
            served = gate_and_superlink(folder)
            phase["peak_mb"] = max(phase["peak_mb"], sum(map(pss_mb, served)))
            if phase["peak_mb"] > _CEILING_MB:
                raise GateError(
                    f"gate and SuperLink hold {phase['peak_mb']:.0f} MB "
                    f"{time.monotonic() - ends[-1]:.0f} s after the last round",
                    hint="they would go on until the machine has no memory left",
                )
            phase["open"] = max(phase["open"], sum(map(_open, served)))
            logs = max(logs, sum(path.stat().st_size for path in flower.glob("*.log*")))
            time.sleep(_LOOK_S)
    finally:
        knocking.set()
        if strangers is not None:
            said, _ = strangers.communicate(timeout=60)
    if strangers is None or strangers.returncode:
        raise GateError("the strangers ended by themselves", hint="run study.attack by hand")
    met = json.loads(said)
    spans = [later - earlier for earlier, later in itertools.pairwise(ends)]
    seen["quiet"]["round_s"] = statistics.median(spans[: QUIET - 1])
    seen["strangers"]["round_s"] = statistics.median(spans[QUIET - 1 :])
    return {
        "schema": 1,
        "clients": _CLIENTS,
        "rounds": rounds,
        "descriptors": descriptors,
        **seen,
        "grown_mb": seen["strangers"]["peak_mb"] - seen["quiet"]["peak_mb"],
        "slower": seen["strangers"]["round_s"] / seen["quiet"]["round_s"],
        "newcomer_s": {"median": statistics.median(newcomers), "longest": max(newcomers)},
        "log_mb": logs / 1e6,
        "met": met,
    }


def _command(
    *words: str, descriptors: int | None = None, log: Path | None = None
) -> subprocess.Popen[bytes]:
    def limit() -> None:
        if descriptors is not None:
            resource.setrlimit(resource.RLIMIT_NOFILE, (descriptors, descriptors))

    with (log or Path(os.devnull)).open("ab") as said:
        return subprocess.Popen(  # noqa: S603  (our own arguments)
            [sys.executable, "-m", "fedvtc_edge", *words],
            stdout=said,
            stderr=said,
            preexec_fn=limit,
        )


def _end(process: subprocess.Popen[bytes]) -> None:
    """Stop a command, and wait until it no longer writes into its folder."""
    process.terminate()
    process.wait(60)


def start_strangers(port: int, kinds: Mapping[str, int] = KINDS) -> subprocess.Popen[str]:
    """A process of strangers; it ends when its standard input is closed."""
    module = "fedvtc_edge.benchmarks.studies.strangers"
    code = (
        f"import asyncio, {module} as study; "
        f"asyncio.run(study.attack_until_told({port}, {dict(kinds)}))"
    )
    return subprocess.Popen(  # noqa: S603  (our own code)
        [sys.executable, "-c", code],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )


def _knock(port: int, found: list[float], done: threading.Event) -> None:
    """Seconds until a newcomer, who comes once a second, has an answer."""
    trusting = ssl.create_default_context()
    trusting.check_hostname = False
    trusting.verify_mode = ssl.CERT_NONE
    while not done.wait(1.0):
        begin, answered = time.monotonic(), False
        while not answered and not done.is_set():
            with (
                suppress(OSError),
                socket.create_connection(("127.0.0.1", port), 30) as plain,
                trusting.wrap_socket(plain) as secure,
            ):
                secure.sendall(b"GET /health HTTP/1.1\r\nhost: localhost\r\n\r\n")
                answered = b" 200 " in secure.recv(4096)
        found.append(time.monotonic() - begin)


def gate_and_superlink(folder: Path) -> list[int]:
    """Both processes that speak of the folder, their supervisors and children left out."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):
            words = path.read_bytes().split(b"\0")
            inside = any(str(folder).encode() in word for word in words)
            if inside and not any(b"supervisor" in word for word in words):
                named = b"fedvtc_edge.flower.access.reverse_proxy" in words
                if named or any(word.endswith(b"/flower-superlink") for word in words):
                    found.append(int(path.parent.name))
    return found


def _open(pid: int) -> int:
    try:
        return len(os.listdir(f"/proc/{pid}/fd"))
    except OSError:
        return 0


def _lines(found: Document) -> Iterator[str]:
    rows = [
        [phase, *(f"{found[phase][key]:.{digits}f}" for key, digits in _FIGURES.items())]
        for phase in ("quiet", "strangers")
    ]
    yield from table(("", "s a round", "MB at most", "descriptors"), rows)
    newcomer = found["newcomer_s"]
    yield (
        f"grown by {found['grown_mb']:.0f} MB, a round takes {found['slower']:.2f} times as long, "
        f"a newcomer waits {newcomer['median']:.2f} s, {newcomer['longest']:.1f} s at most; "
        f"logs {found['log_mb']:.2f} MB"
    )
    kinds = [
        [kind, *(f"{value:.0f}" for value in met.values())] for kind, met in found["met"].items()
    ]
    yield from table(("strangers", "tried", "let in", "MB sent"), kinds)


_FIGURES = {"round_s": 1, "peak_mb": 0, "open": 0}  # and digits that are printed


def _options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--rounds", type=positive, default=8)
    parser.add_argument("--descriptors", type=positive, default=None)


STUDY = Study("strangers", __doc__, _options, measure, _lines)


if __name__ == "__main__":
    STUDY.main()
