"""The strangers of the benchmark: each does what its name says, comes back, and is counted."""

from __future__ import annotations

import asyncio
import json
import os
from pathlib import Path

import pytest

from fedvtc_edge.benchmarks.studies import runner
from fedvtc_edge.benchmarks.studies import strangers as benchmark
from fedvtc_edge.flower.access import pki
from fedvtc_edge.flower.access.reverse_proxy import server_context

ONE_EACH = dict.fromkeys(benchmark.KINDS, 1)


def test_each_kind_knocks_and_comes_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At a server that cuts everybody off after 64 kB or half a second."""
    monkeypatch.setattr(benchmark, "_AGAIN_S", 0.01)
    server = pki.server_certificate(pki.new_authority("test", 2), ["127.0.0.1"], 2)
    (tmp_path / "crt").write_bytes(server.certificate_pem())
    (tmp_path / "key").write_bytes(server.key_pem())
    heard: list[bytes] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            async with asyncio.timeout(0.5):
                data = await reader.readexactly(65_536)
        except asyncio.IncompleteReadError as short:
            data = short.partial
        except TimeoutError:
            data = b"-"
        heard.append(data[:6])
        writer.transport.abort()

    async def story() -> dict[str, dict[str, float]]:
        tls = server_context(tmp_path / "crt", tmp_path / "key")
        gate = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=tls, ssl_handshake_timeout=0.5)
        ended = asyncio.Event()
        port = gate.sockets[0].getsockname()[1]
        attacking = asyncio.ensure_future(benchmark.attack(port, ended, ONE_EACH))
        while heard.count(b"POST /") < 6 or heard.count(b"-") < 6:
            await asyncio.sleep(0.05)
        ended.set()
        met = await attacking
        gate.close()
        return met

    met = asyncio.run(asyncio.wait_for(story(), 60))
    assert set(met) == set(benchmark.KINDS)
    assert all(one["tried"] >= 1 for one in met.values())
    assert met["headers"]["tried"] > 1
    assert met["headers"]["MB sent"] > 0.06
    assert met["bodies"]["MB sent"] > 0.06
    assert met["idle"]["let in"] >= 1
    assert met["idle"]["MB sent"] == 0
    assert met["handshakes"]["let in"] == 0
    assert met["handshakes"]["tried"] > 1


def test_the_process_of_strangers_ends_when_told() -> None:
    process = benchmark.start_strangers(9, {"idle": 2})  # where nobody listens
    said, _ = process.communicate(timeout=60)
    assert json.loads(said)["idle"]["let in"] == 0


def test_memory_and_descriptors_of_a_process() -> None:
    assert runner.pss_mb(os.getpid()) > 1
    assert benchmark._open(os.getpid()) > 2
    assert runner.pss_mb(1 << 30) == benchmark._open(1 << 30) == 0


def test_people_get_a_few_lines() -> None:
    phase = {"round_s": 10.0, "peak_mb": 150.0, "open": 50}
    found = {
        "quiet": phase,
        "strangers": {**phase, "round_s": 15.0},
        "grown_mb": 30.2,
        "slower": 1.5,
        "newcomer_s": {"median": 0.5, "longest": 2.0},
        "log_mb": 0.01,
        "met": {"idle": {"tried": 3.0, "let in": 2.0, "MB sent": 0.0}},
    }
    lines = list(benchmark._lines(found))
    assert lines[1].split() == ["quiet", "10.0", "150", "50"]
    assert "grown by 30 MB, a round takes 1.50 times as long" in lines[3]
    assert lines[-1].split() == ["idle", "3", "2", "0"]


def test_quiet_rounds_alone_compare_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        benchmark.STUDY.main(["--rounds", str(benchmark.QUIET)])
    assert caught.value.code == 1
    assert "give more than" in capsys.readouterr().err
