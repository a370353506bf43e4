"""From settings and data to clients, server and method, ready for the first round."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from fedvtc_edge.config import Config
from fedvtc_edge.data import Dataset, hold_out, partition
from fedvtc_edge.data.dataset import Labels, Samples
from fedvtc_edge.devices.planner import ClientAssignment, fleet
from fedvtc_edge.errors import ConfigError
from fedvtc_edge.models import ImageShape, check_architecture, find
from fedvtc_edge.plugins import MethodTraits
from fedvtc_edge.privacy.release_store import ReleaseStore
from fedvtc_edge.runs.directory import public_name
from fedvtc_edge.runs.weights import WeightStore
from fedvtc_edge.seeding import derive_seed
from fedvtc_edge.training.client import Client
from fedvtc_edge.training.compute import Compute, as_images
from fedvtc_edge.transport.channel import transport_of
from fedvtc_edge.transport.keyring import FOLDER, KeyRing
from fedvtc_edge.transport.masked_sum import MaskedSums

from .federation import Measuring, Record, measure_untold, no_ledger
from .lazy import NetworkSource, lazy_client
from .methods import Federation, Method, method_of
from .roster import Roster
from .server import Refuse, Server, UploadRecorder, discard_upload, ignore_refusal


def assemble(
    config: Config,
    data: Dataset,
    compute: Compute,
    recorder: UploadRecorder = discard_upload,
    *,
    releases: ReleaseStore | None = None,
    refuse: Refuse = ignore_refusal,
    record: Record = no_ledger,
    measuring: Measuring = measure_untold,
    folder: Path | None = None,
    run: str | None = None,
    weights: WeightStore | None = None,
) -> Method:
    """Clients, server, transport and method of a federation, ready for the first round.

    Args:
        compute: Where tensors live.
        recorder: Told of whatever reaches the server.
        measuring: Told of each client before its own features are measured.
        folder: The run directory, for keys and inbox; None keeps neither.
        run: Public name of the run; None is one that follows from the settings alone, for
            what is taken apart in one process and leaves it nowhere.
        weights: Where clients' weights go that are not in memory; None is a temporary folder.
    """
    kind, run = method_of(config), run or public_name(config, "0" * 32)
    height, _, channels = data.image_shape
    own = None if folder is None else folder / FOLDER
    parties = KeyRing(config.client_ids, own)
    transport = transport_of(config.transport, parties, run, own)
    federation = Federation(
        config,
        roster_of(config, data, compute, kind, weights),
        ImageShape(height, channels),
        data.classes,
        compute,
        run,
        Server(recorder, refuse),
        releases or ReleaseStore(None),
        transport,
        record,
        MaskedSums(parties, transport, recorder) if config.transport.masking else None,
        measuring,
        None if data.x_public is None else as_images(data.x_public, compute.device),
    )
    return kind(federation)


def roster_of(
    config: Config,
    data: Dataset,
    compute: Compute,
    kind: type[Method],
    weights: WeightStore | None = None,
) -> Roster:
    """Deal the training data out; who sits out takes its part of them along.

    Args:
        kind: The method, which says what networks clients have.
        weights: Where weights go that are not in memory; None is a temporary folder.

    Raises:
        ConfigError: An unknown architecture or device, or devices of which none can train.
        DataError: Too few samples for so many clients.
    """
    parts = partition(
        data.y_train,
        clients=config.clients.count,
        classes=data.classes,
        settings=config.data,
        seed=derive_seed(config.seed, "partition"),
    )
    fleet = assignments(config, data)
    roster = Roster(
        config,
        data,
        fleet,
        parts,
        compute,
        method=kind,
        weights=weights or WeightStore(),
    )
    if not len(roster):
        raise ConfigError(
            f"clients.devices = {list(config.clients.devices)!r:.200}: no client can train",
            hint="see what fits: fedvtc-edge plan --device NAME",
        )
    for name in dict.fromkeys(member.architecture for member in roster.members.values()):
        find(name)
        check_architecture(name, config)
        if kind.trains:
            roster.parameters(name)  # what cannot be built is refused before anything is written
    return roster


def one_client(
    config: Config,
    assignment: ClientAssignment,
    samples: Samples,
    shape: ImageShape,
    classes: int,
    compute: Compute,
    method: type[MethodTraits],
) -> Client:
    """One client with networks of its own, seeded by its id.

    Args:
        assignment: Its id, device and architecture, which is known.
        classes: Number C of classes.
        compute: Where tensors live.
        method: Says which networks it has beside its classifier.

    Raises:
        ConfigError: An unknown architecture.
    """
    name, architecture = assignment.client, assignment.architecture
    assert architecture is not None
    kept, held = hold_out(samples.labels, config, name)

    def tensors(part: Labels) -> tuple[Tensor, Tensor]:
        images = as_images(samples.images[part], compute.device)
        return images, torch.from_numpy(samples.labels[part]).to(compute.device)

    client = lazy_client(
        NetworkSource(config, name, architecture, shape, classes, compute, method),
        assignment.profile.name if assignment.profile else None,
        *tensors(kept),
        tensors(held) if len(held) else None,
    )
    _ = client.model
    return client


def baseline(client: Client) -> Client:
    """The double of a fresh client that trains alone, on the same tensors of images.

    Args:
        client: Not yet trained; nothing of it changes.
    """
    return replace(client, model=copy.deepcopy(client.model), decoder=None, companion=None)


def assignments(config: Config, data: Dataset) -> list[ClientAssignment]:
    """Every client's device and the architecture that it can train.

    Raises:
        ConfigError: An unknown architecture or device.
    """
    height, _, channels = data.image_shape
    return fleet(config, config.client_ids, ImageShape(height, channels), data.classes)
