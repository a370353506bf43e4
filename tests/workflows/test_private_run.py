"""Whole private runs: one noised release each, and nothing exact that the server could see."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tomli_w
import torch

from fedvtc_edge.config import Config
from fedvtc_edge.data import load_dataset
from fedvtc_edge.errors import DataError, PrivacyError
from fedvtc_edge.federation.assembly import assemble
from fedvtc_edge.models import ImageShape
from fedvtc_edge.models.extractor import Anchor, centre, in_chunks, one_by_one
from fedvtc_edge.privacy.claim import UNITS
from fedvtc_edge.privacy.mechanism import mechanism_of
from fedvtc_edge.privacy.release import bounded_sums, estimate
from fedvtc_edge.privacy.release_spec import ReleaseSpec
from fedvtc_edge.progress import SilentProgress
from fedvtc_edge.seeding import derive_seed
from fedvtc_edge.training.compute import Compute, deterministic
from fedvtc_edge.wire import decode_release, publish, published
from fedvtc_edge.wire.context import Context
from fedvtc_edge.workflows.run import resume, run, run_without_trace

Tiny = Callable[..., Config]
Quickly = Callable[[], AbstractContextManager[None]]
IDS = ["client-00", "client-01", "client-02"]
PRIVACY = {"mode": "anchored", "epsilon": 4.0, "population": 200}


class Cut(Exception):  # noqa: N818  (what it stands for is no error)
    """Stands for the end of a process."""


def private(tiny: Tiny, **tables: Any) -> Config:
    return tiny(**{**tables, "privacy": PRIVACY | tables.get("privacy", {})})


@pytest.fixture(scope="module")
def config(tiny: Tiny) -> Config:
    return private(tiny)


@pytest.fixture(scope="module")
def done(config: Config, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished private run, with its report."""
    out = tmp_path_factory.mktemp("private") / "run"
    run(config, out=out)
    return out


def release_file(out: Path, name: str) -> Path:
    return out / "clients" / name / "anchor.release"


def server_file(out: Path, name: str) -> Path:
    return out / "server" / "round-0000" / f"{name}.anchor.upload"


def entries(out: Path) -> list[dict[str, Any]]:
    return list(json.loads((out / "ledger.json").read_text())["releases"])


def parts(config: Config) -> tuple[ReleaseSpec, Anchor, np.ndarray, list[Any]]:
    """The public design, anchor and centre, and the clients with their data."""
    data = load_dataset(config.data)
    mechanism = mechanism_of(config, data.classes)
    assert mechanism is not None
    spec = mechanism.spec
    height, _, channels = data.image_shape
    shape = ImageShape(height, channels)
    anchor = Anchor(shape, spec.width, derive_seed(config.seed, "anchor"))
    people = assemble(config, data, Compute.of(config.engine)).federation.clients
    with deterministic():  # as a run: how many threads there are can be seen in its last bits
        about = centre(anchor, shape)
    return spec, anchor, about, people


def no_secret_is_lost(out: Path) -> None:
    """What the server has, the ledger has; and both have what the client keeps."""
    known = {entry["client"]: entry for entry in entries(out)}
    assert len(known) == len(entries(out)), "one release each"
    for file in sorted((out / "server").rglob("*.safetensors")):
        name = file.name.split(".")[0]
        data = file.read_bytes()
        assert known[name]["sha256"] == hashlib.sha256(data).hexdigest()
        assert release_file(out, name).read_bytes() == data
    for name, entry in known.items():
        kept = release_file(out, name).read_bytes()
        assert entry["sha256"] == hashlib.sha256(kept).hexdigest()
        assert entry["bytes"] == len(kept)


# ---------------------------------------------------------------- what is claimed


def test_epsilon_for_every_client_and_round(
    done: Path, strict_json: Callable[[str], Any], all_finite: Callable[[Any], bool]
) -> None:
    lines = [strict_json(line) for line in (done / "metrics.jsonl").read_text().splitlines()]
    assert [[c["epsilon"] for c in line["clients"]] for line in lines] == [[4.0] * 3] * 3
    summary = strict_json((done / "summary.json").read_text())
    assert (summary["epsilon"], summary["delta"]) == (4.0, 1e-5)
    assert summary["privacy_unit"] == UNITS["example"]
    assert "not the models" in summary["privacy_covers"]
    assert summary["privacy_mechanism"].startswith("discrete Gaussian, noise multiplier ")
    assert "noised" in summary["uploads"][0]
    assert all_finite(summary)


def test_the_report_makes_the_claim(done: Path) -> None:
    page = (done / "report.html").read_text()
    assert "ε = 4" in page
    assert "Protects any one training example of a client: whether it was there or not." in page
    assert "Not differentially private" not in page


def test_the_ledger_says_what_it_cost(done: Path) -> None:
    no_secret_is_lost(done)
    assert [entry["client"] for entry in entries(done)] == IDS
    for entry in entries(done):
        assert (entry["round"], entry["kind"], entry["epsilon"]) == (0, "anchor", 4.0)
        assert entry["mechanism"].startswith("discrete Gaussian, noise multiplier 1.081")


# ---------------------------------------------------------------- what leaves


def test_all_uploads_are_equally_long(done: Path, config: Config) -> None:
    """Though the clients have unequal classes and counts."""
    summary = json.loads((done / "summary.json").read_text())
    assert len({tuple(client["class_counts"]) for client in summary["clients"]}) == 3
    sizes = {len(server_file(done, name).read_bytes()) for name in IDS}
    assert len(sizes) == 1
    travelled = [size + 1214 for size in sizes]  # in envelopes
    assert {client["upload_bytes"] for client in summary["clients"]} == set(travelled)
    lines = [json.loads(line) for line in (done / "metrics.jsonl").read_text().splitlines()]
    assert [line["clients"][0]["upload_bytes"] for line in lines] == [*travelled, 0, 0]
    # … nor does their length tell of the data set.
    mechanism = mechanism_of(config, 10)
    assert mechanism is not None
    assert sizes.pop() - 8 * mechanism.spec.size < 100 + 128


def test_the_server_sees_nothing_exact(done: Path, config: Config) -> None:
    assert {path.name for path in (done / "server").rglob("*") if path.is_file()} == {
        f"{name}.anchor.upload" for name in IDS
    }
    spec, anchor, about, people = parts(config)
    equal, noise = 0, []
    for client in people:
        with deterministic():
            features = one_by_one(anchor, client.images).numpy()
        exact = bounded_sums(spec, features, client.labels.numpy(), about)
        assert exact[: spec.classes].sum() > 0
        sent = decode_release(server_file(done, client.id).read_bytes(), size=spec.size)
        equal += int((sent == exact).sum())
        noise.append((sent - exact) / float(spec.sigma))
    assert equal <= 3, "noise of exactly zero is one in two million"
    spread = np.concatenate(noise)
    assert abs(spread.std() - 1) < 6 / (2 * spread.size) ** 0.5, "the noise is all of it"
    assert abs(spread.mean()) < 6 / spread.size**0.5


def test_what_is_published_is_a_function_of_the_releases(done: Path, config: Config) -> None:
    """Post-processing: nothing but the server's files and public numbers goes in."""
    spec, _, about, _ = parts(config)
    files = [server_file(done, name).read_bytes() for name in IDS]
    total = np.sum([decode_release(data, size=spec.size) for data in files], axis=0)
    expected = publish(estimate(spec, total, 3, about))
    assert (done / "statistics.safetensors").read_bytes() == expected


def test_the_same_settings_never_draw_the_same_noise(
    done: Path, config: Config, tmp_path: Path, quick: None
) -> None:
    run(config, out=tmp_path / "again")
    for name in IDS:
        assert (
            server_file(tmp_path / "again", name).read_bytes()
            != server_file(done, name).read_bytes()
        )
    assert (tmp_path / "again" / "config.toml").read_bytes() == (done / "config.toml").read_bytes()


@pytest.mark.parametrize("width", [12, 128])
def test_features_of_an_image_do_not_depend_on_the_others(width: int) -> None:
    """Not in the last bit: the sensitivity is that of exact sums of single examples."""
    anchor = Anchor(ImageShape(8, 1), width, 3)
    images = torch.rand(515, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    with deterministic():
        whole = one_by_one(anchor, images)
        for some in (slice(0, 1), slice(1, 3), slice(3, 10), slice(7, 263), slice(1, 515)):
            assert torch.equal(one_by_one(anchor, images[some]), whole[some])
        order = torch.randperm(515, generator=torch.Generator().manual_seed(1))
        assert torch.equal(one_by_one(anchor, images[order]), whole[order])
        assert torch.allclose(whole, in_chunks(anchor, images), atol=1e-5)
        assert one_by_one(anchor, images[:0]).shape == (0, width)


# ---------------------------------------------------------------- other settings


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize(
    ("tables", "epsilon"),
    [
        ({"privacy": {"epsilon": 0.001}}, 0.001),  # nothing but noise
        ({"privacy": {"epsilon": 500.0}}, 500.0),
        ({"privacy": {"epsilon": 8.0, "population": 10**5, "delta": 1e-6}}, 8.0),  # with moments
        ({"method": {"moments": "diagonal"}, "clients": {"cohort": 0.34}}, 4.0),
        ({"clients": {"count": 1}, "privacy": {"clip": 0.2}}, 4.0),
    ],
)
def test_any_budget_ends_well(
    tiny: Tiny,
    tmp_path: Path,
    all_finite: Callable[[Any], bool],
    tables: dict[str, Any],
    epsilon: float,
) -> None:
    result = run(private(tiny, **tables), out=tmp_path / "run")
    assert result.summary["epsilon"] == epsilon
    assert all_finite(result.summary)
    world = published((tmp_path / "run" / "statistics.safetensors").read_bytes())
    assert world.present.any()
    assert (world.std > 0).all()
    no_secret_is_lost(tmp_path / "run")
    assert len(entries(tmp_path / "run")) == len(result.summary["clients"])


def test_without_a_folder_the_claim_is_the_same(config: Config) -> None:
    summary = run_without_trace(config, load_dataset(config.data))
    assert (summary["epsilon"], summary["privacy_unit"]) == (4.0, UNITS["example"])


def test_a_run_that_claims_nothing_is_as_it_was(tiny: Tiny, tmp_path: Path, quick: None) -> None:
    summary = run(tiny(), out=tmp_path / "run").summary
    assert (summary["epsilon"], summary["delta"], summary["privacy_unit"]) == (None,) * 3
    assert not list(tmp_path.rglob("*.release"))
    assert {(entry["mechanism"], entry["epsilon"]) for entry in entries(tmp_path / "run")} == {
        (None, None)
    }
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert all(c["epsilon"] is None for line in lines for c in json.loads(line)["clients"])


# ---------------------------------------------------------------- the budget


class CutAfterOne(SilentProgress):
    def advance(self, note: str = "") -> None:
        raise Cut


@pytest.fixture(scope="module")
def unsent(config: Config, tmp_path_factory: pytest.TempPathFactory, quickly: Quickly) -> Path:
    """A run that ended in the middle of its releases: one was opened, no round is done."""
    out = tmp_path_factory.mktemp("unsent") / "run"
    from fedvtc_edge import wire

    opened, seen = wire.decode_release, []

    def cut_at_the_second(data: bytes, *, size: int, context: Context) -> Any:
        seen.append(data)
        # The entries of the whole batch were there before the server opened anything.
        assert entries(out)[len(seen) - 1]["sha256"] == hashlib.sha256(data).hexdigest()
        assert len(entries(out)) == len(IDS)
        if len(seen) == 2:
            raise Cut
        return opened(data, size=size, context=context)

    with quickly(), pytest.MonkeyPatch.context() as patched:
        patched.setattr(wire, "decode_release", cut_at_the_second)
        with pytest.raises(Cut):
            run(config, out=out)
    return out


@pytest.fixture
def stopped(unsent: Path, tmp_path: Path, quick: None) -> Path:
    return shutil.copytree(unsent, tmp_path / "run")


def test_a_resumed_run_sends_the_same_bytes(stopped: Path) -> None:
    before = {name: release_file(stopped, name).read_bytes() for name in IDS}
    result = resume(stopped)
    assert result.summary["epsilon"] == 4.0
    for name, data in before.items():
        assert server_file(stopped, name).read_bytes() == data
    assert [entry["client"] for entry in entries(stopped)] == IDS
    no_secret_is_lost(stopped)


@pytest.mark.parametrize("change", ["lost", "other", "damaged"])
def test_a_second_draw_is_refused_before_anything_is_sent(
    stopped: Path, change: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = release_file(stopped, IDS[0])
    if change == "lost":
        file.unlink()
    else:
        file.write_bytes(release_file(stopped, IDS[1]).read_bytes() if change == "other" else b"?")
    sent = {path: path.read_bytes() for path in (stopped / "server").rglob("*") if path.is_file()}
    ledger = (stopped / "ledger.json").read_bytes()

    def never(*_: Any, **__: Any) -> None:
        raise AssertionError("opened")

    monkeypatch.setattr("fedvtc_edge.wire.decode_release", never)
    with pytest.raises(
        PrivacyError, match=r"client-00 has released 1 times, epsilon 4 is spent"
    ) as e:
        resume(stopped)
    assert "1 release fits the budget" in e.value.hint
    assert (stopped / "ledger.json").read_bytes() == ledger
    assert {p: p.read_bytes() for p in (stopped / "server").rglob("*") if p.is_file()} == sent


def test_the_command_line_refuses_it_too(stopped: Path, call: Callable[..., Any]) -> None:
    release_file(stopped, IDS[0]).unlink()
    call("run", "--resume", stopped, "--quiet").refuses("epsilon 4 is spent", "same bytes")


def test_after_a_round_nothing_is_drawn_again(
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quick: None
) -> None:
    out = tmp_path / "run"
    with pytest.raises(Cut):
        run(config, out=out, progress=CutAfterOne())
    before = {name: server_file(out, name).read_bytes() for name in IDS}

    def never(*_: Any) -> None:
        raise AssertionError("drawn")

    monkeypatch.setattr("fedvtc_edge.privacy.mechanism.release", never)
    summary = resume(out).summary
    assert summary["epsilon"] == 4.0
    assert {name: server_file(out, name).read_bytes() for name in IDS} == before
    no_secret_is_lost(out)


# ---------------------------------------------------------------- a real end

MOMENTS = [
    ("clients/client-00/anchor.release", "before"),  # drawn, and lost
    ("clients/client-00/anchor.release", "after"),  # kept, not in the ledger
    ("clients/client-02/anchor.release", "after"),  # all of the batch are kept
    ("ledger.json", "before"),
    ("ledger.json", "after"),  # all of it in the ledger, not sent
    ("server/round-0000/client-00.anchor", "before"),
    ("server/round-0000/client-00.anchor", "after"),  # sent, never opened
    ("server/round-0000/client-02.anchor", "after"),  # all sent, and no checkpoint
    ("checkpoint/round-000001", "before"),
    ("checkpoint/round-000002", "before"),
]

KILLED = """
import json, os, shutil, signal, sys
from pathlib import Path
import fedvtc_edge.report
import torch._dynamo  # as all else imported once, for all children
from fedvtc_edge.config import load_config
from fedvtc_edge.errors import RunError
from fedvtc_edge.privacy import ledger
from fedvtc_edge.workflows.run import resume, run

file, out, moments = Path(sys.argv[1]), Path(sys.argv[2]), json.loads(sys.argv[3])
fedvtc_edge.report.render = lambda directory: directory
try:
    run(load_config(file), out=file)
except RunError:
    pass  # no folder; but noise is calibrated once, for all children

def work(first, place, when):
    def watched(write, here):
        if here and when == "before":
            os.kill(os.getpid(), signal.SIGKILL)
        write()
        if here:
            os.kill(os.getpid(), signal.SIGKILL)
    replace, append = os.replace, ledger.replace_tail
    def renamed(source, target):
        name = Path(target).as_posix()
        here = place is not None and place in name and not name.endswith("ledger.json")
        watched(lambda: replace(source, target), here)
    def appended(path, *rest, **more):
        watched(lambda: append(path, *rest, **more), place == "ledger.json")
    os.replace, ledger.replace_tail = renamed, appended
    run(load_config(file), out=out) if first else resume(out)

for number, (place, when) in enumerate([*moments, (None, None)]):
    child = os.fork()
    if child == 0:
        work(number == 0, place, when)
        os._exit(0)
    status = os.waitpid(child, 0)[1]
    print(os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status))
    shutil.copytree(out, f"{out}-{number}")
"""


def killed_at(moments: list[tuple[str, str]], config: Config, tmp_path: Path) -> Path:
    """A run that was killed at each moment and taken up again, finished; copies are beside it."""
    file, out = tmp_path / "tiny.toml", tmp_path / "run"
    file.write_text(tomli_w.dumps(config.model_dump(mode="json", exclude_none=True)))
    script = tmp_path / "killed.py"
    script.write_text(KILLED)
    words = [sys.executable, str(script), str(file), str(out), json.dumps(moments)]
    paths = os.pathsep.join(
        [str(Path(__file__).parents[2]), *filter(None, [os.environ.get("PYTHONPATH")])]
    )
    ended = subprocess.run(
        words, capture_output=True, text=True, cwd=tmp_path, env=os.environ | {"PYTHONPATH": paths}
    )
    assert ended.stdout.split() == ["9"] * len(moments) + ["0"], ended.stderr
    assert not list(out.rglob(".*")), "torn files are swept away"
    return out


def never_drawn_again(out: Path, pattern: str, moments: int) -> dict[str, bytes]:
    """What was kept under ``pattern`` at any moment: one content per name."""
    kept: dict[str, bytes] = {}
    for number in range(moments + 1):
        left = Path(f"{out}-{number}")
        for path in left.glob(pattern):
            name = path.relative_to(left).as_posix()
            assert kept.setdefault(name, path.read_bytes()) == path.read_bytes(), "drawn again"
    return kept


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="signals of POSIX")
def test_kill_minus_nine_around_a_release(config: Config, tmp_path: Path) -> None:
    """One run, killed again and again: what was once kept is what is sent, and is counted."""
    out = killed_at(MOMENTS, config, tmp_path)
    kept: dict[str, bytes] = {}
    counted: list[int] = []
    for number in range(len(MOMENTS) + 1):
        left = Path(f"{out}-{number}")
        no_secret_is_lost(left)
        counted.append(len(entries(left)))
        for name in IDS:
            if release_file(left, name).exists():
                data = release_file(left, name).read_bytes()
                assert kept.setdefault(name, data) == data, "drawn again"
    assert counted == [0, 0, 0, 0, 3, 3, 3, 3, 3, 3, 3]
    assert len(kept) == 3
    assert json.loads((out / "summary.json").read_text())["epsilon"] == 4.0


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="signals of POSIX")
def test_kill_minus_nine_under_dp_sgd(tiny: Tiny, tmp_path: Path) -> None:
    """Keys and releases are drawn once; a step repeated with its own noise is one step."""
    moments = [
        ("clients/client-00/noise.key", "before"),
        ("clients/client-01/noise.key", "after"),
        ("clients/client-00/features-0001.release", "after"),
        ("ledger.json", "after"),
        ("server/round-0001/client-02.features", "after"),
        ("checkpoint/round-000001", "before"),
        ("clients/client-01/features-0002.release", "after"),
        ("checkpoint/round-000002", "before"),
        ("checkpoint/round-000003", "after"),
    ]
    privacy = {"mode": "example", "epsilon": 8.0}
    config = private(tiny, privacy=privacy, method={"share": "features"})
    out = killed_at(moments, config, tmp_path)
    releases = never_drawn_again(out, "clients/*/*.release", len(moments))
    assert len(releases) == 3 * 3
    assert len(never_drawn_again(out, "clients/*/noise.key", len(moments))) == 3
    assert not list(out.glob("clients/*/noise.key")), "a finished run keeps no key"
    assert [(e["round"], e["client"]) for e in entries(out)] == [
        (number, name) for number in (1, 2, 3) for name in IDS
    ]
    assert 7.7 <= json.loads((out / "summary.json").read_text())["epsilon"] <= 8.0


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="signals of POSIX")
def test_kill_minus_nine_of_a_server_that_noises_the_sum(tiny: Tiny, tmp_path: Path) -> None:
    """The noised sum is drawn once a round, and in the ledger before it is published."""
    moments = [
        ("server/round-0001/client-02.features", "after"),
        ("server/features-0001.release", "before"),  # drawn, and lost
        ("server/features-0001.release", "after"),
        ("server/round-0001/server.features", "before"),  # in the ledger, not published
        ("server/round-0001/server.features", "after"),
        ("checkpoint/round-000001", "before"),
        ("server/features-0002.release", "after"),
        ("checkpoint/round-000002", "before"),
    ]
    privacy = {"mode": "client", "epsilon": 8.0}
    config = private(tiny, privacy=privacy, method={"share": "features"})
    out = killed_at(moments, config, tmp_path)
    kept = never_drawn_again(out, "server/*.release", len(moments))
    assert len(kept) == 3
    spent = [entry for entry in entries(out) if entry["client"] == "server"]
    assert [entry["round"] for entry in spent] == [1, 2, 3]
    for entry, data in zip(spent, kept.values(), strict=True):
        assert entry["sha256"] == hashlib.sha256(data).hexdigest()
    assert spent[-1]["epsilon"] == json.loads((out / "summary.json").read_text())["epsilon"]


def test_a_class_list_that_labels_tell_is_refused(tiny: Any, tmp_path: Path) -> None:
    path, x, y = tmp_path / "unnamed.npz", np.zeros((60, 8, 8), np.uint8), np.arange(60) % 3
    np.savez(path, x_train=x, y_train=y, x_test=x, y_test=y)
    config = tiny(data={"name": str(path)}, privacy={"mode": "anchored", "population": 60})
    with pytest.raises(DataError, match="must be public"):
        run(config, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()
