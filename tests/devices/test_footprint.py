"""What a batch of any size holds, tried on few images; and one figure wherever it is told."""

from __future__ import annotations

import json
import platform
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from fedvtc_edge import run
from fedvtc_edge.config import Config, MethodSettings
from fedvtc_edge.data import load_dataset
from fedvtc_edge.devices import DeviceProfile, plan
from fedvtc_edge.devices.footprint import (
    ADAM_SLOTS,
    MB,
    MemoryProfile,
    needs,
    phases_of,
)
from fedvtc_edge.devices.probes import probe_client, probe_statistics
from fedvtc_edge.devices.recorder import probe_copy, record
from fedvtc_edge.distributed.client.session import ClientSession
from fedvtc_edge.federation.assembly import assemble
from fedvtc_edge.federation.evaluation import TestSet
from fedvtc_edge.federation.local import LocalExecutor
from fedvtc_edge.federation.rounds import take_steps
from fedvtc_edge.models import ImageShape
from fedvtc_edge.runs.records import Summary
from fedvtc_edge.training.client import Client
from fedvtc_edge.training.compute import Compute, as_images, deterministic

SHAPE, CLASSES, METHOD = ImageShape(8, 1), 3, MethodSettings(latent=8, anchor=12)


def phase_of(name: str, knowledge: object) -> Callable[[Client], object]:
    return {
        "train": lambda probe: probe.train(1, knowledge.codes, kl=1.0),  # type: ignore[attr-defined]
        "fit_decoder": lambda probe: probe.fit_decoder(1, knowledge, match=True),
        "finetune": lambda probe: probe.finetune(1, knowledge, steps=2, kl=1.0),
    }[name]


@pytest.mark.parametrize("architecture", ["mlp", "lenet"])
@pytest.mark.parametrize("phase", ["train", "fit_decoder", "finetune"])
def test_a_large_batch_is_foretold_to_the_byte(architecture: str, phase: str) -> None:
    """The slow check: the phase itself with all of its images."""
    batch = 19
    held: MemoryProfile = getattr(phases_of(architecture, SHAPE, CLASSES, METHOD), phase)
    with deterministic():
        knowledge, _ = probe_statistics(SHAPE, CLASSES, METHOD)
        whole = probe_client(architecture, SHAPE, CLASSES, METHOD, images=batch)
        probe = probe_copy(whole, batch, 2, batch=batch)
        network = probe.decoder if phase == "fit_decoder" else probe.model
        assert network is not None
        weights = list(network.parameters())
        live = record(lambda: phase_of(phase, knowledge)(probe), weights).held
    state = ADAM_SLOTS * 4 * sum(weight.numel() for weight in weights)
    assert held.peak(batch) == (live - state).max()
    assert np.array_equal(held.few + (batch - 2) * held.slope, live - state)


def test_methods_without_synthesis_hold_nothing_for_it() -> None:
    phases = phases_of("mlp", SHAPE, CLASSES, MethodSettings(name="local", latent=8))
    assert (phases.decoder, phases.anchor) == (0, 0)
    assert phases.fit_decoder is phases.finetune is phases.synthesise is phases.measure is None
    features = phases_of("mlp", SHAPE, CLASSES, MethodSettings(share="features", latent=8))
    assert features.decoder > 0
    assert features.measure is None


def test_inference_by_hand() -> None:
    """Of a perceptron without gradients at most two layers live at once, and LayerNorm's rows."""
    held = phases_of("mlp", SHAPE, CLASSES, METHOD).classify
    for batch in (2, 3, 50):
        assert held.peak(batch) == 4 * batch * (256 + 256)


def test_looking_leaves_no_trace_and_needs_no_compiler() -> None:
    code = (
        "import sys, torch; from fedvtc_edge.config import MethodSettings; "
        "from fedvtc_edge.devices.footprint import phases_of; "
        "from fedvtc_edge.models import ImageShape; "
        "torch.manual_seed(1); before = torch.get_rng_state(); "
        "phases_of('mlp', ImageShape(8, 1), 3, MethodSettings(latent=8, anchor=12)); "
        "assert torch.equal(torch.get_rng_state(), before); "
        "assert not torch.are_deterministic_algorithms_enabled(); "
        "assert 'torch._dynamo' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_settings_that_change_no_network_are_looked_at_once() -> None:
    same = phases_of("mlp", SHAPE, CLASSES, METHOD.model_copy(update={"rounds": 77}))
    assert phases_of("mlp", SHAPE, CLASSES, METHOD) is same
    assert phases_of("mlp", SHAPE, CLASSES, METHOD.model_copy(update={"latent": 9})) is not same


def test_run_report_and_plan_tell_one_figure(tiny: Callable[..., Config], tmp_path: Path) -> None:
    """For the same client: ``summary.json``, the page, what ``join`` reports, and ``plan``."""
    device = DeviceProfile.load("rpi5")
    config = tiny(clients={"devices": ["rpi5"], "architectures": ["mlp"]})
    out = tmp_path / "run"
    summary = Summary.model_validate(run(config, out=out).summary)
    planned = {
        (row.architecture, row.batch, row.mode): row.needs for row in plan(config, device).rows
    }
    (needed,) = {planned["mlp", config.training.batch, "alternate"]}
    largest = max(client.samples or 0 for client in summary.clients)
    # Two batches of pictures for the last two steps, a byte a pixel, and ten scores of each.
    pool = 2 * 2 * config.training.batch * (64 + 10 * 4)
    assert needed.data == largest * 64 * 4 + pool
    for client in summary.clients:
        # A plan is made for the client with most images: another one holds that much less.
        other = (largest - (client.samples or 0)) * 64 * 4
        assert client.peak_memory_mb == round((needed.total - other) / MB, 2)
        own = json.loads((out / "clients" / client.id / "client.json").read_text())
        assert own["peak_memory_mb"] == client.peak_memory_mb
        assert f"{client.peak_memory_mb:.0f} MB" in (out / "report.html").read_text()


def test_a_served_client_reports_the_same_figure_of_its_own_machine(
    tiny: Callable[..., Config],
) -> None:
    config = tiny()
    data = load_dataset(config.data)
    with deterministic():
        method = assemble(config, data, Compute.of(config.engine), lambda *_: None)
        client = method.federation.clients[0]
        before = {name: value.clone() for name, value in client.model.state_dict().items()}
        test = TestSet(as_images(data.x_test[:9], client.compute.device), torch.arange(9))
        executor = LocalExecutor(method)
        take_steps(method, executor, 0, executor.clients)
        method.federation.clients = [client]
        told = ClientSession(client, None, method, test).report(1, share_metrics=True)
    found = needs(
        client.architecture,
        config,
        SHAPE,
        client.classes,
        batch=config.training.batch,
        samples=len(client.images),
        arch=platform.machine(),
    )
    assert told["peak_memory_mb"] == round(found.total / MB, 2)
    assert all(torch.equal(before[name], v) for name, v in client.model.state_dict().items())
