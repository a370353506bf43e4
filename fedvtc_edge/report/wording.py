"""Numbers and findings in words: what the pages say, kept apart from how they look."""

from __future__ import annotations

from fedvtc_edge.privacy.claim import UNITS
from fedvtc_edge.runs.records import OPERATING_POINTS, ClientRecord, Summary, mean

from .reading import Run

NOTHING = "\u2013"  # an en dash: not measured, or not applicable


def percent(value: float | None) -> str:
    """A fraction as a percentage, ``0.9204`` → ``92.0%``."""
    return NOTHING if value is None else f"{100 * value:.1f}%"


def points(value: float | None) -> str:
    """A difference of fractions in percentage points, with its sign."""
    return NOTHING if value is None else f"{100 * value:+.1f}".replace("-", "\u2212")


def size(value: float | None) -> str:
    """Bytes in decimal units, as networks are billed."""
    if value is None:
        return NOTHING
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if value >= scale:
            amount = value / scale
            return f"{amount:.1f} {unit}" if amount < 100 else f"{amount:.0f} {unit}"
    return f"{value:.0f} B"


def megabytes(value: float | None) -> str:
    """MB of memory."""
    return NOTHING if value is None else f"{value:.0f} MB"


def duration(value: float | None) -> str:
    """Seconds, in the unit a person would say."""
    if value is None:
        return NOTHING
    if value < 10:
        return f"{value:.1f} s"
    whole = round(value)
    if whole < 120:
        return f"{whole} s"
    if whole < 7200:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def count(value: float | None) -> str:
    """A whole number with thin spaces between thousands."""
    return NOTHING if value is None else f"{value:,.0f}".replace(",", "\u202f")


def short(text: str, limit: int = 18) -> str:
    """A name that is safe and short enough to stand in a chart."""
    clean = "".join(letter if letter.isprintable() else "?" for letter in text)
    return clean if len(clean) <= limit else clean[: limit - 1] + "…"


def sent(summary: Summary) -> float | None:
    """Bytes that a client uploads, on average."""
    return mean(client.upload_bytes for client in summary.clients)


def gain(summary: Summary) -> float | None:
    """Gain of federation over local training alone, as a fraction."""
    if summary.gain is not None:
        return summary.gain
    if summary.accuracy_mean is None or summary.accuracy_local_only_mean is None:
        return None
    return summary.accuracy_mean - summary.accuracy_local_only_mean


def lead(summary: Summary) -> str:
    """The finding in one sentence."""
    if summary.accuracy_mean is None:
        return "No accuracy has been measured yet."
    known = sum(client.accuracy is not None for client in summary.clients)
    clients = known or len(summary.clients)  # of a served run only the mean may be told
    who = "The client's own model reaches"
    if clients > 1:
        who = f"{count(clients)} clients' models reach"
    if clients < len(summary.clients):
        everybody = count(len(summary.clients))
        who = f"{count(clients)} of {everybody} clients took part; their models reach"
    text = f"{who} {percent(summary.accuracy_mean)} on the global test set"
    if clients > 1:
        text += " on average"
    # The model's figure never stands without its two neighbours, here neither.
    text += beside(summary.accuracy_calibrated_mean, summary.accuracy_control)
    if summary.accuracy_local_only_mean is not None:
        text += f"; local only, {percent(summary.accuracy_local_only_mean)}"
    return text + "."


def beside(calibrated: float | None, control: float | None) -> str:
    """Figures to read beside a model's accuracy, in brackets; empty where none is known."""
    parts = []
    if calibrated is not None:
        parts.append(f"{percent(calibrated)} combined")
    if control is not None:
        parts.append(f"{percent(control)} from statistics only")
    return f" ({', '.join(parts)})" if parts else ""


_POINTS = {
    "global": ("Global", "the test set as it is, every class alike"),
    "home, uniform prior": (
        "At home, uniform prior",
        "the test set weighted by each client's own classes",
    ),
    "home, own prior": (
        "At home, own prior",
        "the same, and how often the client has each class is added to every prediction",
    ),
    "held-out own images, own prior": (
        "Held-out own images, own prior",
        "a share of each client's own images that nothing was trained on",
    ),
}


def operating_points(summary: Summary) -> list[tuple[str, str, list[float | None]]]:
    """Name, meaning and accuracies of each operating point that is known.

    Accuracies are those of own model, combined, statistics only and local only.
    """
    found = []
    for point, keys in OPERATING_POINTS.items():
        values: list[float | None] = [getattr(summary, key) for key in keys]
        if any(value is not None for value in values):
            found.append((*_POINTS[point], values))
    return found


def against_control(summary: Summary) -> str | None:
    """Comparison of own models with statistics only; never left out."""
    if summary.accuracy_mean is None:
        return None
    if summary.accuracy_control is None:
        return (
            "Statistics alone classify nothing here: this mode shares none of the anchor, "
            "so there is nothing to combine with either."
            if summary.accuracy_calibrated_mean is None
            else "The accuracy of statistics only was not measured."
        )
    gap = summary.accuracy_mean - summary.accuracy_control
    if abs(gap) < 0.0005:
        stands = "is level with"
    else:
        stands = f"is {100 * abs(gap):.1f} points {'above' if gap > 0 else 'below'}"
    text = f"The own models' mean {stands} statistics only, which train nothing."
    if summary.accuracy_calibrated_mean is not None:
        text += " Combined joins the two at prediction time."
    return text


def privacy(summary: Summary) -> tuple[str, str]:
    """The privacy claim as a headline and a line of explanation."""
    if summary.epsilon is None:
        return (
            "Not differentially private",
            "Nothing bounds what the uploads may reveal about the training data."
            if summary.upload_bytes_total != 0
            else "But nothing was uploaded.",
        )
    # The tail probability, written 1e-5 rather than 1e-05.
    at = "" if summary.delta is None else f"At δ = {summary.delta:.3g}. ".replace("e-0", "e-")
    units = {
        "example": "one training example",
        "client": "one client's whole data set",
        UNITS["example"]: "any one training example of a client: whether it was there or not",
        UNITS["client"]: "any one client with all of its data: whether it took part or not",
    }
    unit = units.get(
        summary.privacy_unit or "", summary.privacy_unit or "a unit that the run does not name"
    )
    covers = f" Covers {summary.privacy_covers}." if summary.privacy_covers else ""
    mechanism = f" By {summary.privacy_mechanism}." if summary.privacy_mechanism else ""
    return (
        f"ε = {summary.epsilon:.3g}",
        f"{at}Protects {unit}. Smaller ε is stronger.{covers}{mechanism}",
    )


def holds(client: ClientRecord, names: list[str]) -> str:
    """The class counts of a client, read aloud."""
    pairs = list(zip(names, client.class_counts or (), strict=False))
    if len(pairs) > 20:
        held = sum(1 for _, number in pairs if number)
        return f"{held} of {len(pairs)} classes held"
    return "images per class: " + ", ".join(f"{name} {number}" for name, number in pairs)


NOT_TOLD = (
    "how accurate the clients' networks are",
    "how many images of which class they have",
)
"""What clients may keep to themselves."""


def silent(run: Run) -> list[str]:
    """Metrics that at least one client of a served run did not share; empty where all are known."""
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
        return lead(summary)
    if summary.home:
        return "This client has no test set, so nothing says how accurate its network is."
    text = f"The {len(summary.clients)} clients keep to themselves how accurate their networks are"
    if summary.accuracy_control is not None:
        reached = percent(summary.accuracy_control)
        text += f"; statistics only (no training), made of what they sent, reach {reached}"
    return text + "."


def missing(run: Run, key: str) -> str:
    """Why a headline accuracy is not there.

    Args:
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
    """Data that left the clients, in the run's own words, with the metrics they shared."""
    summary = run.summary
    if summary.uploads is None:
        lines = ["This run did not itemise its uploads; the byte counts below are complete."]
    else:
        lines = list(summary.uploads or ["Nothing left the clients."])
    if not run.served:
        return lines
    if any(client.accuracy is not None for client in summary.clients):
        lines.append(
            "each round, told: how accurate its networks are on the test set, and how many "
            "images it trained on"
        )
    if any(client.class_counts for client in summary.clients):
        lines.append("once, told: how many images of which class it has")
    return [*lines, "each round: how long it worked, and how many parameters its networks have"]


_SHARED = {"features": "the paper's summary", "features+decoder": "the paper's reviews"}


def shared(share: str | None) -> str | None:
    """A sharing mode, and what of the paper it follows."""
    return f"{share}, after {_SHARED[share]}" if share in _SHARED else share


def own_model(summary: Summary) -> str:
    """What a client's own model is."""
    heads = [one.architecture == "extractor-head" for one in summary.clients]
    if all(heads) and all(one.parameters is None for one in summary.clients):
        return "One head for all clients, worked out from their statistics: nothing was trained."
    return "What each client trained, alone."


_KEPT = {
    "features+decoder": "The classifier.",
    "companion": "Its own network, but not the small one beside it.",
    "heads": "Its network but for the head.",
    "features+heads": "Its network but for the head.",
}
"""Networks that stay, by what is shared; all of them where it is none."""


def kept(run: Run) -> list[str]:
    """Data that did not leave the clients, where they are elsewhere."""
    summary = run.summary
    if not (run.served or summary.home):
        return []
    lines = ["Images and single labels.", _KEPT.get(summary.share or "", "All networks.")]
    if run.served and all(client.accuracy is None for client in summary.clients):
        lines.append("How accurate its networks are.")
    if run.served and not any(client.class_counts for client in summary.clients):
        lines.append("How many images of which class it has.")
    return lines
