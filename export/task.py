"""Classes, shape and test images of the data set that a run is exported for."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fedvtc_edge.data import load_data
from fedvtc_edge.data.own import TERMS, TEST_SET, DataTerms, unpack_test
from fedvtc_edge.errors import RunError
from fedvtc_edge.runs.finished import FinishedRun


@dataclass(frozen=True, eq=False)
class ClassificationTask:
    """Interface of a data set that can be exported for.

    Args:
        x_test: Evaluation images, uint8 [M, H, W, channels]; M is 0 where there are none.
        y_test: Their labels, int64 [M].
    """

    class_names: tuple[str, ...]
    image_shape: tuple[int, int, int]
    x_test: NDArray[np.uint8]
    y_test: NDArray[np.int64]

    @property
    def classes(self) -> int:
        """C."""
        return len(self.class_names)


def task_of(finished: FinishedRun) -> ClassificationTask:
    """The task of a run's data set, or of a client's folder, which need not have the data set.

    Raises:
        DataError: The data set is not there any more, or damaged.
        RunError: A file of the client's folder is missing.
    """
    if not finished.is_home:
        data = load_data(finished.config)
        return ClassificationTask(data.class_names, data.image_shape, data.x_test, data.y_test)
    path = finished.path / TEST_SET
    try:
        terms = DataTerms.from_json((finished.path / TERMS).read_text("utf-8"))
        packed = path.read_bytes() if path.exists() else None
    except (OSError, UnicodeDecodeError) as error:
        raise RunError(
            f"cannot read the home {finished.path}: {error}", hint="restore its files from a copy"
        ) from None
    images, labels = np.zeros((0, *terms.shape), np.uint8), np.zeros(0, np.int64)
    if packed is not None:
        test = unpack_test(packed, terms)
        images, labels = test.images, test.labels
    return ClassificationTask(terms.class_names, terms.shape, images, labels)
