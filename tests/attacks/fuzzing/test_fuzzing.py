"""Mutants of everything that reads untrusted bytes, and faults that they must find."""

from __future__ import annotations

import ctypes
import gc
import importlib
import json
import mmap
import sys
import warnings
from collections.abc import Callable
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, given, settings

from fedvtc_edge.attacks.fuzzing import guided as guiding
from fedvtc_edge.attacks.fuzzing import probing
from fedvtc_edge.attacks.fuzzing.guided import guided
from fedvtc_edge.attacks.fuzzing.probing import Fault, Tally, Target, peak_memory_mb, probe
from fedvtc_edge.attacks.fuzzing.targets import CONTEXT, impossible, made_of, targets
from fedvtc_edge.errors import EnvelopeError, MissingExtra
from fedvtc_edge.progress import SilentProgress
from fedvtc_edge.sealing import Inbox, TrustList, seal
from fedvtc_edge.statistics.class_statistics import ClassStatistics
from fedvtc_edge.wire import WireError, uploads

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))
from mutants import mutants  # noqa: E402

COMMAND = importlib.import_module("fedvtc_edge.attacks.fuzzing.__main__")
UNSIGNED = {"diagonal", "pooled", "means", "release", "weights", "publication"}
SIGNED = {"envelope-hybrid", "envelope-x25519", "advert"}

needs_atheris = pytest.mark.skipif(
    importlib.util.find_spec("atheris") is None, reason="atheris has no wheel here"
)


def attack(target: Target, examples: int, *, shrink: bool = False) -> Tally:
    """Judge mutants by hypothesis, always the same; with ``shrink`` fail at the least fault."""
    tally = Tally(target)
    phases = [Phase.generate, Phase.shrink] if shrink else [Phase.generate]

    @settings(
        max_examples=examples,
        phases=phases,
        derandomize=True,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(mutants(target))
    def judge(data: bytes) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            verdict = tally.judge(data)
        assert not (shrink and isinstance(verdict, Fault)), verdict

    judge()
    tally.row("chance")
    return tally


@pytest.mark.parametrize("name", sorted(SIGNED | UNSIGNED))
def test_no_mutant_is_accepted_and_none_crashes(tmp_path: Path, name: str) -> None:
    """Mutants by hypothesis; of what is signed also one other value of every byte, or more."""
    target = every(tmp_path, name)
    tally = attack(target, 300, shrink=True)
    if target.signed:
        for data in islice(COMMAND.flips(target.genuine[0]), 0, None, 254):
            tally.judge(data)
    assert tally.faults == []
    # Where content may be another, the deepest checks were reached and passed.
    assert (tally.counts["other"] > 0) == (name not in SIGNED)
    assert tally.counts["refused"] > 0.6 * (tally.counts.total() - tally.counts["unchanged"])


@needs_atheris
def test_coverage_finds_nothing_either(monkeypatch: pytest.MonkeyPatch) -> None:
    """One process per target, 600 mutants each, which coverage chooses."""
    monkeypatch.setattr(COMMAND, "flips", lambda data: ())
    document, faults = COMMAND.campaign(600 * len(SIGNED | UNSIGNED), 1, SilentProgress())
    assert faults == []
    rows = [row for row in document["rows"] if row["part"] == "coverage"]
    assert {row["target"] for row in rows} == SIGNED | UNSIGNED
    for row in rows:
        tried = row["refused"] + row["other"] + row["unchanged"]
        assert tried == 600
        assert row["refused"] > 0.7 * tried
        assert row["edges"] > 15


def test_flips_are_all_other_values() -> None:
    expected = {bytes([x]) + b"b" for x in range(256)} | {b"a" + bytes([x]) for x in range(256)}
    assert set(COMMAND.flips(b"ab")) == expected - {b"ab"}


def every(folder: Path, name: str) -> Target:
    return next(target for target in targets(folder) if target.name == name)


def test_genuine_bytes_are_accepted(tmp_path: Path) -> None:
    """Else all mutants would be refused for a reason that has nothing to do with them."""
    for target in targets(tmp_path):
        for data in target.genuine:
            target.read(data)
            assert probe(target, data) == "unchanged"
        for data in target.neighbours:
            assert probe(target, data) == "refused"


# ---------------------------------------------------------------- planted faults


def planted(target: Target, examples: int = 250) -> set[str]:
    """Kinds of fault that mutants find in one target."""
    return {fault.kind for fault in attack(target, examples).faults}


def simple(read: Callable[[bytes], object], **fields: Any) -> Target:
    return Target("simple", read=read, refusals=(WireError,), genuine=(bytes(64),), **fields)


def refuse(data: bytes) -> None:
    raise WireError("no", hint="go on")


def test_a_reader_without_fault_has_no_finding() -> None:
    assert planted(simple(refuse)) == set()


def test_bytes_behind_the_envelope(tmp_path: Path) -> None:
    """A reader that takes as much as it needs lets a stranger send more."""
    whole = every(tmp_path, "envelope-x25519")
    size = len(whole.genuine[0])

    def read(data: bytes) -> None:
        if data[:size] not in whole.genuine:
            raise EnvelopeError("no", hint="go on")

    assert planted(replace(whole, read=read)) == {"accepted"}


@pytest.mark.parametrize("field", ["run", "round", "sender", "kind"])
def test_a_context_that_is_not_compared(tmp_path: Path, field: str) -> None:
    """A server that believes what the envelope belongs to: another upload would count here."""
    whole = every(tmp_path, "envelope-x25519")
    server, a = made_of("server", "x25519"), made_of("a", "x25519")
    elsewhere = {"run": "1" * 32, "round": 7, "sender": "client-c", "kind": "decoder"}
    context = replace(CONTEXT, **{field: elsewhere[field]})
    trusted = TrustList()
    trusted.add(context.sender, a.public)
    late = seal(b"late", recipient=server.public, sender=a, context=context)
    inbox = Inbox(tmp_path / "lax", run=context.run, recipient=server, trusted=trusted)
    for round_ in range(context.round):
        inbox.close(round_)

    def read(data: bytes) -> object:
        return inbox.receive(context, data)

    # Pieces of the late envelope end up in mutants whole: as the neighbours do.
    target = replace(whole, read=read, neighbours=(late,))
    assert planted(target) == {"accepted"}


@pytest.mark.parametrize("name", ["diagonal", "pooled"])
def test_sums_that_no_data_have(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str) -> None:
    monkeypatch.setattr(uploads, "check_possible", lambda sums: None)
    assert planted(replace(every(tmp_path, name), neighbours=()), 800) == {"wrong"}


def test_counts_that_count_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(uploads, "check_counts", lambda count: None)
    # hypothesis also draws constants of whatever modules earlier tests imported: with few
    # mutants one of the right kind may not come.
    assert "wrong" in planted(replace(every(tmp_path, "diagonal"), neighbours=()), 800)


def test_two_ways_to_write_zero(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(uploads, "_NEGATIVE_ZERO", 0x7FFFFFFF)  # a NaN, which is refused before
    target = every(tmp_path, "diagonal")  # one of whose float32 in thirty is a zero
    target = replace(target, genuine=target.genuine[:1], neighbours=())
    assert planted(target, 1500) == {"wrong"}


def test_a_bound_that_float32_rounds_up() -> None:
    """Found by a campaign: 1e30 is not a float32, and the next one is larger."""
    sums = ClassStatistics([1.0], [[0.0]], [[1e30]], pooled=False)
    with pytest.raises(WireError, match="beyond"):
        uploads.decode(uploads.encode(sums), classes=1, width=1)


def test_a_signalling_nan_is_refused_in_silence() -> None:
    """Found by a campaign: numpy warns when it casts one, and not when it compares."""
    data = uploads.encode(ClassStatistics([1.0], [[0.0]], [[2.0]], pooled=False))
    for at in range(len(data) - 12, len(data), 4):
        changed = data[:at] + b"\1\0\xa0\x7f" + data[at + 4 :]
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            with pytest.raises(WireError):
                uploads.decode(changed, classes=1, width=1)


def test_a_crash() -> None:
    def read(data: bytes) -> None:
        if data[40]:
            raise KeyError("unforeseen")
        refuse(data)

    found = planted(simple(read))
    assert found == {"crashed"}  # also IndexError, of mutants that are cut


def test_a_warning() -> None:
    def read(data: bytes) -> None:
        with np.errstate(all="warn"):
            np.frombuffer(data[: len(data) // 4 * 4], np.float32).astype(np.float16)
        refuse(data)

    assert planted(simple(read)) == {"crashed"}


def test_a_stranger_who_writes_the_log() -> None:
    def quote(data: bytes) -> None:
        raise WireError(data.decode("latin-1"), hint="go on")

    def much(data: bytes) -> None:
        raise WireError(data.hex() * 20, hint="go on")

    assert planted(simple(quote)) == {"talkative"}
    assert planted(simple(much)) == {"talkative"}


def test_a_slow_reader(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probing, "LONGEST_SECONDS", 0.001)

    def read(data: bytes) -> None:
        sum(range(max(data[:8], default=0) * 1000))
        refuse(data)

    assert planted(simple(read)) == {"slow"}


def test_a_reader_that_hoards(monkeypatch: pytest.MonkeyPatch) -> None:
    """The peak of a process that ran other tests says nothing: what is resident now does."""
    if not peak_memory_mb() or not hasattr(ctypes.CDLL(None), "malloc_trim"):
        pytest.skip("this system does not tell")

    def resident_mb() -> float:
        pages = int(Path("/proc/self/statm").read_text("ascii").split()[1])
        return pages * mmap.PAGESIZE / 2**20

    monkeypatch.setattr(probing, "peak_memory_mb", resident_mb)
    monkeypatch.setattr(probing, "WARM_UP", 50)
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # or the hoard would fit into what others have freed
    hoard: list[bytes] = []

    def read(data: bytes) -> None:
        hoard.append(b"\1" * 2**18)
        refuse(data)

    try:
        assert planted(simple(read)) == {"grew"}
    finally:
        hoard.clear()


def test_an_inbox_that_stores_before_it_verifies(tmp_path: Path) -> None:
    whole = every(tmp_path, "envelope-x25519")

    def read(data: bytes) -> object:
        (tmp_path / "x25519" / "received").write_bytes(data)
        return whole.read(data)

    assert planted(replace(whole, read=read), 50) == {"left"}


# ---------------------------------------------------------------- the oracle of sums


@pytest.mark.parametrize(
    ("field", "at", "value"),
    [
        ("count", 0, 1.5),
        ("count", 0, -1.0),
        ("count", 0, 2.0**49),
        ("count", 2, np.nan),
        ("total", (0, 0), 1e31),
        ("total", (0, 0), np.nan),
        ("total", (2, 1), 1.0),
        ("total", (0, 0), 1e4),
        ("square", (0, 0), -1.0),
        ("square", (1, 1), np.inf),
    ],
)
@pytest.mark.parametrize("pooled", [True, False])
def test_impossible_sums_are_seen(field: str, at: Any, value: float, pooled: bool) -> None:
    features = np.random.default_rng(0).normal(size=(8, 3))
    sums = ClassStatistics.of(features, np.arange(8) % 2, classes=3, pooled=pooled)
    assert impossible(sums) is None
    getattr(sums, field)[at] = value
    assert impossible(sums) is not None


def test_correlations_beyond_one_are_seen() -> None:
    sums = ClassStatistics([4.0], [[0.0, 0.0]], [[1.0, 1.1], [1.1, 1.0]], pooled=True)
    assert "eigenvalue" in str(impossible(sums))


# ---------------------------------------------------------------- guided by coverage


@pytest.fixture
def beside(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(HERE))


@needs_atheris
def test_coverage_leads_where_chance_does_not(beside: None) -> None:
    maze = importlib.import_module("planted_readers").targets(HERE)[0]
    assert planted(maze, 1000) == set()
    row, faults = guided("maze", 100_000, 1, program="planted_readers")
    assert {fault.kind for fault in faults} == {"crashed"}
    assert "found" in faults[0].detail
    assert row["refused"] + row["findings"] + row["unchanged"] == 100_000
    assert row["edges"] > 0


@needs_atheris
def test_a_process_that_dies_is_a_finding(beside: None) -> None:
    row, [fault] = guided("abort", 5000, 1, program="planted_readers")
    assert (row["findings"], fault.kind) == (1, "died")


def test_without_atheris_it_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(guiding, "find_spec", lambda name: None)
    with pytest.raises(MissingExtra, match="atheris"):
        guided("diagonal", 10, 0)
    with pytest.raises(SystemExit) as stop:
        COMMAND.main(["--count", "10", "--quiet"])
    assert stop.value.code == MissingExtra.exit_code
    assert "fedvtc-edge[fuzz]" in capsys.readouterr().err


# ---------------------------------------------------------------- the command


def test_command(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr(COMMAND, "targets", lambda folder: [target])
    monkeypatch.setattr(COMMAND, "guided", lambda name, count, seed: in_process(target, count))

    target = simple(refuse)
    with pytest.raises(SystemExit) as stop:
        COMMAND.main(["--count", "50"])
    output = capsys.readouterr()
    assert stop.value.code == 0
    assert "50 mutants, 0 findings" in output.out
    assert "simple, coverage" in output.err

    target = simple(lambda data: {}[data])
    with pytest.raises(SystemExit) as stop:
        COMMAND.main(["--count", "5", "--json", "--quiet", "--out", str(tmp_path)])
    output = capsys.readouterr()
    assert stop.value.code == 1
    assert not output.err
    document = json.loads(output.out)
    assert document == json.loads((tmp_path / "report.json").read_bytes())
    saved = sorted(path for path in tmp_path.iterdir() if path.name != "report.json")
    assert [path.read_bytes().hex() for path in saved] == [
        finding["data"] for finding in document["findings"]
    ]
    assert saved[0].name.endswith("simple-crashed")


def in_process(target: Target, count: int) -> tuple[dict[str, Any], list[Fault]]:
    tally = Tally(target)
    for data in islice(COMMAND.flips(target.genuine[0]), count):
        tally.judge(data)
    return tally.row("coverage", edges=1), tally.faults


@pytest.mark.parametrize("words", [["--count", "0"], ["--count", "x"], ["--seed", "x"]])
def test_command_with_wrong_input(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        COMMAND.main(words)
    assert stop.value.code == 2
    assert "error" in capsys.readouterr().err


def test_faults_are_kept_up_to_a_hundred_and_all_counted() -> None:
    tally = Tally(simple(refuse))
    for _ in range(150):
        tally.add(Fault("x", "crashed", "", b""))
    assert (len(tally.faults), tally.counts["finding"]) == (100, 150)
