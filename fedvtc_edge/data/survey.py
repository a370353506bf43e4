"""How large a data set is, with one of its images read instead of all."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fedvtc_edge.config import DataSettings

from .dataset import Labels, as_labels, check_canvas
from .sources import _HOLDOUT_SEED, _HOLDOUT_SHARE, _find, _limited, _numbered
from .splits import stratified


@dataclass(frozen=True, eq=False)
class Survey:
    """What is to be known of a data set before it is worth loading.

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
        DataError: Not found, damaged, or images that cannot be painted.
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
