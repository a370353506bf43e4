"""Results of a finished run: ``summary.json``, networks, and images for the report."""

from __future__ import annotations

import functools
import io
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save
from torch import nn

from fedvtc_edge.config import Config
from fedvtc_edge.data import Dataset
from fedvtc_edge.devices.footprint import peak_megabytes
from fedvtc_edge.devices.planner import ClientAssignment, notes
from fedvtc_edge.models import ImageShape
from fedvtc_edge.models.registry import EXTRACTOR_HEAD
from fedvtc_edge.privacy.claim import UNITS
from fedvtc_edge.runs.directory import AT_UPLOAD, RunDirectory, as_json, version
from fedvtc_edge.runs.records import ClientRecord, RoundRecord, SatOut, Summary
from fedvtc_edge.storage.atomic import write_atomic
from fedvtc_edge.training.client import Client

from .figures import Figures
from .methods import Method
from .roster import Roster, ids_of
from .rounds import Executor

STATISTICS = ("anchor", "features", "prototypes")
"""Kinds of publications that are class statistics."""

_PER_CLASS = 6
_PAINTED = 32
"""Clients whose synthetic pictures are kept at most; the report shows some dozen."""
_PICTURE_BYTES = 8_000_000
"""About how many synthetic pixels samples.npz may hold; at least one picture a class."""


@dataclass(frozen=True)
class ClientStats:
    """Figures of one client that do not depend on rounds; None is not told.

    Args:
        id: Its name.
        device: Name of its profile.
        class_counts: Examples per class, [C].
        parameters: Of all its networks.
        peak_memory_mb: Of its training, in MB of 2^20 bytes, as the planner reckons it.
    """

    id: str
    architecture: str
    device: str | None
    class_counts: Sequence[int] | None
    parameters: int | None
    peak_memory_mb: float | None

    @classmethod
    def of(cls, client: Client, config: Config) -> ClientStats:
        """Figures of a client that is in this process, on the device that it runs on."""
        samples, channels, size, _ = client.images.shape
        shape, classes = ImageShape(size, channels), client.classes
        return cls(
            client.id,
            client.architecture,
            client.device_profile,
            client.counts.tolist(),
            sum(p.numel() for m in client.networks.values() for p in m.parameters()),
            peak_megabytes(client.architecture, samples, shape, classes, config),
        )


def stats_of(roster: Roster, config: Config, *, trains: bool = True) -> Iterator[ClientStats]:
    """Figures of all clients of a run in one process, on the devices that they stand for.

    Args:
        trains: Whether clients train networks: else nothing is said of any.
    """
    shape, classes = roster.shape, roster.classes
    peak = functools.cache(  # few architectures, devices and numbers of images
        lambda name, samples, profile: peak_megabytes(
            name, samples, shape, classes, config, profile
        )
    )
    for name, member in roster.members.items():
        architecture, profile = member.architecture, member.assignment.profile
        counts = roster.counts(name)
        yield ClientStats(
            name,
            architecture,
            profile.name if profile else None,
            counts.tolist(),
            roster.parameters(architecture) if trains else None,
            peak(architecture, int(counts.sum()), profile) if trains else None,
        )


@dataclass(frozen=True)
class Outcome:
    """Results of the rounds of a run.

    Args:
        last: Record of the last round.
        account: Totals by client id; bytes that nobody counted are None.
        figures: Last accuracies by client.
        seconds: Time of all rounds.
    """

    last: RoundRecord
    account: Mapping[str, Mapping[str, Any]]
    figures: Figures
    seconds: float

    @classmethod
    def of(cls, executor: Executor) -> Outcome:
        """The outcome of an executor whose rounds are done."""
        assert executor.record is not None
        account = {name: executor.spent(name) for name in executor.clients}
        return cls(executor.record, account, executor.figures, executor.seconds)


def summarise(
    method: Method,
    clients: Iterable[ClientStats],
    outcome: Outcome,
    data: Dataset,
    fleet: Sequence[ClientAssignment],
) -> Summary:
    """``summary.json`` of interface.md; accuracies are fractions on the global test set.

    Args:
        clients: In their order.
        data: For its names.
    """
    assignments = {assignment.client: assignment for assignment in fleet}
    federation, last, account = method.federation, outcome.last, outcome.account
    config, figures = federation.config, outcome.figures
    records = []
    for client in clients:
        spent, counts = account[client.id], client.class_counts
        records.append(
            ClientRecord(
                id=client.id,
                architecture=EXTRACTOR_HEAD if method.common_head else client.architecture,
                architecture_wanted=assignments[client.id].wanted,
                device=client.device,
                samples=None if counts is None else sum(counts),
                classes_present=None if counts is None else sum(n > 0 for n in counts),
                class_counts=None if counts is None else list(counts),
                parameters=None if method.common_head else client.parameters,
                **figures.of(client.id),
                evaluated_round=figures.round_of(client.id),
                upload_bytes=spent["up"],
                download_bytes=spent["down"],
                peak_memory_mb=client.peak_memory_mb,
                seconds=round(spent["seconds"], 3),
                seconds_virtual=round(spent["busy"], 3) if "busy" in spent else None,
                rounds_missed=spent.get("missed"),
            )
        )
    means = figures.means()
    own, alone = means["accuracy_mean"], means["accuracy_local_only_mean"]
    mechanism, epsilon = federation.mechanism, method.epsilon()
    vtc = method.has_decoder
    return Summary(
        version=version(),
        seed=config.seed,
        method=config.method.name,
        data=data.name,
        evaluated_on=config.data.evaluate,
        partition=config.data.partition,
        alpha=config.data.alpha if config.data.partition == "dirichlet" else None,
        share=config.method.share if vtc else _weights_shared(method),
        moments=config.method.moments if vtc and config.method.share == "anchored" else None,
        ablate=list(config.method.ablate),
        engine=config.engine.name,
        device=str(federation.compute.device),
        rounds=config.method.rounds,
        class_names=list(data.class_names),
        clients=records,
        sat_out=[
            SatOut(id=one.client, architecture=one.wanted, device=one.profile.name)
            for one in fleet
            if one.architecture is None and one.profile
        ],
        notes=notes(fleet),
        **means,
        accuracy_control=last.accuracy_control,
        recall_control=last.recall_control,
        gain=None if own is None or alone is None else own - alone,
        upload_bytes_total=_total(spent["up"] for spent in account.values()),
        download_bytes_total=_total(spent["down"] for spent in account.values()),
        uploads=[
            f"{text}; under masks, so that the server sees only {_sums(config)}"
            if config.transport.masking
            else text
            for text in method.uploads()
        ],
        epsilon=epsilon,
        delta=config.privacy.delta if epsilon is not None else None,
        privacy_unit=UNITS[mechanism.unit] if mechanism else None,
        privacy_mechanism=mechanism.claim.mechanism if mechanism else None,
        privacy_covers=mechanism.covers if mechanism else None,
        seconds=round(outcome.seconds, 3),
        seconds_virtual=last.clock[-1].end if last.clock else None,
        samples_per_second=_rate(account.values()),
    )


def _weights_shared(method: Method) -> str | None:
    """Content of uploads of trained weights, which then do not stay on the client; else None."""
    shared = method.shared(method.federation.config)
    return shared if shared == "companion" or "heads" in shared else None


def _rate(accounts: Iterable[Mapping[str, Any]]) -> float | None:
    """Images per second of work, over the clients that tell how many they trained on."""
    told = [spent for spent in accounts if spent["samples"]]
    busy = sum(spent["seconds"] for spent in told)
    return round(sum(spent["samples"] for spent in told) / max(busy, 1e-9), 1) if told else None


def _sums(config: Config) -> str:
    if config.sums == 1:
        return "the sum over the clients"
    return f"the sums of {config.sums} groups of {config.smallest_sum} clients or one more"


def _total(values: Iterable[int | None]) -> int | None:
    """Their sum, or None where nobody counted one of them."""
    every = list(values)
    known = [value for value in every if value is not None]
    return sum(known) if len(known) == len(every) else None


def pictures(method: Method, data: Dataset) -> dict[str, NDArray[Any]]:
    """Synthetic and real images for the report.

    Returns:
        ``painted`` [clients, C, n, H, W, channels] and ``real`` [C, n, H, W, channels]
        from the public test set, uint8; and ids ``clients`` where only some are painted: some
        dozen at most, of those that have taken part. Empty for methods without a decoder.
    """
    world, everybody = method.knowledge(), method.federation.clients
    names = trained(method)[:_PAINTED] if world is not None and method.has_decoder else []
    clients = _some(everybody, names)
    if world is None or not names or any(client.decoder is None for client in clients):
        return {}
    size, _, channels = data.image_shape
    row = len(names) * data.classes * size * size * channels
    per_class = min(_PER_CLASS, max(1, _PICTURE_BYTES // row))
    labels = torch.arange(data.classes).repeat_interleave(per_class)
    synthetic = [
        (client.synthesise(world, labels) * 255.0).round().to(torch.uint8) for client in clients
    ]
    grid = (data.classes, per_class, size, size, channels)
    real = np.zeros(grid, np.uint8)
    for label in range(data.classes):
        examples = data.x_test[data.y_test == label][:per_class]
        real[label, : len(examples)] = examples
    stacked = torch.stack(synthetic).permute(0, 1, 3, 4, 2)
    found = {"painted": stacked.reshape(len(names), *grid).numpy(), "real": real}
    return found if len(names) == len(everybody) else {**found, "clients": np.array(names)}


def trained(method: Method) -> list[str]:
    """Ids of the clients in this process that have networks to leave, in order."""
    clients = method.federation.clients
    if not method.trains:
        return []
    return clients.trained() if isinstance(clients, Roster) else ids_of(clients)


def _some(clients: Sequence[Client], names: Sequence[str]) -> Sequence[Client]:
    if isinstance(clients, Roster):
        return clients.some(names)
    wanted = set(names)
    return [client for client in clients if client.id in wanted]


def finish(directory: RunDirectory, method: Method, data: Dataset, summary: Summary) -> None:
    """Write what a finished run leaves, the clients' networks that are here, and the report."""
    records = {record.id: record for record in summary.clients}
    names = trained(method)
    networks = ((client.id, client.networks) for client in _some(method.federation.clients, names))
    told: Iterable[tuple[str, Mapping[str, nn.Module]]] = networks
    if not method.trains:
        told = ((one.id, {}) for one in summary.clients if one.evaluated_round is not None)
    directory.sync()
    deposit(
        directory.path,
        summary,
        method.statistics(),
        ((name, modules, records[name]) for name, modules in told),
        pictures(method, data),
    )
    directory.close()
    from fedvtc_edge import report  # matplotlib takes half a second, and clients never draw

    report.render(directory.path)


def kept_at_upload(folder: Path) -> Callable[[Client], None]:
    """Callback that keeps a client's classifier as it is when its features are measured.

    An audit needs the extractor that an upload was made with, and training goes on after it. Each
    upload replaces the file of the one before: a run grows by one classifier per client.

    Args:
        folder: The run directory.
    """

    def keep(client: Client) -> None:
        own = folder / "clients" / client.id
        own.mkdir(parents=True, exist_ok=True)
        # Not durable: a round that a power cut undoes is done again, and writes it again.
        write_atomic(own / f"{AT_UPLOAD}.safetensors", _packed(client.model), durable=False)

    return keep


def _one_line_each(document: Mapping[str, Any]) -> bytes:
    """The summary with a line for each client: ten thousand, spread out, are seconds and megabytes.

    NaN is not JSON and raises ValueError.
    """
    clients = ",\n    ".join(json.dumps(one, allow_nan=False) for one in document["clients"])
    head, tail = as_json({**document, "clients": [_CLIENTS]}).split(json.dumps(_CLIENTS).encode())
    return head + clients.encode() + tail


_CLIENTS = "\0"
"""Stands where the clients do; no printable name has it."""


def _packed(module: nn.Module) -> bytes:
    """Weights as a safetensors file holds them."""
    return save({k: v.detach().cpu().contiguous() for k, v in module.state_dict().items()})


def deposit(
    folder: Path,
    summary: Summary,
    published: Mapping[str, bytes],
    clients: Iterable[tuple[str, Mapping[str, nn.Module], ClientRecord]],
    pictures: Mapping[str, NDArray[Any]],
    *,
    mode: int = 0o644,
) -> None:
    """Write a finished run's files; ``summary.json`` last, as the sign of completeness.

    Args:
        clients: Id, networks and the summary's entry of each that has some; read once.
        pictures: Arrays of ``samples.npz``; empty writes none.
        mode: Permissions of the files.
    """
    write = functools.partial(write_atomic, mode=mode)
    for data in (published[kind] for kind in STATISTICS if kind in published):
        write(folder / "statistics.safetensors", data)
    for name, modules, record in clients:
        own = folder / "clients" / name
        own.mkdir(parents=True, exist_ok=True)
        for file, module in modules.items():
            write(own / f"{file}.safetensors", _packed(module))
        write(own / "client.json", as_json(record.document()))
    if pictures:
        buffer = io.BytesIO()
        np.savez_compressed(buffer, allow_pickle=False, **pictures)
        write(folder / "samples.npz", buffer.getvalue())
    write(folder / "summary.json", _one_line_each(summary.document()))
