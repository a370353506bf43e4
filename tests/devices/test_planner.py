"""Plans: what is counted, what fits, what is chosen, who trains what, and what is said of it."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fedvtc_edge.config import Config
from fedvtc_edge.devices import DeviceProfile, Figure, baselines, plan
from fedvtc_edge.devices.footprint import MB, Footprint, needs, needs_bare, needs_bundle
from fedvtc_edge.devices.planner import (
    DevicePlan,
    PlanRow,
    fleet,
    largest_batch,
    notes,
    smaller,
)
from fedvtc_edge.errors import ConfigError, DataError
from fedvtc_edge.models import ImageShape, architectures, register
from fedvtc_edge.plugins import ARCHITECTURES
from fedvtc_edge.training.distillation import pool_size
from fedvtc_edge.training.finetuning import last_steps

SHAPE, CLASSES = ImageShape(8, 1), 10
IDS = ["a", "b", "c", "d"]
Tiny = Callable[..., Config]

PROFILE = """
name = "box"
title = "A box"
arch = "x86_64"
runtime = "{runtime}"
cores = {{ value = 1, kind = "measured", source = "this test" }}
memory_total_mb = {{ value = {total}, kind = "measured", source = "this test" }}
"""


@pytest.fixture
def box(tmp_path: Path) -> Callable[..., DeviceProfile]:
    def make(total: float, runtime: str = "onnxruntime") -> DeviceProfile:
        path = tmp_path / f"box-{total}.toml"
        path.write_text(PROFILE.format(total=total, runtime=runtime))
        return DeviceProfile.load(path)

    return make


@pytest.fixture
def config(tiny: Callable[..., Config], monkeypatch: pytest.MonkeyPatch) -> Config:
    """Two quick architectures, and no others registered."""
    bodies = {name: ARCHITECTURES._known[name] for name in ("lenet", "mlp")}
    monkeypatch.setattr(ARCHITECTURES, "_known", bodies)
    return tiny(clients={"architectures": ["mlp"]})


def need(config: Config, name: str = "mlp", **words: Any) -> float:
    words = {"batch": config.training.batch, **words}
    return needs(name, config, SHAPE, CLASSES, **words).total / MB


# ---------------------------------------------------------------- footprints


def test_static_parts_are_counted_from_parameters(config: Config) -> None:
    found = needs("mlp", config, SHAPE, CLASSES, batch=8, samples=100)
    layers = [(64, 256), (256, 128), (128, 8), (8, CLASSES)]
    own = 4 * sum((rows + 1) * columns for rows, columns in layers)
    # The decoder is the smaller of the two: in turn, only the larger's moments ever live.
    assert found.gradients == own
    assert found.optimiser == 2 * own
    assert found.weights > own
    settings = config.training.model_copy(update={"batch": 8})
    pictures = pool_size(last_steps(CLASSES, settings), 64, settings)
    # Images, and the pictures that a teacher labels: a byte a pixel, and their scores.
    assert found.data == 100 * 64 * 4 + pictures * (64 + 4 * CLASSES)
    assert found.baseline == baselines.torch_mb("x86_64").value * MB
    assert found.total == found.working + found.baseline
    assert found.working == (
        found.weights + found.gradients + found.optimiser + found.activations + found.data
    )


def test_more_needs_more(config: Config) -> None:
    assert need(config, batch=8) < need(config, batch=32) < need(config, batch=128)
    assert need(config) < need(config, mode="joint")
    assert need(config, samples=10**6) == pytest.approx(need(config) + 10**6 * 64 * 4 / MB)
    local = config.replace(method={"name": "local"})
    assert need(local) < need(config)


def test_a_bundle_needs_no_torch_and_no_more_than_a_chunk(config: Config) -> None:
    few, chunk, many = (
        needs_bundle("lenet", config, SHAPE, CLASSES, use="infer", batch=batch)
        for batch in (1, 32, 64)
    )
    assert few.activations < chunk.activations == many.activations
    assert many.total - chunk.total == many.data - chunk.data
    assert chunk.gradients == chunk.optimiser == 0
    assert chunk.baseline < baselines.torch_mb("x86_64").value * MB / 3
    local = config.replace(method={"name": "local"})
    with pytest.raises(ConfigError, match="no synthesiser"):
        needs_bundle("mlp", local, SHAPE, CLASSES, use="synthesise", batch=1)


def test_bare_metal_holds_weights_and_activations_and_nothing_else(config: Config) -> None:
    whole, small = (needs_bare("mlp", config, SHAPE, CLASSES, weight_bytes=size) for size in (4, 1))
    assert whole.weights == 4 * small.weights
    assert whole.activations == small.activations > 0
    assert whole.baseline == 0


@pytest.mark.parametrize("arch", ["aarch64", "armv7l", "riscv64"])
def test_what_was_not_measured_says_so(arch: str) -> None:
    for figure in (
        baselines.torch_mb(arch),
        baselines.torch_mb(arch, torchvision=True),
        baselines.onnxruntime_mb(arch),
    ):
        assert figure.kind == "assumed"
    assert (
        baselines.torch_mb("x86_64").kind == baselines.onnxruntime_mb("x86_64").kind == "measured"
    )


def test_networks_of_torchvision_bring_its_runtime(tiny: Callable[..., Config]) -> None:
    bases = {
        name: needs(name, tiny(), SHAPE, CLASSES, batch=8).baseline for name in ("mlp", "resnet18")
    }
    assert bases["mlp"] == baselines.torch_mb("x86_64").value * MB
    assert bases["resnet18"] == baselines.torch_mb("x86_64", torchvision=True).value * MB
    assert bases["resnet18"] > bases["mlp"]


# ---------------------------------------------------------------- smaller


def test_what_fits_stays(config: Config, box: Callable[..., DeviceProfile]) -> None:
    wide = box(4096)
    for name in architectures():
        assert smaller(config, wide, name, SHAPE, CLASSES) == name


def test_what_does_not_fit_gives_way_to_the_largest_that_does(
    config: Config, box: Callable[..., DeviceProfile]
) -> None:
    from torch import nn

    register("giant")(lambda shape: nn.Sequential(nn.Flatten(), nn.LazyLinear(20_000)))
    assert need(config, "lenet") < need(config, "giant")
    tight = box(int(max(need(config, "lenet"), need(config, "mlp"))) + 1)
    assert smaller(config, tight, "giant", SHAPE, CLASSES) == "mlp"  # the settings' own first
    other = config.replace(clients={"architectures": ["giant"]})
    assert smaller(other, tight, "giant", SHAPE, CLASSES) == "mlp"  # more weights than lenet
    assert smaller(config, box(100), "giant", SHAPE, CLASSES) is None


def test_the_last_byte_decides(config: Config, box: Callable[..., DeviceProfile]) -> None:
    exact = need(config)
    assert smaller(config, box(exact), "mlp", SHAPE, CLASSES) == "mlp"
    config = config.replace(clients={"architectures": ["mlp"]})
    less = smaller(config, box(exact - 0.01), "mlp", SHAPE, CLASSES)
    assert less != "mlp"


def test_usable_memory_counts_where_it_is_known(config: Config) -> None:
    zero = DeviceProfile.load("rpi-zero-2w")
    assert zero.memory_usable_mb is not None
    assert need(config, arch=zero.arch) < zero.memory_total_mb.value
    assert smaller(config, zero, "mlp", SHAPE, CLASSES) is None


def test_nothing_trains_without_a_runtime_and_nothing_unknown_is_planned(
    config: Config, box: Callable[..., DeviceProfile]
) -> None:
    assert smaller(config, box(4096, "none"), "mlp", SHAPE, CLASSES) is None
    with pytest.raises(ConfigError, match="unknown architecture 'lenett'"):
        smaller(config, box(4096), "lenett", SHAPE, CLASSES)


def test_the_largest_batch_is_the_last_that_fits(
    config: Config, box: Callable[..., DeviceProfile]
) -> None:
    device = box(need(config, batch=77))
    assert largest_batch("mlp", config, device, SHAPE, CLASSES) == 77
    assert largest_batch("mlp", config, box(100), SHAPE, CLASSES) is None


# ---------------------------------------------------------------- plans


def test_every_combination_has_its_row(config: Config, box: Callable[..., DeviceProfile]) -> None:
    made = plan(config, box(4096))
    found = {(row.architecture, row.batch, row.what, row.mode) for row in made.rows}
    assert found == {
        (name, batch, what, mode)
        for name in ("lenet", "mlp")
        for batch in (8, 32, 128)
        for what, mode in (
            ("train", "alternate"),
            ("train", "joint"),
            ("infer", ""),
            ("synthesise", ""),
        )
    }
    assert made.rows[0].architecture == "mlp"  # the settings' own come first
    assert all(row.fits for row in made.rows)
    assert made.largest is not None
    assert (made.largest.architecture, made.largest.batch) == ("mlp", 128)
    assert made.verdict[0].startswith("largest that fits: train mlp, batch 128, alternate (")
    assert made.warning == ""
    assert plan(config, box(4096)) == made


def test_half_a_gigabyte_cannot_train_and_can_run_the_bundle(config: Config) -> None:
    made = plan(config, DeviceProfile.load("rpi-zero-2w"))
    (line,) = made.verdict
    assert line.startswith("cannot train with torch (needs ")
    assert "of 300 MB); can run the bundle (" in line
    assert made.document()["largest"] is None


def test_too_large_a_batch_is_told_the_largest(
    config: Config, box: Callable[..., DeviceProfile]
) -> None:
    device = box(need(config, "mlp", batch=100, samples=200))
    made = plan(config.replace(training={"batch": 4096}), device)
    assert made.largest is None
    assert made.limit is not None
    assert 2 <= made.limit[0] < 4096
    assert made.warning == (
        f"training.batch = 4096 fits no architecture; the largest that does is "
        f"{made.limit[0]} ({made.limit[1]})"
    )
    assert made.warning in made.document()["verdict"]


def test_a_smaller_architecture_with_the_settings_batch_is_named() -> None:
    def row(name: str, batch: int, weights: int, activations: int) -> PlanRow:
        size = Footprint(weights * MB, 0, 0, activations * MB, 0, 100 * MB)
        return PlanRow(name, batch, "train", "alternate", size, size.total <= 200 * MB)

    rows = (row("big", 8, 50, 40), row("big", 32, 50, 160), row("small", 32, 5, 40))
    memory = Figure(value=200, kind="measured", source="this test")
    made = DevicePlan("box", "onnxruntime", memory, SHAPE, CLASSES, 9, 32, rows)
    assert made.verdict == (
        "largest that fits: train big, batch 8, alternate (190 of 200 MB)",
        "at training.batch = 32: train small (145 of 200 MB)",
    )


def test_a_microcontroller_gets_a_verdict_only(
    config: Config, box: Callable[..., DeviceProfile]
) -> None:
    made = plan(config, box(0.25, "none"))
    assert {(row.what, row.mode) for row in made.rows} == {("infer", "float32"), ("infer", "int8")}
    (line,) = made.verdict
    assert line.startswith("nothing of ours runs on box; weights and activations would fit of ")
    (line,) = plan(config, box(0.001, "none")).verdict
    assert "no network would fit" in line


def test_data_are_looked_at_and_the_largest_client_counts(
    config: Config, box: Callable[..., DeviceProfile], archive: Callable[..., str]
) -> None:
    name = archive([0, 1, 2] * 20, size=12, channels=3)
    made = plan(
        config.replace(data={"name": name, "partition": "iid", "limit": 0}), box(4096), batches=[4]
    )
    assert (made.shape, made.classes, made.samples) == (ImageShape(12, 3), 3, 20)
    assert {row.batch for row in made.rows} == {4}
    with pytest.raises(DataError, match="unknown data set 'digitz'"):
        plan(config.replace(data={"name": "digitz"}), box(4096))


# ---------------------------------------------------------------- the command


def test_one_document(config: Config, call: Any, strict_json: Any, tmp_path: Path) -> None:
    (tmp_path / "c.toml").write_text(
        '[method]\nlatent = 8\nanchor = 12\n[clients]\narchitectures = ["mlp"]\n'
    )
    answer = call("plan", "c.toml", "--device", "rpi4", "--batch", "8", "--json")
    assert (answer.code, answer.err) == (0, "")
    document = strict_json(answer.out)
    assert (document["schema"], document["kind"]) == (1, "modelled")
    parts = ("weights", "gradients", "optimiser", "activations", "data", "baseline")
    for row in document["rows"]:
        assert row["total"] == sum(row[part] for part in parts)
        assert row["fits"] == (row["total"] <= document["memory_mb"] * MB)


def test_people_get_a_table_and_a_verdict(config: Config, call: Any) -> None:
    only = ("--set", 'clients.architectures=["mlp"]', "--set", "method.latent=8")
    answer = call("plan", "--device", "rpi-zero-2w", *only, "--batch", "8")
    lines = answer.out.splitlines()
    assert lines[0] == "rpi-zero-2w: ~300 MB; images 8x8x1, 10 classes, 435 samples at most"
    assert lines[2].split()[:4] == ["architecture", "batch", "what", "mode"]
    assert lines[-1].startswith("cannot train with torch")
    assert answer.code == 0


def test_a_users_mistakes_are_named(call: Any, tmp_path: Path) -> None:
    call("plan", "--device", "rpi44").refuses("unknown device 'rpi44'", "did you mean rpi4?")
    call("plan", "--device", "rpi4", "--batch", "1").refuses("batch 1: expected 2 to 65536")
    call("plan", "--device", "rpi4", "--set", "training.batch=x").refuses("training.batch")
    call("plan", "--device", "rpi4", "--set", 'clients.architectures=["lenett"]').refuses(
        "unknown architecture 'lenett'", "did you mean lenet?"
    )
    path = tmp_path / "bad.toml"
    path.write_text(PROFILE.format(total=1, runtime="none").replace("memory_total_mb", "memori"))
    call("plan", "--device", path).refuses("memori")


def test_profiles_are_listed_without_torch() -> None:
    code = (
        "import sys; from fedvtc_edge.devices import profile_names; profile_names(); "
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_what_the_figures_leave_out_is_said(
    config: Config, box: Callable[..., DeviceProfile]
) -> None:
    made = plan(config.replace(privacy={"mode": "example"}), box(4096), batches=[8])
    assert made.lines[-1].startswith("privacy.mode = example: ")
    assert plan(config, box(4096), batches=[8]).lines == made.lines[:-1]


# ---------------------------------------------------------------- what clients are given


def test_without_devices_everybody_trains_what_the_settings_say(tiny: Tiny) -> None:
    assignments = fleet(tiny(), IDS, SHAPE, CLASSES)
    assert [one.architecture for one in assignments] == ["mlp", "lenet"] * 2
    assert all(one.profile is None for one in assignments)
    assert notes(assignments) == []


def test_a_device_that_trains_nothing_sits_out(tiny: Tiny) -> None:
    config = tiny(clients={"devices": ["rpi5", "stm32h7", "rpi-zero-2w"]})
    assignments = fleet(config, IDS, SHAPE, CLASSES)
    assert [one.architecture for one in assignments] == ["mlp", None, None, "lenet"]
    assert notes(assignments) == [
        "b sits out, nothing that trains runs on stm32h7",
        "c sits out, no architecture can be trained in the memory of rpi-zero-2w",
    ]
    many = fleet(config, [f"k{index}" for index in range(15)], SHAPE, CLASSES)
    assert notes(many)[0] == "k1, k4, k7 and 2 more sit out, nothing that trains runs on stm32h7"


def test_what_does_not_fit_makes_way_for_the_planners_choice(tiny: Tiny, tmp_path: Path) -> None:
    config = tiny(clients={"architectures": ["resnet18", "mlp"]})
    large, small = (
        needs(name, config, SHAPE, CLASSES, batch=config.training.batch).total / 2**20
        for name in ("resnet18", "mlp")
    )
    assert small < large
    path = tmp_path / "small.toml"
    path.write_text(
        'name = "small"\ntitle = "small"\narch = "x86_64"\nruntime = "onnxruntime"\n'
        'cores = { value = 1, kind = "assumed", source = "a test" }\n'
        f'memory_total_mb = {{ value = {(small + large) / 2}, kind = "assumed", source = "x" }}\n'
    )
    assignments = fleet(config.replace(clients={"devices": [str(path)]}), IDS[:2], SHAPE, CLASSES)
    assert [one.architecture for one in assignments] == ["mlp", "mlp"]
    assert notes(assignments) == [
        "a trains mlp in place of resnet18, which does not fit the memory of small"
    ]


def test_unknown_devices_are_refused(tiny: Tiny) -> None:
    with pytest.raises(ConfigError, match="unknown device 'rpi6'"):
        fleet(tiny(clients={"devices": ["rpi6"]}), IDS, SHAPE, CLASSES)
