"""Pictures that attacks made, beside the truth and beside what needs no attack."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from fedvtc_edge.report.pictures import Strip, strip

from .wording import ordered, unique

if TYPE_CHECKING:
    from ..attempts import Example

Image = NDArray[np.uint8]

TILE = 56  #: CSS pixels that a picture is wide at least.
LARGEST = 64  #: Pixels of a side beyond which a picture is thinned out.
ROWS, PIXEL_BUDGET = 6, 1_200_000  #: Pictures of one attack on one group; raw bytes of a page.


@dataclass(frozen=True, eq=False)
class Picture:
    """One trial of an attack that makes pictures; images are uint8 [H, W, 1 or 3].

    Args:
        attack: Name of the attack.
        view: Name of the adversary.
        label: Name of the class.
        reconstruction: Picture that the attack made of the upload.
        null: Picture that it made of an upload without the target.
        class_mean: Mean of public images of the class.
        ceiling: Mean of the records in the upload.
    """

    attack: str
    view: str
    group: str
    label: str
    target: Image
    reconstruction: Image
    null: Image | None = None
    class_mean: Image | None = None
    ceiling: Image | None = None


@dataclass(frozen=True)
class AttackRow:
    """A trial, as the page shows it; numbers point into the shared strips."""

    label: str
    target: int
    reconstruction: Strip
    null: Strip | None
    class_mean: int | None
    ceiling: int | None


@dataclass(frozen=True)
class Grid:
    """Rows of one attack on one view and group."""

    attack: str
    view: str
    group: str
    rows: list[AttackRow]


@dataclass(frozen=True)
class AttackGallery:
    """Grids, attack by attack, and the strips that several of them share."""

    attacks: dict[str, list[Grid]] = field(default_factory=dict)
    shared: dict[int, Strip] = field(default_factory=dict)
    left_out: int = 0


def shown(examples: Sequence[Example], names: Sequence[str]) -> list[Picture]:
    """Pictures of an audit's examples; a class beyond ``names`` goes by its number."""
    return [_shown(example, names) for example in examples if example.guess.picture is not None]


def gallery(pictures: Sequence[Picture]) -> AttackGallery:
    """Lay pictures out; a page of large colour images must stay light enough to mail."""
    if not pictures:
        return AttackGallery()
    sections: dict[tuple[str, str, str], list[Picture]] = {}
    for picture in pictures:
        sections.setdefault((picture.attack, picture.view, picture.group), []).append(picture)
    size = 5 * max(_thinned(picture.target).size for picture in pictures)
    affordable = PIXEL_BUDGET // (size * len(sections))
    rows = max(1, min(ROWS, affordable))
    # Where not all fit, those of few records, from which most leaks.
    sizes = ordered(group for _, _, group in sections)
    chosen = sorted(sections, key=lambda key: sizes.index(key[2]))
    chosen = chosen[: max(1, PIXEL_BUDGET // (size * rows))]
    shared = _Shared()
    made: dict[str, list[Grid]] = {attack: [] for attack in unique(key[0] for key in sections)}
    for key in chosen:
        made[key[0]].append(Grid(*key, [_row(one, shared) for one in sections[key][:rows]]))
    made = {attack: grids for attack, grids in made.items() if grids}
    return AttackGallery(made, shared.strips, len(sections) - len(chosen))


class _Shared:
    """Truth and means are the same for every attack: each is in the page once."""

    def __init__(self) -> None:
        self.strips: dict[int, Strip] = {}
        self._known: dict[str, int] = {}

    def add(self, image: Image) -> int:
        made = _strip(image)
        place = self._known.setdefault(made.uri, len(self._known))
        self.strips[place] = made
        return place


def _row(picture: Picture, shared: _Shared) -> AttackRow:
    return AttackRow(
        picture.label,
        shared.add(picture.target),
        _strip(picture.reconstruction),
        None if picture.null is None else _strip(picture.null),
        None if picture.class_mean is None else shared.add(picture.class_mean),
        None if picture.ceiling is None else shared.add(picture.ceiling),
    )


def _strip(image: Image) -> Strip:
    return strip(_thinned(image)[None], TILE)


def _thinned(image: Image) -> Image:
    step = -(-max(image.shape[:2]) // LARGEST)
    return image[::step, ::step]


def _shown(example: Example, names: Sequence[str]) -> Picture:
    case = example.trial.case
    label = case.view.label
    null = example.null.picture if example.null is not None else None
    return Picture(
        attack=example.attack,
        view=case.view.who,
        group=example.group,
        label=str(names[label]) if label < len(names) else str(label),
        target=_pixels(case.candidates[example.trial.target]),
        reconstruction=_pixels(example.guess.picture),
        null=None if null is None else _pixels(null),
        class_mean=_pixels(case.view.public.mean(0)) if len(case.view.public) else None,
        ceiling=_pixels(example.trial.average),
    )


def _pixels(picture: Any) -> Image:
    """A tensor [channels, H, W] in [0, 1] as the bytes of an image."""
    values = np.nan_to_num(picture.detach().cpu().double().numpy(), nan=0.0)
    return np.ascontiguousarray(
        np.rint(255 * values.clip(0, 1)).astype(np.uint8).transpose(1, 2, 0)
    )
