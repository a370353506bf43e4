"""A server and three clients over loopback; a client and then the server are killed.

Run by test_deployment.py in a network namespace without a route. Prints one JSON object.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

CONFIG = """
[data]
limit = 150
test_limit = 60
alpha = 1.0
[clients]
count = 3
architectures = ["mlp", "lenet"]
[method]
rounds = 3
anchor = 64
latent = 16
[training]
epochs = 1
decoder_steps = 2
finetune_steps = 2
finetune_from = 2
finetune_last = 2
[transport]
masking = true
[privacy]
collusion = 0.0
[server]
quorum = 0.6
deadline_s = 240
"""

PATIENCE_S = 480.0


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
            self.process.wait(30)


def until(command: Command, text: str, deadline: float) -> None:
    while text not in command.text():
        if time.monotonic() > deadline or command.process.poll() not in (None, 0):
            raise SystemExit(f"no {text!r} in:\n{command.text()[-3000:]}")
        time.sleep(0.2)


def main(folder: Path) -> None:
    deadline = time.monotonic() + PATIENCE_S
    (folder / "config.toml").write_text(CONFIG)
    subprocess.run(
        [sys.executable, "-m", "fedvtc_edge", "keys", "trial", "kit"],
        cwd=folder,
        check=True,
        stdout=subprocess.DEVNULL,
    )
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    where = ("--keys", "kit/server", "--port", port)
    started: list[Command] = []

    def start(name: str, *arguments: str) -> Command:
        started.append(Command(folder, name, *arguments))
        return started[-1]

    def join(name: str) -> Command:
        keys = f"kit/{name}"
        return start(name, "join", f"localhost:{port}", "--keys", keys, "--wait", "60", "--tell")

    try:
        server = start("server", "serve", "config.toml", *where, "--out", "run")
        clients = {f"client-0{n}": join(f"client-0{n}") for n in range(3)}
        until(server, "rounds: 1/3", deadline)
        clients["client-02"].kill()
        until(server, "rounds: 2/3", deadline)
        server.kill()
        clients["client-02"] = join("client-02")
        server = start("server-again", "serve", "--resume", "run", *where)
        until(server, "rounds: 3/3", deadline)
        for command in (server, *clients.values()):
            command.process.wait(max(deadline - time.monotonic(), 1.0))
        result = {
            "codes": [command.process.returncode for command in (server, *clients.values())],
            "server": server.text(),
            "client-02": clients["client-02"].text(),
        }
    finally:
        for command in started:
            command.end()
    print(json.dumps(result))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
