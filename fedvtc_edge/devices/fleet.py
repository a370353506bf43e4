"""Which device each client is, and what that device can train."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fedvtc_edge.config import Config
from fedvtc_edge.models import ImageShape

from .planner import smaller
from .profile import DeviceProfile


@dataclass(frozen=True)
class ClientAssignment:
    """One client of a fleet.

    Args:
        client: Its id.
        profile: Of its device, or None where the settings name none.
        wanted: The architecture that the settings give it.
        architecture: The one that its device can train: ``wanted`` where that fits, else
            the planner's smaller one; None where nothing fits and the client sits out.
    """

    client: str
    profile: DeviceProfile | None
    wanted: str
    architecture: str | None


def fleet(
    config: Config, clients: Sequence[str], shape: ImageShape, classes: int
) -> list[ClientAssignment]:
    """A place for every client; architectures and devices are given in turn.

    Raises:
        ConfigError: An architecture or device that does not exist.
    """
    settings = config.clients
    profiles = {name: DeviceProfile.load(name) for name in settings.devices}
    assignments = []
    for index, client in enumerate(clients):
        wanted = settings.architectures[index % len(settings.architectures)]
        profile: DeviceProfile | None = None
        fitting: str | None = wanted
        if settings.devices:
            profile = profiles[settings.devices[index % len(settings.devices)]]
            fitting = smaller(config, profile, wanted, shape, classes)
        assignments.append(ClientAssignment(client, profile, wanted, fitting))
    return assignments


def notes(assignments: Sequence[ClientAssignment]) -> list[str]:
    """What the devices' memory changed, in words, one line per device and architecture."""
    groups: dict[tuple[str, str], list[str]] = {}
    for assignment in assignments:
        profile, architecture = assignment.profile, assignment.architecture
        if profile is None or architecture == assignment.wanted:
            continue
        if profile.runtime == "none":
            what = f"out, nothing that trains runs on {profile.name}"
        elif architecture is None:
            what = f"out, no architecture can be trained in the memory of {profile.name}"
        else:
            what = (
                f"{architecture} in place of {assignment.wanted}, which does not fit the memory of "
                f"{profile.name}"
            )
        groups.setdefault(("sit" if architecture is None else "train", what), []).append(
            assignment.client
        )
    return [
        f"{_some(clients)} {verb}{'s' * (len(clients) == 1)} {what}"
        for (verb, what), clients in groups.items()
    ]


def _some(clients: Sequence[str]) -> str:
    """Up to three names, and how many more."""
    shown, more = ", ".join(clients[:3]), len(clients) - 3
    return f"{shown} and {more} more" if more > 0 else shown
