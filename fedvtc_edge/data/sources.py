"""From a name or a path to a checked `Dataset`."""

from __future__ import annotations

import difflib
import os
from contextlib import suppress
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from fedvtc_edge.errors import DataError, MissingExtra

from .arrays import open_arrays
from .dataset import Dataset, Labels, as_labels, check_canvas
from .public import REST, public_images, rest_of
from .splits import Part, Source, Split, stratified, subset
from .torchvision_sets import SETS, canonical, open_torchvision
from .trees import is_image_folder

if TYPE_CHECKING:  # a device reads images without any settings
    from fedvtc_edge.config import Config, DataSettings

# Fixed, and not the run's seed: what is learned from must not change from seed to seed,
# or the spread over seeds would mix the luck of the draw with the method's.
_SPLIT_SEED = 1_000_003
_HOLDOUT_SEED = 1_000_033
_LIMIT_SEED = 1_000_037

BUILTIN = ("digits",)
"""Data sets that come with an installed package: naming one opens no path of the user's."""

_DIGITS_TEST = 500
_HOLDOUT_SHARE = 5  # one in five


def load_data(config: Config) -> Dataset:
    """The data set of a run; under a privacy mode it must say what its classes are.

    Raises:
        DataError: Not found, damaged, or without a public list of classes where one is needed.
        MissingExtra: The source needs a package that is not installed.
    """
    return load_dataset(config.data, public_classes=config.privacy.mode != "none")


def load_dataset(settings: DataSettings, *, public_classes: bool = False) -> Dataset:
    """Find, read and check the data set that the settings name.

    ``settings.name`` is looked up as: the built-in ``digits``; a path; ``<name>.npz``,
    ``<name>.zip`` or an image folder ``<name>`` in ``settings.root`` (empty: the current
    directory); a torchvision set below that root. Nothing is ever downloaded.

    With ``evaluate = "validation"`` a stratified fifth of the training set takes the place
    of the test set, which is then not read at all. After that, ``limit`` and ``test_limit``
    each draw a random subset. Which samples are held out and drawn is fixed: it does not
    depend on ``Config.seed``.

    Args:
        public_classes: Refuse a set that does not say what its classes are: a list taken
            from the labels tells of them, and privacy needs one that does not.

    Raises:
        DataError: Not found, damaged, or not what `Dataset` expects.
        MissingExtra: The source needs a package that is not installed.
    """
    source = _find(settings)
    train = source.open("train")
    if public_classes and not source.class_names:
        raise DataError(
            f"{train.origin}: no class_names, and under a privacy mode the list of classes "
            "must be public, not counted from the labels",
            hint="save the names too: np.savez(path, …, class_names=np.array([…]))",
        )
    class_names = source.class_names or _numbered(train)
    if settings.evaluate == "validation":
        held = max(1, round(len(train.labels) / _HOLDOUT_SHARE))
        kept, out = stratified(train.labels, held, _HOLDOUT_SEED)
        train, test = train.take(kept), train.take(out)
    else:
        test = source.open("test")
    for split in (train, test):
        as_labels(split.labels, f"{split.origin}: y_{split.part}", len(class_names))
    whole, kept = train, subset(len(train.labels), settings.limit, _LIMIT_SEED)
    train, test = whole.take(kept), _limited(test, settings.test_limit)
    x_train, public = train.read(settings.image_size), None
    if settings.public == REST:
        public = rest_of(whole, settings.limit, kept)
    elif settings.public and settings.public.lower() == settings.name.lower():
        raise DataError(
            f"data.public = {settings.public!r:.80} names the clients' own images",
            hint=f'the training images that data.limit leaves out are called "{REST}"',
        )
    elif settings.public:
        public = _find(settings.model_copy(update={"name": settings.public})).open("train")
    return Dataset(
        name=source.name,
        x_train=x_train,
        y_train=train.labels,
        x_test=test.read(settings.image_size),
        y_test=test.labels,
        class_names=class_names,
        x_public=None if public is None else public_images(public, settings, x_train.shape[1:]),
    )


def _limited(split: Split, limit: int) -> Split:
    return split.take(subset(len(split.labels), limit, _LIMIT_SEED))


def _numbered(train: Split) -> tuple[str, ...]:
    # From the training labels alone: the test set has no say in what there is to learn.
    return tuple(str(label) for label in range(int(train.labels.max(initial=-1)) + 1))


def _find(settings: DataSettings) -> Source:
    name, root = settings.name, Path(os.path.expanduser(settings.root or "."))
    if name.lower() in BUILTIN:
        return _digits()
    path = _path(name, root)
    if path is not None:
        if path.suffix.lower() == ".npz" and path.is_file():
            return open_arrays(path)
        if path.suffix.lower() != ".zip" and path.is_file():
            raise DataError(
                f"{path}: a {path.suffix or 'nameless'} file; expected .npz, .zip or a folder",
                hint="np.savez(path, x_train=…, y_train=…, x_test=…, y_test=…)",
            )
        from .folders import open_folder

        return open_folder(path)
    known = canonical(name)
    if known is None:
        raise _unknown(name, root)
    return open_torchvision(known, root)


def _path(name: str, root: Path) -> Path | None:
    """The file or folder that `name` stands for, or None."""
    given = Path(os.path.expanduser(name))
    for path in (given, root / given):
        # A folder with a set's name counts only if it has images: on a disk that ignores
        # case, torchvision's own MNIST/raw would pass for an image folder "mnist".
        if (
            os.path.isfile(path)
            or is_image_folder(path)
            or (_is_path(name) and os.path.isdir(path))
        ):
            return path
    for stem in dict.fromkeys((name, name.lower())):
        for suffix in (".npz", ".zip"):
            if os.path.isfile(root / f"{stem}{suffix}"):
                return root / f"{stem}{suffix}"
        if is_image_folder(root / stem):
            return root / stem
    if _is_path(name):
        raise DataError(
            f"no data set at {given}; expected an .npz file, a .zip file or an image folder",
            hint=f"relative paths start at {Path.cwd()} or at data.root ({root})",
        )
    return None


def _is_path(name: str) -> bool:
    return Path(name).suffix.lower() in (".npz", ".zip") or len(Path(name).parts) != 1


def _unknown(name: str, root: Path) -> DataError:
    names = {known.lower(): known.lower() for known in ("digits", *SETS)}
    with suppress(OSError):  # a root that cannot be listed has no names to offer
        for entry in sorted(root.iterdir()):
            if entry.suffix.lower() in (".npz", ".zip"):
                names[entry.stem.lower()] = entry.stem
    near = difflib.get_close_matches(name.lower(), names, n=3, cutoff=0.6)
    return DataError(
        f"unknown data set {name!r}; expected digits, a torchvision set, or a name or path of an "
        f".npz file, .zip file or image folder (data.root is {root})",
        hint=f"did you mean {' or '.join(names[match] for match in near)}?"
        if near
        else f"names: {', '.join(sorted(names.values()))}",
    )


def _digits() -> Source:
    """scikit-learn's 1,797 digits of 8×8 pixels, split 1,297 to 500."""
    found = find_spec("sklearn")
    if found is None or found.origin is None:
        raise MissingExtra(
            "the built-in digits come with scikit-learn, which is not installed",
            hint="pip install 'fedvtc-edge[train]', or set data.name to an .npz file",
        )
    # As sklearn.datasets.load_digits reads it, but for the second that its import takes.
    file = Path(found.origin).parent / "datasets" / "data" / "digits.csv.gz"
    rows = np.loadtxt(file, delimiter=",")
    # 0 to 16 in the original; + 0.5 so that halves round up, as on paper.
    images = np.floor(rows[:, :-1] * 255 / 16 + 0.5).astype(np.uint8).reshape(-1, 8, 8, 1)
    labels: Labels = rows[:, -1].astype(np.int64)
    kept, held = stratified(labels, _DIGITS_TEST, _SPLIT_SEED)

    def open_part(part: Part) -> Split:
        chosen = kept if part == "train" else held
        return Split.of_array("digits", part, images, labels).take(chosen)

    return Source("digits", tuple("0123456789"), open_part)


# ---------------------------------------------------------------- survey
# Size of a data set, from one of its images instead of all.


@dataclass(frozen=True, eq=False)
class Survey:
    """Shapes and labels of a data set, before its images are loaded.

    Args:
        size: Height and width of an image.
        channels: 1 or 3.
        classes: Number C of classes.
        labels: Of the training images, [N] in 0…C-1.
    """

    size: int
    channels: int
    classes: int
    labels: Labels


def survey(settings: DataSettings) -> Survey:
    """Look at the data set that :func:`~fedvtc_edge.data.load_dataset` would load.

    The first training image speaks for all of them: whether they are of one size is for
    the loader to find out.

    Raises:
        DataError: Not found, damaged, or images of a size that no decoder has.
        MissingExtra: The source needs a package that is not installed.
    """
    source = _find(settings)
    train = source.open("train")
    classes = len(source.class_names or _numbered(train))
    if settings.evaluate == "validation":
        held = max(1, round(len(train.labels) / _HOLDOUT_SHARE))
        train = train.take(stratified(train.labels, held, _HOLDOUT_SEED)[0])
    as_labels(train.labels, f"{train.origin}: y_train", classes)
    train = _limited(train, settings.limit)
    image = train.take(np.zeros(1, np.int64)).read(settings.image_size)
    check_canvas(image.shape, train.origin)
    return Survey(image.shape[1], image.shape[3], classes, train.labels)
