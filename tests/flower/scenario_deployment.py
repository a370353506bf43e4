"""A server and three clients over loopback; a client, the SuperLink and the server are killed.

From the first round on strangers are at the port, more than it has places for.
Run by test_deployment.py in a network namespace without a route. Prints one JSON object.
"""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import ssl
import subprocess
import sys
import time
from pathlib import Path

from fedvtc_edge.benchmarks.studies import runner, strangers

# The built-in images: no client takes another data set on the server's word.
CONFIG = """
[data]
limit = 120
test_limit = 40
[clients]
count = 3
architectures = ["mlp"]
[method]
rounds = 3
anchor = 16
latent = 8
[training]
epochs = 1
decoder_steps = 1
finetune_steps = 1
finetune_from = 2
finetune_last = 1
[transport]
masking = true
[privacy]
collusion = 0.0
[server]
quorum = 0.6
deadline_s = 400
"""

HOMES = {"client-00": "home", "client-01": "ho=me 1", "client-02": 'it\'s a "home" \\ 0'}
"""Paths that Flower's command line could misread."""

GATED = ("/v1/control/start-run", "/v1/runtime/acquire-task", "/v1/fleet/get-fab")

STRANGERS = {"headers": 2, "bodies": 4, "slow": 30, "idle": 30, "handshakes": 10, "paths": 2}

PLUGIN = Path(__file__).parents[1] / "plugins" / "own_architecture.py"

PATIENCE_S = 1100.0


class Command:
    """One fedvtc-edge process in a group of its own, with its stderr in a file."""

    def __init__(self, folder: Path, name: str, *arguments: str) -> None:
        self.log = folder / f"{name}.err"
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "fedvtc_edge", *arguments],
                cwd=folder,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def text(self) -> str:
        return self.log.read_text("utf-8", "replace")

    def kill(self) -> None:
        """As a power cut: the process itself; what it started dies with it."""
        os.kill(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def end(self) -> None:
        if self.process.poll() is None:
            self.process.terminate()
            self.process.wait(60)


def until(command: Command, text: str, deadline: float) -> None:
    while text not in command.text():
        if time.monotonic() > deadline or command.process.poll() not in (None, 0):
            raise SystemExit(f"no {text!r} in:\n{command.text()[-3000:]}")
        time.sleep(0.2)


def processes_of(folder: Path) -> dict[int, str]:
    """Command lines of all processes that speak of the folder, but this one's."""
    found = {}
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = path.read_bytes().replace(b"\0", b" ").decode("utf-8", "replace")
        except OSError:
            continue
        if str(folder) in line and int(path.parent.name) != os.getpid():
            found[int(path.parent.name)] = line
    return found


def reply(port: int, path: str) -> int:
    """Status of an empty request that names no node: 404 or 401 from the gate, 415 from Flower."""
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    connection = http.client.HTTPSConnection("127.0.0.1", port, context=context, timeout=60)
    connection.request("POST", path, b"")
    status = connection.getresponse().status
    connection.close()
    return status


def prepare(folder: Path) -> None:
    """Settings and keys."""
    (folder / "config.toml").write_text(CONFIG)
    subprocess.run(
        [sys.executable, "-m", "fedvtc_edge", "keys", "trial", "kit"],
        cwd=folder,
        check=True,
        stdout=subprocess.DEVNULL,
    )


def main(folder: Path) -> None:
    deadline = time.monotonic() + PATIENCE_S
    prepare(folder)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    where = ("--keys", "kit/server", "--port", port)
    started: list[Command] = []
    crowd: subprocess.Popen[str] | None = None
    seen: dict[str, object] = {}

    def start(name: str, *arguments: str) -> Command:
        started.append(Command(folder, name, *arguments))
        return started[-1]

    def join(name: str) -> Command:
        keys, home = f"kit/{name}", HOMES[name]
        words = ["--keys", keys, "--home", home, "--wait", "300", "--tell", "--no-privacy"]
        if name == "client-01":  # with a network of its own, which the server need not know
            words += ["--plugin", str(PLUGIN), "--architecture", "pyramid"]
        return start(name, "join", f"localhost:{port}", *words)

    def superlink() -> tuple[int, str]:
        """Process and command line of the one that runs."""
        [found] = [
            (pid, line)
            for pid, line in processes_of(folder / "run").items()
            if "flower-superlink" in line and "supervisor" not in line
        ]
        return found

    try:
        server = start("server", "serve", "config.toml", *where, "--out", "run")
        clients = {name: join(name) for name in HOMES}
        until(server, "rounds: 1/3", deadline)
        quiet = sum(map(runner.pss_mb, strangers.gate_and_superlink(folder)))
        crowd = strangers.start_strangers(int(port), STRANGERS)
        clients["client-02"].kill()
        inner = int(superlink()[1].split("--port ")[1].split()[0])
        seen["through the gate"] = [reply(int(port), path) for path in GATED]
        seen["past the gate"] = [reply(inner, path) for path in GATED]
        until(server, "rounds: 2/3", deadline)
        crowded = sum(map(runner.pss_mb, strangers.gate_and_superlink(folder)))
        seen["grown by"] = crowded - quiet
        os.kill(superlink()[0], signal.SIGKILL)
        seen["killed"] = server.process.wait(max(deadline - time.monotonic(), 1.0))
        seen["left of the killed"] = list(processes_of(folder / "run").values())
        clients["client-02"] = join("client-02")
        server = start("server-again", "serve", "--resume", "run", *where)
        until(server, "listening on", deadline)
        server.kill()
        while processes_of(folder / "run") and time.monotonic() < deadline:
            time.sleep(0.2)
        server = start("server-last", "serve", "--resume", "run", *where)
        until(server, "rounds: 3/3", deadline)
        for command in (server, *clients.values()):
            command.process.wait(max(deadline - time.monotonic(), 1.0))
        met, _ = crowd.communicate(timeout=60)
        seen |= {
            "strangers": json.loads(met),
            "codes": [command.process.returncode for command in (server, *clients.values())],
            "server": server.text(),
            "client-02": clients["client-02"].text(),
            "left": list(processes_of(folder).values()),
        }
    finally:
        if crowd is not None:
            crowd.kill()
        for command in started:
            command.end()
    print(json.dumps(seen))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
