"""The last page of a run: ``summary.json`` and the pictures of the report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from .data import Dataset
from .devices.fleet import Place, notes
from .engine.local import LocalEngine
from .evaluation import averages
from .memory import training_megabytes
from .methods import Method
from .privacy.plan import UNITS, claim_of, covers
from .runs import SCHEMA, version

_PER_CLASS = 6
_PICTURE_BYTES = 8_000_000
"""About how many painted pixels samples.npz may hold; at least one picture a class."""


def summarise(engine: LocalEngine, data: Dataset, fleet: Sequence[Place]) -> dict[str, Any]:
    """``summary.json`` of interface.md; accuracies are fractions on the global test set."""
    places, spans = {place.client: place for place in fleet}, virtual(engine.records)
    method, federation = engine.method, engine.federation
    config, last = federation.config, engine.records[-1]
    account = engine.account
    records = []
    for client, measured in zip(federation.clients, last["clients"], strict=True):
        spent = account[client.id]
        batch = client.images[: config.training.batch]
        modules = [client.model] + ([client.decoder] if client.decoder is not None else [])
        records.append(
            {
                "id": client.id,
                "architecture": client.architecture,
                "architecture_wanted": places[client.id].wanted,
                "device": client.device_profile,
                "samples": len(client.images),
                "classes_present": int(client.present.sum()),
                "class_counts": client.counts.tolist(),
                "parameters": sum(p.numel() for m in modules for p in m.parameters()),
                **{key: value for key, value in measured.items() if key.startswith("accuracy")},
                "upload_bytes": spent["up"],
                "download_bytes": spent["down"],
                "peak_memory_mb": round(training_megabytes(client.model, client.decoder, batch), 2),
                "seconds": round(spent["seconds"], 3),
                **spans.get(client.id, {"seconds_virtual": None, "rounds_missed": None}),
            }
        )
    means = averages(records)
    seconds = sum(record["seconds"] for record in engine.records)
    busy = sum(spent["seconds"] for spent in account.values())
    alone = means["accuracy_local_only_mean"] or 0.0
    claim = claim_of(config)
    anchored, epsilon = config.method.name == "fedvtc", method.epsilon()
    return {
        "schema": SCHEMA,
        "version": version(),
        "seed": config.seed,
        "method": config.method.name,
        "data": data.name,
        "evaluated_on": config.data.evaluate,
        "partition": config.data.partition,
        "alpha": config.data.alpha if config.data.partition == "dirichlet" else None,
        "share": config.method.share if anchored else None,
        "moments": config.method.moments
        if anchored and config.method.share == "anchored"
        else None,
        "ablate": list(config.method.ablate),
        "engine": config.engine.name,
        "device": str(federation.compute.device),
        "rounds": config.method.rounds,
        "class_names": list(data.class_names),
        "clients": records,
        "sat_out": [
            {"id": place.client, "architecture": place.wanted, "device": place.profile.name}
            for place in fleet
            if place.architecture is None and place.profile
        ],
        "notes": notes(fleet),
        **means,
        "accuracy_control": last["accuracy_control"],
        "gain": (means["accuracy_mean"] or 0.0) - alone,
        "upload_bytes_total": sum(spent["up"] for spent in account.values()),
        "download_bytes_total": sum(spent["down"] for spent in account.values()),
        "uploads": [
            f"{text}; under masks, so that the server sees only the sum over the clients"
            if config.transport.masking
            else text
            for text in method.uploads()
        ],
        "epsilon": epsilon,
        "delta": config.privacy.delta if epsilon is not None else None,
        "privacy_unit": UNITS[config.privacy.mode] if claim else None,
        "privacy_mechanism": claim.mechanism if claim else None,
        "privacy_covers": covers(config) if claim else None,
        "seconds": round(seconds, 3),
        "seconds_virtual": last["clock"][-1]["end"] if "clock" in last else None,
        "samples_per_second": round(
            sum(spent["samples"] for spent in account.values()) / max(busy, 1e-9), 1
        ),
    }


def virtual(records: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Simulated seconds at work and rounds missed of each client; empty without devices."""
    found: dict[str, dict[str, Any]] = {}
    turns = [turn for record in records for turn in record.get("clock", ())]
    for turn in turns:
        for name, line in turn["clients"].items():
            own = found.setdefault(name, {"seconds_virtual": 0.0, "rounds_missed": {}})
            own["seconds_virtual"] += line["download"] + line["compute"] + line["upload"]
            if line["outcome"] != "done":
                missed = own["rounds_missed"]
                missed[line["outcome"]] = missed.get(line["outcome"], 0) + 1
    for own in found.values():
        own["seconds_virtual"] = round(own["seconds_virtual"], 3)
    return found


def pictures(method: Method, data: Dataset) -> dict[str, NDArray[np.uint8]]:
    """Painted and real images for the report.

    Returns:
        ``painted`` [clients, C, n, H, W, channels] and ``real`` [C, n, H, W, channels]
        from the public test set, uint8; empty for methods that paint nothing.
    """
    world = method.world()
    clients = method.federation.clients
    if world is None or any(client.decoder is None for client in clients):
        return {}
    size, _, channels = data.image_shape
    row = len(clients) * data.classes * size * size * channels
    per_class = min(_PER_CLASS, max(1, _PICTURE_BYTES // row))
    labels = torch.arange(data.classes).repeat_interleave(per_class)
    painted = [
        (client.synthesise(world, labels) * 255.0).round().to(torch.uint8) for client in clients
    ]
    grid = (data.classes, per_class, size, size, channels)
    real = np.zeros(grid, np.uint8)
    for label in range(data.classes):
        examples = data.x_test[data.y_test == label][:per_class]
        real[label, : len(examples)] = examples
    stacked = torch.stack(painted).permute(0, 1, 3, 4, 2)
    return {"painted": stacked.reshape(len(clients), *grid).numpy(), "real": real}
