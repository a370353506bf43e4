"""What a page says where clients are elsewhere, and tell of themselves only what they choose."""

from __future__ import annotations

from . import wording
from .reading import Run

NOT_TOLD = (
    "how accurate the clients' networks are",
    "how many images of which class they have",
)
"""What clients may keep to themselves."""


def silent(run: Run) -> list[str]:
    """What at least one client of a served run did not tell; empty where all is known."""
    if not run.served:
        return []
    clients = run.summary.clients
    known = (
        [client.accuracy is not None for client in clients],
        [bool(client.class_counts) for client in clients],
    )
    return [
        what + (f" ({len(told) - sum(told)} of {len(told)} do not tell)" if any(told) else "")
        for what, told in zip(NOT_TOLD, known, strict=True)
        if not all(told)
    ]


def headline(run: Run) -> str:
    """The finding in one sentence; where nobody tells, that."""
    summary = run.summary
    if summary.accuracy_mean is not None or not (run.served or summary.home):
        return wording.lead(summary)
    if summary.home:
        return "This client has no test set, so nothing says how accurate its network is."
    text = f"The {len(summary.clients)} clients keep to themselves how accurate their networks are"
    if summary.accuracy_control is not None:
        reached = wording.percent(summary.accuracy_control)
        text += f"; the untrained control, which reads what they sent, reaches {reached}"
    return text + "."


def missing(run: Run, key: str) -> str:
    """Why a headline accuracy is not there.

    Args:
        run: The run.
        key: ``own``, ``calibrated``, ``control`` or ``local``.
    """
    if run.partial:
        return "Known when the run ends."
    if run.summary.home and run.summary.evaluated_on is None:
        return "No test set here."
    if run.served and run.summary.accuracy_mean is None and key != "control":
        return "Not told by the clients."
    return "Not measured in this mode."


def left(run: Run) -> list[str]:
    """What left the clients, with what they told of themselves."""
    lines = list(wording.uploads(run.summary))
    if not run.served:
        return lines
    clients = run.summary.clients
    if any(client.accuracy is not None for client in clients):
        lines.append(
            "each round, told: how accurate its networks are on the test set, and how many "
            "images it trained on"
        )
    if any(client.class_counts for client in clients):
        lines.append("once, told: how many images of which class it has")
    return [*lines, "each round: how long it worked, and how many parameters its networks have"]


def kept(run: Run) -> list[str]:
    """What did not leave the clients."""
    summary = run.summary
    if not (run.served or summary.home):
        return wording.stayed(summary)
    decoders = summary.share == "features+decoder"
    lines = ["Images and single labels.", f"{'The classifier' if decoders else 'All networks'}."]
    if run.served and all(client.accuracy is None for client in summary.clients):
        lines.append("How accurate its networks are.")
    if run.served and not any(client.class_counts for client in summary.clients):
        lines.append("How many images of which class it has.")
    return lines
