"""Cells of a comparison: one run each, whose result is one file, bound to its settings."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from fedvtc_edge.config import CompareSettings, Config
from fedvtc_edge.documents import parse_json
from fedvtc_edge.errors import RunError
from fedvtc_edge.runs.directory import as_json, as_toml, version
from fedvtc_edge.runs.records import SCHEMA
from fedvtc_edge.storage.atomic import write_atomic

Result = dict[str, Any]
"""Of a cell: ``figures`` by name and ``seconds``; or ``refused``, the reason why it has none."""

FOLDER = "cells"
"""Folder of cells' files in a comparison's folder."""

_LARGEST = 1_000_000


@dataclass(frozen=True)
class Cell:
    """One run of a comparison.

    Args:
        kind: ``score`` for a reported accuracy, ``tune`` for one on validation data, ``audit``.
        data: Label of its data set.
        alpha: Of its split; None where none is drawn.
        row: Name of its row.
        config: Everything that decides its result.
    """

    kind: Literal["score", "tune", "audit"]
    data: str
    alpha: float | None
    row: str
    config: Config

    @property
    def seed(self) -> int:
        """Seed of the run."""
        return self.config.seed

    @property
    def identity(self) -> list[Any]:
        """Values by which it differs from every other cell of a comparison."""
        knob = self.config.method.knob if self.kind == "tune" else None
        return [self.kind, self.data, self.alpha, self.row, self.seed, knob]

    @property
    def digest(self) -> str:
        """Digest of the settings that its result may depend on."""
        engine = {"device": self.config.engine.device, "precision": self.config.engine.precision}
        own = self.config.model_dump() | {"engine": engine, "compare": {}}
        own["data"]["root"] = ""
        return hashlib.sha256(as_toml(Config.model_validate(own))).hexdigest()

    @property
    def file(self) -> str:
        """Name of its file: readable, and unlike that of any other cell."""
        unlike = hashlib.sha256(json.dumps(self.identity).encode()).hexdigest()[:8]
        alpha = "" if self.alpha is None else f"-a{self.alpha:g}"
        words = f"{self.data}{alpha}-{self.row}-s{self.seed}-{self.kind}"
        return f"{re.sub(r'[^A-Za-z0-9._-]+', '-', words)[:120]}-{unlike}.json"

    @property
    def title(self) -> str:
        """Cell in words, as progress tells it."""
        alpha = "" if self.alpha is None else f", α {self.alpha:g}"
        tried = self.config.method.knob if self.kind == "tune" else None
        what = {"score": "", "audit": ", audit"}.get(self.kind, f", knob {tried}")
        return f"{self.data}{alpha}: {self.row}, seed {self.seed}{what}"


class CellStore:
    """Results of cells, one file each; in memory alone where no folder is given.

    Args:
        folder: Of the comparison, or None.
    """

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder
        self._folder = None if folder is None else folder / FOLDER
        self._results: dict[str, Result] = {}
        if self._folder is not None:
            self._folder.mkdir(exist_ok=True)

    def read(self, cell: Cell) -> Result | None:
        """Result of a cell, or None where it is still to be had.

        Raises:
            RunError: The file is damaged, or of other settings or another version.
        """
        if cell.file not in self._results and self._folder is not None:
            path = self._folder / cell.file
            if path.is_file():
                self._results[cell.file] = _checked(path, cell)
        return self._results.get(cell.file)

    def write(self, cell: Cell, result: Result) -> None:
        """Keep a result; when this returns it is on the disk."""
        self._results[cell.file] = result
        if self._folder is not None:
            kind, data, alpha, row, seed, knob = cell.identity
            told = {"kind": kind, "data": data, "alpha": alpha, "method": row, "seed": seed}
            document = {
                "schema": SCHEMA,
                "version": version(),
                "settings": cell.digest,
                **told,
                "knob": knob,
                "config": cell.config.model_dump(mode="json", exclude_none=True),
                "result": result,
            }
            write_atomic(self._folder / cell.file, as_json(document))

    def known(self, cells: Iterable[Cell]) -> dict[Cell, Result]:
        """Results of those cells that have one."""
        found = {cell: self.read(cell) for cell in cells}
        return {cell: result for cell, result in found.items() if result is not None}


def _checked(path: Path, cell: Cell) -> Result:
    """Content of a cell's file, if it is this cell's."""
    try:
        if path.stat().st_size > _LARGEST:
            raise ValueError("it is too large")
        document = parse_json(path.read_bytes())
        made, settings, result = document["version"], document["settings"], document["result"]
        figures = result.get("figures", {})
        if not isinstance(figures, dict) or ("refused" in result) == bool(figures):
            raise ValueError("it holds no result")
        told = figures.values() if cell.kind != "audit" else ()  # an audit's are words
        known = [value for value in told if value is not None]
        if not all(_is_number(value) for value in (result["seconds"], *known)):
            raise ValueError("it holds what is no number")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise RunError(
            f"{path} is damaged: {error}", hint="delete the file: its run is done again"
        ) from None
    if made != version():
        raise RunError(
            f"{path} was made by fedvtc-edge {made}, this is {version()}",
            hint=f"pip install fedvtc-edge=={made}, or choose another --out",
        )
    if settings != cell.digest:
        raise RunError(
            f"{path} was measured with other settings than are asked for now",
            hint="choose another --out, or give the settings that the file holds as config",
        )
    return dict(result)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def alone_in(config: Config) -> Config:
    """Settings of one cell as it runs: in one process, measured in the last round alone."""
    engine = {"name": "local", "workers": 1, "evaluate_every": 100_000}
    return config.replace(compare=CompareSettings().model_dump(), engine=engine)
