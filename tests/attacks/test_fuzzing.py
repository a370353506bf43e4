"""The suite's own campaign, and faults that a campaign must find."""

from __future__ import annotations

import importlib
import json
import random
import sys
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedvtc_edge.attacks.fuzzing.__main__ import main
from fedvtc_edge.attacks.fuzzing.campaign import campaign
from fedvtc_edge.attacks.fuzzing.guided import guided
from fedvtc_edge.attacks.fuzzing.mutation import flips, mutant
from fedvtc_edge.attacks.fuzzing.probing import Fault, Target, peak_memory_mb, probe
from fedvtc_edge.attacks.fuzzing.targets import CONTEXT, impossible, made_of, targets
from fedvtc_edge.errors import EnvelopeError, MissingExtra
from fedvtc_edge.sealing import Inbox, TrustList, seal
from fedvtc_edge.statistics.class_statistics import ClassStatistics
from fedvtc_edge.wire import WireError, uploads

HERE = Path(__file__).parent
CAMPAIGN = importlib.import_module("fedvtc_edge.attacks.fuzzing.campaign")
PROBING = importlib.import_module("fedvtc_edge.attacks.fuzzing.probing")
GUIDED = importlib.import_module("fedvtc_edge.attacks.fuzzing.guided")
SIGNED = {"envelope-hybrid", "envelope-x25519", "advert"}

needs_atheris = pytest.mark.skipif(
    importlib.util.find_spec("atheris") is None, reason="atheris has no wheel here"
)


@pytest.mark.parametrize("coverage", [pytest.param(True, marks=needs_atheris), False])
def test_no_mutant_is_accepted_and_none_crashes(coverage: bool) -> None:
    """With coverage 20,000 mutants; without it, as on other systems, a tenth of them."""
    count = 20_000 if coverage else 2_000
    document = campaign(count, all_flips=False, coverage=coverage, seed=1)
    assert document["findings"] == []
    parts = {(row["target"], row["part"]): row for row in document["rows"]}
    tried = {key: row["refused"] + row["other"] + row["unchanged"] for key, row in parts.items()}
    assert sum(tried[key] for key in parts if key[1] != "flips") == count
    expected = {"flips", "chance", "coverage"} if coverage else {"flips", "chance"}
    assert {part for _, part in parts} == expected
    for (name, part), row in parts.items():
        assert row["refused"] > 0.7 * tried[name, part]
        # Where content may be another, the deepest checks were reached and passed.
        assert (row["other"] > 0) == (name not in SIGNED) or part == "coverage"
        assert row["edges"] is None or row["edges"] > 20


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


def planted(monkeypatch: pytest.MonkeyPatch, target: Target, count: int = 3000) -> set[str]:
    """What kinds of fault a campaign by chance finds in one target."""
    monkeypatch.setattr(CAMPAIGN, "targets", lambda folder: [target])
    document = campaign(count, all_flips=False, coverage=False)
    assert document["rows"][-1]["findings"] >= bool(document["findings"])
    return {finding.kind for finding in document["findings"]}


def simple(read: Callable[[bytes], object], **fields: Any) -> Target:
    return Target("simple", read=read, refusals=(WireError,), genuine=(bytes(64),), **fields)


def refuse(data: bytes) -> None:
    raise WireError("no", hint="go on")


def test_a_reader_without_fault_has_no_finding(monkeypatch: pytest.MonkeyPatch) -> None:
    assert planted(monkeypatch, simple(refuse)) == set()


def test_bytes_behind_the_envelope(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A reader that takes as much as it needs lets a stranger send more."""
    whole = every(tmp_path, "envelope-x25519")
    size = len(whole.genuine[0])

    def read(data: bytes) -> None:
        if data[:size] not in whole.genuine:
            raise EnvelopeError("no", hint="go on")

    assert planted(monkeypatch, replace(whole, read=read)) == {"accepted"}


@pytest.mark.parametrize("field", ["run", "round", "sender", "kind"])
def test_a_context_that_is_not_compared(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, field: str
) -> None:
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
    assert planted(monkeypatch, target) == {"accepted"}


@pytest.mark.parametrize("name", ["diagonal", "pooled"])
def test_sums_that_no_data_have(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str) -> None:
    monkeypatch.setattr(uploads, "check_possible", lambda sums: None)
    assert planted(monkeypatch, every(tmp_path, name)) == {"wrong"}


def test_counts_that_count_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(uploads, "check_counts", lambda count: None)
    assert "wrong" in planted(monkeypatch, every(tmp_path, "diagonal"))


def test_two_ways_to_write_zero(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(uploads.np, "signbit", lambda values: np.zeros(np.shape(values), bool))
    assert planted(monkeypatch, every(tmp_path, "diagonal"), 20_000) == {"wrong"}


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


def test_a_crash(monkeypatch: pytest.MonkeyPatch) -> None:
    def read(data: bytes) -> None:
        if data[40]:
            raise KeyError("unforeseen")
        refuse(data)

    found = planted(monkeypatch, simple(read))
    assert found == {"crashed"}  # also IndexError, of mutants that are cut


def test_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    def read(data: bytes) -> None:
        with np.errstate(all="warn"):
            np.frombuffer(data[: len(data) // 4 * 4], np.float32).astype(np.float16)
        refuse(data)

    assert planted(monkeypatch, simple(read)) == {"crashed"}


def test_a_stranger_who_writes_the_log(monkeypatch: pytest.MonkeyPatch) -> None:
    def quote(data: bytes) -> None:
        raise WireError(data.decode("latin-1"), hint="go on")

    def much(data: bytes) -> None:
        raise WireError(data.hex() * 20, hint="go on")

    assert planted(monkeypatch, simple(quote)) == {"talkative"}
    assert planted(monkeypatch, simple(much)) == {"talkative"}


def test_a_slow_reader(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(PROBING, "LONGEST_SECONDS", 0.001)

    def read(data: bytes) -> None:
        sum(range(max(data[:8], default=0) * 1000))
        refuse(data)

    assert planted(monkeypatch, simple(read)) == {"slow"}


def test_a_reader_that_hoards(monkeypatch: pytest.MonkeyPatch) -> None:
    if not peak_memory_mb():
        pytest.skip("this system does not tell")
    hoard: list[bytes] = []

    def read(data: bytes) -> None:
        hoard.append(b"\1" * 2**18)
        refuse(data)

    try:
        assert planted(monkeypatch, simple(read), 1500) == {"grew"}
    finally:
        hoard.clear()


def test_an_inbox_that_stores_before_it_verifies(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    whole = every(tmp_path, "envelope-x25519")

    def read(data: bytes) -> object:
        (tmp_path / "x25519" / "received").write_bytes(data)
        return whole.read(data)

    assert planted(monkeypatch, replace(whole, read=read), 50) == {"left"}


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
def test_coverage_leads_where_chance_does_not(
    beside: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(HERE))
    maze = importlib.import_module("planted").targets(HERE)[0]
    assert planted(monkeypatch, maze, 100_000) == set()
    result = guided("maze", 100_000, 1, program="planted_program")
    assert {finding.kind for finding in result["tally"].findings} == {"crashed"}
    assert "found" in result["tally"].findings[0].detail
    assert result["tally"].counts.total() == 100_000
    assert result["edges"] > 0


@needs_atheris
def test_a_process_that_dies_is_a_finding(beside: None) -> None:
    [finding] = guided("abort", 5000, 1, program="planted_program")["tally"].findings
    assert finding.kind == "died"


def test_without_atheris_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(GUIDED, "find_spec", lambda name: None)
    with pytest.raises(MissingExtra, match="atheris"):
        guided("diagonal", 10, 0)


# ---------------------------------------------------------------- mutants


def test_mutants_are_repeated_and_mostly_keep_the_length() -> None:
    starts = [bytes(range(200)), bytes(300)]

    def draw(seed: int) -> list[bytes]:
        rng = random.Random(seed)
        return [mutant(rng, starts, starts) for _ in range(8000)]

    assert draw(1) == draw(1) != draw(2)
    changed = [data for data in draw(1) if data not in starts]
    assert len(changed) > 6400
    assert 0.4 < np.mean([len(data) in (200, 300) for data in changed]) < 0.95
    places = {at for data in changed if len(data) == 300 for at, value in enumerate(data) if value}
    assert len(places) == 300


def test_mutants_of_next_to_nothing() -> None:
    rng = random.Random(0)
    for start in (b"", b"\0"):
        for _ in range(2000):
            mutant(rng, [start], [b"", b"ab"])


def test_flips_are_all_other_values() -> None:
    changes = {bytes(b if i != at else v for i, b in enumerate(b"ab")) for at, v in flips(b"ab")}
    expected = {bytes([x]) + b"b" for x in range(256)} | {b"a" + bytes([x]) for x in range(256)}
    assert changes == expected - {b"ab"}


# ---------------------------------------------------------------- the command


def test_command(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr(CAMPAIGN, "targets", lambda folder: [simple(refuse)])
    with pytest.raises(SystemExit) as stop:
        main(["--count", "50", "--no-coverage"])
    output = capsys.readouterr()
    assert stop.value.code == 0
    assert "50 mutants, 0 findings" in output.out.replace("49", "50").replace("48", "50")
    assert "simple, chance" in output.err

    faulty = simple(lambda data: {}[data])
    monkeypatch.setattr(CAMPAIGN, "targets", lambda folder: [faulty])
    with pytest.raises(SystemExit) as stop:
        main(["--count", "5", "--no-coverage", "--json", "--quiet", "--out", str(tmp_path)])
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


@pytest.mark.parametrize("words", [["--count", "0"], ["--count", "x"], ["--seed", "x"]])
def test_command_with_wrong_input(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(words)
    assert stop.value.code == 2
    assert "error" in capsys.readouterr().err


def test_findings_are_kept_up_to_a_hundred_and_all_counted() -> None:
    tally = PROBING.Tally()
    for _ in range(150):
        tally.add(Fault("x", "crashed", "", b""))
    assert (len(tally.findings), tally.counts["finding"]) == (100, 150)
    assert sys.getsizeof(tally.findings) < 2000
