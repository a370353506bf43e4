"""A SuperLink is killed in the middle of a run and started again; prints what was seen.

Run by test_superlink.py as a program of its own, offline: FOLDER holds the certificates.
"""

from __future__ import annotations

import http.client
import json
import os
import signal
import ssl
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

from fedvtc_edge.flower.process.app_bundle import write_app
from fedvtc_edge.flower.process.superlink import Certificates, SuperLink
from fedvtc_edge.flower.process.supernode import SuperNode

SERVER = """
import time
from pathlib import Path

from flwr.app import ConfigRecord, Message, RecordDict
from flwr.serverapp import ServerApp

app = ServerApp()


@app.main()
def main(grid, context):
    while len(nodes := list(grid.get_node_ids())) < 2:
        time.sleep(0.2)
    while hang := context.run_config["hang"]:
        Path(hang).touch()
        time.sleep(1)
    order = RecordDict({"order": ConfigRecord({"data": b"x" * 100_000})})
    messages = [Message(order, dst_node_id=node, message_type="query") for node in nodes]
    waiting, homes = set(grid.push_messages(messages)), []
    while waiting:
        for reply in grid.pull_messages(waiting):
            waiting.discard(reply.metadata.reply_to_message_id)
            homes.append(reply.content["answer"]["home"])
        time.sleep(0.1)
    print("HOMES", sorted(homes), flush=True)
"""
CLIENT = """
from flwr.app import ConfigRecord, Message, RecordDict
from flwr.clientapp import ClientApp

app = ClientApp()


@app.query()
def query(message, context):
    answer = ConfigRecord({"home": context.node_config["home"]})
    return Message(RecordDict({"answer": answer}), reply_to=message)
"""


def until(condition: Callable[[], bool], seconds: float = 60.0) -> None:
    """Look again and again; a scenario that hangs ends with an error."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"after {seconds} s: {condition}")
        time.sleep(0.1)


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
    """Status of an empty request that names no node: 404 from the gate, 415 from Flower."""
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    connection = http.client.HTTPSConnection("127.0.0.1", port, context=context, timeout=10)
    connection.request("POST", path, b"")
    status = connection.getresponse().status
    connection.close()
    return status


def main(base: Path) -> None:
    """The scenario."""
    seen: dict[str, object] = {}
    (base / "tiny_server.py").write_text(SERVER)
    (base / "tiny_client.py").write_text(CLIENT)
    app = base / "app"
    names = {"serverapp": "tiny_server:app", "clientapp": "tiny_client:app"}
    write_app(app, **names, config={"hang": ""})
    homes = [str(base / 'it\'s a "home" \\ 0'), str(base / "ho=me 1")]
    tls = Certificates(base / "server.crt", base / "server.key", base / "ca.crt")
    with ExitStack() as stack:
        with SuperLink(base / "link", tls=tls) as link:
            [inner] = {
                int(line.split("--port ")[1].split()[0])
                for line in processes_of(base / "link").values()
                if "flower-superlink" in line
            }
            paths = ("/v1/control/start-run", "/v1/runtime/acquire-task", "/v1/fleet/get-fab")
            seen["through the gate"] = [reply(link.port, path) for path in paths]
            seen["past the gate"] = [reply(inner, path) for path in paths]
            with ThreadPoolExecutor(2) as pool:
                list(pool.map(link.register, [base / "node0.pub", base / "node1.pub"]))
            for index, home in enumerate(homes):
                node = SuperNode(
                    base / f"node{index}",
                    superlink=link.address,
                    authority=base / "ca.crt",
                    node_key=base / f"node{index}.key",
                    node_config={"home": home},
                    app=app,
                )
                stack.enter_context(node)
            first = link.submit(app, {"hang": str(base / "both nodes are there")})
            until((base / "both nodes are there").exists)
            [pid] = [
                pid
                for pid, line in processes_of(base / "link").items()
                if "flower-superlink" in line and "guardian" not in line
            ]
            os.kill(pid, signal.SIGKILL)
            until(lambda: not link.alive())
        seen["left of the killed"] = list(processes_of(base / "link").values())
        with SuperLink(base / "link", tls=tls, port=link.port) as again:
            again.register(base / "node0.pub")  # it knows this one, from before
            again.stop_run(first)
            second = again.submit(app, {"hang": ""})
            with again.follow(second, base / "second.log") as log:
                log.wait(60)
                seen["second"] = log.tail()
            seen["statuses"] = [again.status(first), again.status(second)]
    seen["left"] = list(processes_of(base).values())
    seen["homes"] = homes
    print(json.dumps(seen))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
