"""What there is to classify: names and form of the classes, and images to measure on, if any."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from fedvtc_edge.data import load_dataset
from fedvtc_edge.data.own import DataTerms
from fedvtc_edge.distributed.belongings import unpack_test
from fedvtc_edge.distributed.home import Home
from fedvtc_edge.distributed.leaving import TEST_SET
from fedvtc_edge.errors import RunError
from fedvtc_edge.finished import FinishedRun


class Task(Protocol):
    """What an export needs of a data set; a :class:`~fedvtc_edge.data.Dataset` has it all."""

    @property
    def class_names(self) -> tuple[str, ...]:
        """Of the C classes."""

    @property
    def classes(self) -> int:
        """C."""

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(H, W, channels)."""

    @property
    def x_test(self) -> NDArray[np.uint8]:
        """Evaluation images [M, H, W, channels]; M is 0 where there are none."""

    @property
    def y_test(self) -> NDArray[np.int64]:
        """Their labels [M]."""


@dataclass(frozen=True, eq=False)
class HomeTask:
    """What a client knows of its federation's task; see :class:`Task`.

    Args:
        terms: Classes and shapes, as agreed.
        x_test: uint8 [M, H, W, channels]; M is 0 where the client had no test set.
        y_test: int64 [M].
    """

    terms: DataTerms
    x_test: NDArray[np.uint8]
    y_test: NDArray[np.int64]

    @property
    def class_names(self) -> tuple[str, ...]:
        """Of the C classes."""
        return self.terms.class_names

    @property
    def classes(self) -> int:
        """C."""
        return len(self.terms.class_names)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(H, W, channels)."""
        return self.terms.shape


def task_of(finished: FinishedRun) -> Task:
    """The run's data set; a home's terms and test set, for it need not have the data set.

    Raises:
        DataError: It is not there any more, or damaged.
        RunError: A file of the home is missing.
    """
    if not finished.is_home:
        return load_dataset(finished.config.data)
    path = finished.path / TEST_SET
    try:
        terms = DataTerms.from_json(Home(finished.path, finished.clients[0]).terms())
        packed = path.read_bytes() if path.exists() else None
    except (OSError, UnicodeDecodeError) as error:
        raise RunError(
            f"cannot read the home {finished.path}: {error}", hint="restore its files from a copy"
        ) from None
    if packed is None:
        return HomeTask(terms, np.zeros((0, *terms.shape), np.uint8), np.zeros(0, np.int64))
    test = unpack_test(packed, terms)
    return HomeTask(terms, test.images, test.labels)
