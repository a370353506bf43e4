"""Device profiles: the shipped ones keep their promises, a bad file is refused by name."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedvtc_edge.config import MAX_CONFIG_BYTES
from fedvtc_edge.devices import DeviceProfile, Figure, ReferenceLatency, Share, profile_names
from fedvtc_edge.errors import ConfigError

NAMES = (
    "coral-dev-board",
    "esp32-s3",
    "jetson-nano",
    "jetson-orin-nano",
    "phone-midrange",
    "rpi-zero-2w",
    "rpi4",
    "rpi5",
    "stm32h7",
    "x86-gateway",
)

MINIMAL = """
name = "mine"
title = "My box"
arch = "x86_64"
runtime = "onnxruntime"
cores = { value = 2, kind = "measured", source = "lscpu, 2026-01-01" }
memory_total_mb = { value = 512, kind = "measured", source = "free, 2026-01-01" }
"""


def mine(tmp_path: Path, text: str = MINIMAL) -> Path:
    path = tmp_path / "mine.toml"
    path.write_text(text)
    return path


def test_the_shipped_names() -> None:
    assert profile_names() == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_a_shipped_profile_is_whole(name: str) -> None:
    profile = DeviceProfile.load(name)
    assert profile.name == name
    assert list(profile.figures)[:2] == ["cores", "memory_total_mb"]
    for key, figure in profile.figures.items():
        assert len(figure.source) >= 10, key
    for figure in (*profile.figures.values(), *profile.anchors):
        assert figure.kind != "measured", "nobody of this project has measured on the device"


@pytest.mark.parametrize("name", NAMES)
def test_where_onnxruntime_runs_the_planner_finds_what_it_needs(name: str) -> None:
    profile = DeviceProfile.load(name)
    if profile.runtime == "none":
        assert "onnxruntime does not run" in profile.note
        assert profile.anchors == ()
        assert profile.memory_total_mb.value <= 1
        return
    everything = {key for key in DeviceProfile.model_fields if key in profile.figures}
    assert {"memory_usable_mb", "fp32_gflops", "efficiency", "memory_gbps"} <= everything
    assert {"network_up_mbps", "network_down_mbps", "availability", "dropout"} <= everything
    assert {"node_overhead_us", "deadline_s"} <= everything


@pytest.mark.parametrize(
    ("name", "cores", "clock_ghz", "flop_per_cycle"),
    [
        ("rpi5", 4, 2.4, 16),
        ("rpi4", 4, 1.8, 8),
        ("rpi-zero-2w", 4, 1.0, 8),
        ("jetson-nano", 4, 1.43, 8),
        ("jetson-orin-nano", 6, 1.5, 16),
        ("coral-dev-board", 4, 1.5, 8),
        ("stm32h7", 1, 0.48, 2),
    ],
)
def test_peaks_are_cores_times_clock_times_width(
    name: str, cores: int, clock_ghz: float, flop_per_cycle: int
) -> None:
    peak = DeviceProfile.load(name).fp32_gflops
    assert peak is not None
    assert peak.value == pytest.approx(cores * clock_ghz * flop_per_cycle, rel=0.05)


def test_figures_of_the_device_table() -> None:
    pi4 = DeviceProfile.load("rpi4")
    assert pi4.memory_gbps is not None
    assert pi4.memory_gbps.value == 2.2
    times = [(anchor.model, anchor.threads, anchor.ms) for anchor in pi4.anchors]
    assert times == [
        ("mobilenet_v2_224", 1, 93),
        ("mobilenet_v2_224", 4, 62),
        ("resnet18_224", 1, 191),
        ("resnet18_224", 4, 122),
    ]


def test_an_unmeasured_class_of_device_says_so() -> None:
    gateway = DeviceProfile.load("x86-gateway")
    assert {figure.kind for figure in gateway.figures.values()} == {"assumed"}


def test_a_users_own_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = mine(tmp_path)
    profile = DeviceProfile.load(path)
    assert profile == DeviceProfile.load(str(path))
    assert profile.cores.value == 2
    assert profile.fp32_gflops is None, "unknown is absent, never a guess"
    assert list(profile.figures) == ["cores", "memory_total_mb"]
    monkeypatch.chdir(tmp_path)
    assert DeviceProfile.load("mine.toml") == profile


def test_profiles_are_frozen() -> None:
    with pytest.raises(ValueError, match="frozen"):
        DeviceProfile.load("rpi4").name = "rpi5"  # type: ignore[misc]


@pytest.mark.parametrize(
    ("name", "hint"),
    [("rpi6", "did you mean rpi5?"), ("jetson", "did you mean jetson-nano?"), ("zzz", "rpi4, ")],
)
def test_unknown_names_get_the_nearest(name: str, hint: str) -> None:
    with pytest.raises(ConfigError, match=f"unknown device '{name}'") as caught:
        DeviceProfile.load(name)
    assert hint in caught.value.hint


def test_a_name_cannot_leave_the_folder() -> None:
    with pytest.raises(ConfigError, match="cannot read"):
        DeviceProfile.load("../profiles/missing")


@pytest.mark.parametrize(
    ("change", "message", "hint"),
    [
        ('speed = "fast"', "unknown key speed", "valid keys: name,"),
        ("memory_usabel_mb = 1", "memory_usabel_mb", "did you mean memory_usable_mb?"),
        ("fp32_gflops = 5", "fp32_gflops = 5: expected a table", "kind ="),
        (
            'fp32_gflops = { value = 5, kind = "assumed" }',
            "fp32_gflops.source is missing",
            "source =",
        ),
        (
            'fp32_gflops = { value = 5, kind = "guess", source = "x" }',
            "fp32_gflops.kind = 'guess': expected 'published', 'measured' or 'assumed'",
            "kind =",
        ),
        (
            'fp32_gflops = { value = 5, kind = "assumed", source = "x", unit = "s" }',
            "unknown key fp32_gflops.unit",
            "valid keys: value, kind, source",
        ),
        ('dropout = { value = 1.5, kind = "assumed", source = "x" }', "dropout.value", "value ="),
        ('fp32_gflops = { value = 0, kind = "assumed", source = "x" }', "greater than 0", "value"),
        (
            'deadline_s = { value = -1, kind = "assumed", source = "x" }',
            "deadline_s.value = -1: expected greater than 0",
            "value =",
        ),
        (
            'deadline_s = { kind = "assumed", source = "x" }',
            "deadline_s.value is missing",
            "value =",
        ),
        ("deadline_s = 600", "deadline_s = 600: expected a table", "value = 4"),
        ('fp32_gflops = { value = inf, kind = "assumed", source = "x" }', "finite", "value"),
        ('fp32_gflops = { value = true, kind = "assumed", source = "x" }', "number", "value"),
        (
            'memory_usable_mb = { value = 513, kind = "assumed", source = "x" }',
            "memory_usable_mb: expected at most memory_total_mb",
            "value",
        ),
        (
            '[[anchors]]\nmodel = "m"\nruntime = "r"\nms = 1\nkind = "assumed"\nthread = 2',
            "unknown key anchors.0.thread",
            "did you mean threads?",
        ),
    ],
)
def test_a_bad_file_is_refused_by_key(tmp_path: Path, change: str, message: str, hint: str) -> None:
    with pytest.raises(ConfigError) as caught:
        DeviceProfile.load(mine(tmp_path, MINIMAL + change + "\n"))
    assert "mine.toml" in str(caught.value)
    assert message in str(caught.value)
    assert hint in caught.value.hint


@pytest.mark.parametrize("name", NAMES)
def test_a_written_profile_is_read_back(name: str, tmp_path: Path) -> None:
    profile = DeviceProfile.load(name)
    assert DeviceProfile.load(mine(tmp_path, profile.to_toml())) == profile


texts = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=40)
numbers = st.floats(1e-300, 1e9, exclude_min=True)


@settings(max_examples=100, deadline=None)
@given(title=texts, note=texts | st.just(""), source=texts, value=numbers, ms=st.floats(1e-9, 1e7))
def test_any_text_and_number_is_read_back(
    tmp_path_factory: pytest.TempPathFactory,
    title: str,
    note: str,
    source: str,
    value: float,
    ms: float,
) -> None:
    figure = Figure(value=value, kind="measured", source=source)
    profile = DeviceProfile(
        name="mine",
        title=title,
        arch="x86_64",
        runtime="onnxruntime",
        note=note,
        cores=Figure(value=2, kind="assumed", source=source),
        memory_total_mb=figure,
        deadline_s=figure,
        dropout=Share(value=0, kind="assumed", source=source),
        anchors=(ReferenceLatency(model=title, runtime="r", ms=ms, kind="assumed", source=source),)
        * 2,
    )
    path = tmp_path_factory.mktemp("written") / "mine.toml"
    path.write_bytes(profile.to_toml().encode())
    assert DeviceProfile.load(path) == profile


def test_half_a_core_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="whole number"):
        DeviceProfile.load(mine(tmp_path, MINIMAL.replace("value = 2", "value = 2.5")))


def test_every_key_is_documented() -> None:
    text = (Path(__file__).parents[2] / "docs" / "devices.md").read_text("utf-8")
    table = text.partition("| key | unit")[2].partition("\n\n")[0]
    for key in DeviceProfile.model_fields:
        assert f"`{key}`" in table


def test_the_documented_file_is_a_profile(tmp_path: Path) -> None:
    text = (Path(__file__).parents[2] / "docs" / "devices.md").read_text("utf-8")
    example = text.partition("```toml\n")[2].partition("```")[0]
    profile = DeviceProfile.load(mine(tmp_path, example))
    assert profile.deadline_s is not None
    assert len(profile.anchors) == 1


def test_a_missing_and_a_huge_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="No such file"):
        DeviceProfile.load(tmp_path / "none.toml")
    with pytest.raises(ConfigError, match="larger than"):
        DeviceProfile.load(mine(tmp_path, "#" * (MAX_CONFIG_BYTES + 1)))
