"""The shipped probe graphs are what their source makes, and do what calibration counts."""

from __future__ import annotations

from importlib import resources
from pathlib import Path

import pytest

from fedvtc_edge.benchmarks.latency import node_costs
from fedvtc_edge.benchmarks.latency import probes as source
from fedvtc_edge.devices import calibration


def test_the_shipped_files_are_what_the_source_makes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shipped = resources.files("fedvtc_edge.devices") / "probes"
    made = source.probes()
    assert {file.name for file in shipped.iterdir()} == set(made)
    for name, content in made.items():
        assert (shipped / name).read_bytes() == content, f"run the script again: {name}"
        assert len(content) < 16_000
    source.main([str(tmp_path)])
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == made
    assert "calls.onnx" in capsys.readouterr().out


def test_the_work_is_what_calibration_divides_by() -> None:
    made = source.probes()
    (product,) = node_costs(made["product.onnx"], batch=1)
    assert product.flops == 2 * calibration.SIDE**3
    (addition,) = node_costs(made["traffic.onnx"], batch=1)
    assert addition.bytes == 3 * 4 * calibration.ELEMENTS
    layers = node_costs(made["convolutions.onnx"], batch=1)
    flops = sum(cost.flops for cost in layers if cost.operator == "Conv")
    assert flops == calibration.convolution_flops()
    calls = node_costs(made["calls.onnx"], batch=1)
    assert len(calls) == calibration.CALLS
    # Arithmetic and traffic of the chain are small beside its calls on any device.
    assert sum(cost.flops for cost in calls) / calibration.CALLS < 200
    assert sum(cost.bytes for cost in calls) / calibration.CALLS < 500
