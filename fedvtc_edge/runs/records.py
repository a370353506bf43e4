"""Records of a run's JSON files: one type each for writers, readers and reports.

Fields stand in the order of the files' keys. A writer sets what it knows, and only what was set
is written (:meth:`Record.document`); a reader may miss every key that has a default.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Literal, TypedDict, TypeVar, cast

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from fedvtc_edge.documents import parse_json
from fedvtc_edge.errors import RunError

from .exact_mean import ExactMean

SCHEMA = 1
_LARGEST = 100_000_000
_AGAIN = "restore the file, or run it again: it cannot be trusted"

Fraction = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=0)]
Amount = Annotated[float, Field(ge=0)]
Recalls = list[Fraction | None]
Outcome = Literal["done", "late", "dropped", "unreachable"]


class Record(BaseModel):
    """One JSON object; unknown keys are left alone."""

    model_config = ConfigDict(
        extra="ignore",
        validate_assignment=True,
        allow_inf_nan=False,
        coerce_numbers_to_str=True,
    )

    def document(self) -> dict[str, Any]:
        """Keys that were set, in the order of the file."""
        return self.model_dump(exclude_unset=True)


RECALL_DECIMALS = 4
"""Of a recall in a record: finer than one image of a class in any of the test sets."""

R = TypeVar("R", bound=Record)


class Line(Record):
    """One client in one turn of the virtual clock; seconds, one after another."""

    outcome: Outcome
    download: Amount
    compute: Amount
    upload: Amount
    wait: Amount = 0.0

    @property
    def busy(self) -> float:
        """Seconds at work or on the network."""
        return self.download + self.compute + self.upload


class ClockRecord(Record):
    """One round, or one call before the first, of all clients that it was for."""

    begin: Amount
    end: Amount
    void: str = ""
    clients: dict[str, Line]

    @model_validator(mode="after")
    def _forward(self) -> ClockRecord:
        if self.end < self.begin:
            raise ValueError(f"it ends at {self.end:g}, before it begins")
        return self

    def words(self) -> list[str]:
        """Participants in words, and the virtual time."""
        outcomes = Counter(line.outcome for line in self.clients.values())
        missed = ", ".join(f"{n} {name}" for name, n in sorted(outcomes.items()) if name != "done")
        told = f"{outcomes['done']} of {len(self.clients)} took part"
        void = f", round void: {self.void}" if self.void else ""
        return [told + (f" ({missed})" if missed else "") + void, f"clock {self.end:.0f} s"]


class Accuracies(TypedDict):
    """Accuracies of a client as fractions, None where not known.

    On the global test set; ``own_distribution`` and ``home`` weight it by the client's classes,
    and ``home`` and ``held_out`` add its own prior. ``recall`` is per class, [C].
    """

    accuracy: float | None
    accuracy_local_only: float | None
    accuracy_absent_classes: float | None
    accuracy_absent_classes_local_only: float | None
    accuracy_calibrated: float | None
    accuracy_own_distribution: float | None
    accuracy_own_distribution_calibrated: float | None
    accuracy_own_distribution_control: float | None
    accuracy_own_distribution_local_only: float | None
    accuracy_home: float | None
    accuracy_home_calibrated: float | None
    accuracy_home_control: float | None
    accuracy_home_local_only: float | None
    accuracy_held_out: float | None
    accuracy_held_out_calibrated: float | None
    accuracy_held_out_control: float | None
    accuracy_held_out_local_only: float | None
    recall: list[float | None] | None


ACCURACIES = tuple(Accuracies.__annotations__)


class ClientRecord(Record):
    """One client in one round, or at the end of a run; bytes and seconds are of that span."""

    id: str
    architecture: str | None = None
    architecture_wanted: str | None = None
    device: str | None = None
    samples: Count | None = None
    classes_present: Count | None = None
    class_counts: list[Count] | None = None
    parameters: Count | None = None
    accuracy: Fraction | None = None
    accuracy_local_only: Fraction | None = None
    accuracy_absent_classes: Fraction | None = None
    accuracy_absent_classes_local_only: Fraction | None = None
    accuracy_calibrated: Fraction | None = None
    accuracy_own_distribution: Fraction | None = None
    accuracy_own_distribution_calibrated: Fraction | None = None
    accuracy_own_distribution_control: Fraction | None = None
    accuracy_own_distribution_local_only: Fraction | None = None
    accuracy_home: Fraction | None = None
    accuracy_home_calibrated: Fraction | None = None
    accuracy_home_control: Fraction | None = None
    accuracy_home_local_only: Fraction | None = None
    accuracy_held_out: Fraction | None = None
    accuracy_held_out_calibrated: Fraction | None = None
    accuracy_held_out_control: Fraction | None = None
    accuracy_held_out_local_only: Fraction | None = None
    recall: Recalls | None = None
    took_part: bool | None = None
    evaluated_round: Count | None = None
    upload_bytes: Count | None = None
    download_bytes: Count | None = None
    peak_memory_mb: Amount | None = None
    seconds: Annotated[int | float, Field(ge=0)] | None = None  # whole where they are not told
    seconds_virtual: Amount | None = None
    rounds_missed: dict[str, Count] | None = None
    epsilon: Amount | None = None

    @property
    def accuracies(self) -> Accuracies:
        """The measured ones alone."""
        return cast(Accuracies, {key: getattr(self, key) for key in ACCURACIES})


class Means(TypedDict):
    """Accuracies over clients, None where no client's is known."""

    accuracy_mean: float | None
    accuracy_worst: float | None
    accuracy_local_only_mean: float | None
    accuracy_absent_classes_mean: float | None
    accuracy_absent_classes_local_only_mean: float | None
    accuracy_calibrated_mean: float | None
    accuracy_own_distribution_mean: float | None
    accuracy_own_distribution_calibrated_mean: float | None
    accuracy_own_distribution_control_mean: float | None
    accuracy_own_distribution_local_only_mean: float | None
    accuracy_home_mean: float | None
    accuracy_home_calibrated_mean: float | None
    accuracy_home_control_mean: float | None
    accuracy_home_local_only_mean: float | None
    accuracy_held_out_mean: float | None
    accuracy_held_out_calibrated_mean: float | None
    accuracy_held_out_control_mean: float | None
    accuracy_held_out_local_only_mean: float | None
    recall_mean: list[float | None] | None


LABELS = {
    "accuracy_mean": "own model",
    "accuracy_calibrated_mean": "combined",
    "accuracy_control": "statistics only (no training)",
    "accuracy_local_only_mean": "local only",
}
"""What users read of a run's four accuracies; always side by side, for one alone misleads."""

OPERATING_POINTS = {
    "global": tuple(LABELS),
    **{
        label: tuple(
            f"accuracy_{point}{expert}_mean"
            for expert in ("", "_calibrated", "_control", "_local_only")
        )
        for label, point in (
            ("home, uniform prior", "own_distribution"),
            ("home, own prior", "home"),
            ("held-out own images, own prior", "held_out"),
        )
    },
}
"""Keys of the same four accuracies at each operating point, in the order of ``LABELS``."""


class RoundRecord(Record):
    """One line of ``metrics.jsonl``; bytes and seconds are those of this round alone."""

    round: Count
    accuracy_mean: Fraction | None = None
    accuracy_worst: Fraction | None = None
    accuracy_local_only_mean: Fraction | None = None
    accuracy_absent_classes_mean: Fraction | None = None
    accuracy_absent_classes_local_only_mean: Fraction | None = None
    accuracy_calibrated_mean: Fraction | None = None
    accuracy_control: Fraction | None = None
    accuracy_own_distribution_mean: Fraction | None = None
    accuracy_own_distribution_calibrated_mean: Fraction | None = None
    accuracy_own_distribution_control_mean: Fraction | None = None
    accuracy_own_distribution_local_only_mean: Fraction | None = None
    accuracy_home_mean: Fraction | None = None
    accuracy_home_calibrated_mean: Fraction | None = None
    accuracy_home_control_mean: Fraction | None = None
    accuracy_home_local_only_mean: Fraction | None = None
    accuracy_held_out_mean: Fraction | None = None
    accuracy_held_out_calibrated_mean: Fraction | None = None
    accuracy_held_out_control_mean: Fraction | None = None
    accuracy_held_out_local_only_mean: Fraction | None = None
    recall_mean: Recalls | None = None
    recall_control: Recalls | None = None
    seconds: Amount | None = None
    upload_bytes: Count | None = None
    download_bytes: Count | None = None
    void: str | None = None
    clients: list[ClientRecord] = Field(default_factory=list)
    clock: list[ClockRecord] = Field(default_factory=list)

    def words(self) -> str:
        """The round as its line of progress tells it."""
        values = {key: getattr(self, key) for key in LABELS}
        parts = [f"{LABELS[k]} {100 * v:.1f} %" for k, v in values.items() if v is not None]
        if self.clock:
            parts += self.clock[-1].words()
        if self.void is not None:  # served: who was heard is not known beforehand
            heard = sum(client.took_part is True for client in self.clients)
            parts.insert(0, f"{heard} of {len(self.clients)} took part")
            if self.void:
                parts.append("void")
        return ", ".join(parts)


class SatOut(Record):
    """A client that no architecture fits."""

    id: str
    architecture: str
    device: str


class Summary(Record):
    """``summary.json``: every key but ``clients`` may be missing or null."""

    version: str | None = None
    seed: int | None = None
    method: str | None = None
    data: str | None = None
    evaluated_on: str | None = None
    partition: str | None = None
    alpha: Amount | None = None
    share: str | None = None
    moments: str | None = None
    ablate: list[str] = Field(default_factory=list)
    engine: str | None = None
    device: str | None = None
    rounds: Count | None = None
    class_names: list[str] = Field(default_factory=list)
    clients: list[ClientRecord]
    sat_out: list[SatOut] = Field(default_factory=list)
    notes: list[str] = Field(default_factory=list)
    accuracy_mean: Fraction | None = None
    accuracy_worst: Fraction | None = None
    accuracy_local_only_mean: Fraction | None = None
    accuracy_absent_classes_mean: Fraction | None = None
    accuracy_absent_classes_local_only_mean: Fraction | None = None
    accuracy_calibrated_mean: Fraction | None = None
    accuracy_control: Fraction | None = None
    accuracy_own_distribution_mean: Fraction | None = None
    accuracy_own_distribution_calibrated_mean: Fraction | None = None
    accuracy_own_distribution_control_mean: Fraction | None = None
    accuracy_own_distribution_local_only_mean: Fraction | None = None
    accuracy_home_mean: Fraction | None = None
    accuracy_home_calibrated_mean: Fraction | None = None
    accuracy_home_control_mean: Fraction | None = None
    accuracy_home_local_only_mean: Fraction | None = None
    accuracy_held_out_mean: Fraction | None = None
    accuracy_held_out_calibrated_mean: Fraction | None = None
    accuracy_held_out_control_mean: Fraction | None = None
    accuracy_held_out_local_only_mean: Fraction | None = None
    recall_mean: Recalls | None = None
    recall_control: Recalls | None = None
    gain: float | None = None
    upload_bytes_total: Count | None = None
    download_bytes_total: Count | None = None
    uploads: list[str] | None = None
    epsilon: Amount | None = None
    delta: Amount | None = None
    privacy_unit: str | None = None
    privacy_mechanism: str | None = None
    privacy_covers: str | None = None
    seconds: Amount | None = None
    seconds_virtual: Amount | None = None
    samples_per_second: Amount | None = None
    extractor_choice: dict[str, Fraction] | None = None
    home: bool = False

    def document(self) -> dict[str, Any]:
        """The content of ``summary.json``."""
        return {"schema": SCHEMA, **super().document()}

    @property
    def classes(self) -> list[str]:
        """Every class by name, or by number where the run gave no names."""
        width = max((len(client.class_counts or ()) for client in self.clients), default=0)
        return self.class_names or [str(label) for label in range(width)]

    def elsewhere(self, directory: Path) -> bool:
        """True if the clients of the run in ``directory`` kept their networks and images."""
        served = self.engine == "flower" and not self.home
        return served and not any(directory.glob("clients/*/client.json"))


def mean(values: Iterable[float | None]) -> float | None:
    """Mean of the values that are known, or None."""
    found = ExactMean()
    for value in values:
        if value is not None:
            found.add(value)
    return found.value


def read_record(kind: type[R], path: Path, *, strict: bool = False) -> R:
    """A record that is a file of its own.

    Args:
        path: The file.
        strict: Whether to refuse values of another type that could be turned into the right one.

    Raises:
        RunError: The file cannot be read, is of another schema, or is damaged.
    """
    try:
        if path.stat().st_size > _LARGEST:
            raise ValueError("it is too large")
        document = parse_json(path.read_text("utf-8"))
        if not isinstance(document, dict):
            raise ValueError(f"it holds a {type(document).__name__}, expected an object")
        if document.get("schema") != SCHEMA:
            raise ValueError(f"schema {document.get('schema')}, expected {SCHEMA}")
        return kind.model_validate(document, strict=strict)
    except (OSError, ValueError) as error:
        raise RunError(f"{path} is damaged: {_words(error)}", hint=_AGAIN) from None


def read_rounds(path: Path) -> list[RoundRecord]:
    """Lines of ``metrics.jsonl`` in order; none where there is no file.

    A resumed run may have written a round twice: the later line holds. A torn last line is of a
    process that died while it wrote: its round counts as not done.

    Raises:
        RunError: The file cannot be read, or a line is damaged.
    """
    rounds: dict[int, RoundRecord] = {}
    number = 0
    try:
        text = path.read_text("utf-8") if path.is_file() else ""
        lines = [line for line in text.split("\n") if line.strip()]
        for number, line in enumerate(lines, start=1):
            try:
                document = parse_json(line)
            except ValueError as error:
                if number == len(lines):
                    break
                raise ValueError(f"it is not JSON: {error}") from None
            record = RoundRecord.model_validate(document)
            rounds[record.round] = record
    except (OSError, ValueError) as error:
        where = f" line {number}" if number else ""
        raise RunError(f"{path}{where} is damaged: {_words(error)}", hint=_AGAIN) from None
    return [rounds[number] for number in sorted(rounds)]


def _words(error: Exception) -> str:
    """What is wrong; of a validation, the first finding with the value that was found."""
    if not isinstance(error, ValidationError):
        return str(error)
    first = error.errors(include_url=False)[0]
    where = ".".join(map(str, first["loc"])) or "the document"
    return f"{where} is {first['input']!r:.80}: {first['msg']}"
