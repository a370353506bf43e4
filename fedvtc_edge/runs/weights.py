"""Weights of clients on disk, each in a file that is named by its client and its content.

A file is never changed: a client that was trained gets another one, and the old one is removed
once no checkpoint names it. The cost of a round therefore follows those that changed.
"""

from __future__ import annotations

import hashlib
import shutil
import tempfile
import weakref
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from fedvtc_edge.errors import RunError
from fedvtc_edge.storage.atomic import write_atomic

from .checkpoint import naming_damage

if TYPE_CHECKING:
    from torch import Tensor

_DIGITS = 32
"""Hexadecimal digits of the hash in a file's name."""

_SUFFIX = ".safetensors"


class WeightStore:
    """Folder of clients' weights.

    Args:
        folder: Made when the first weights are kept; None is a temporary folder, which goes
            with this object.

    Attributes:
        loose: Files that nobody has flushed to the disk yet.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self._given = folder
        self._scratch: Path | None = None
        self.loose: list[Path] = []

    @property
    def folder(self) -> Path:
        """The folder, made if need be."""
        if self._given is not None:
            self._given.mkdir(exist_ok=True)
            return self._given
        if self._scratch is None:
            self._scratch = Path(tempfile.mkdtemp(prefix="fedvtc-"))
            weakref.finalize(self, shutil.rmtree, self._scratch, ignore_errors=True)
        return self._scratch

    def keep(self, client: str, tensors: Mapping[str, Tensor]) -> str:
        """Write a client's weights unless they lie there; not durable before they are flushed.

        Args:
            tensors: By ``module/parameter``, on the CPU.

        Returns:
            The name to read them by.
        """
        from safetensors.torch import save

        data = save(dict(tensors))
        name = f"{client}.{hashlib.sha256(data).hexdigest()[:_DIGITS]}"
        path = self.folder / f"{name}{_SUFFIX}"
        if not path.is_file():
            write_atomic(path, data, durable=False)
            if self._given is not None:
                self.loose.append(path)
        return name

    def take_up(self, name: str) -> None:
        """Know of weights that another process has kept here."""
        if self._given is not None:
            self.loose.append(self._given / f"{name}{_SUFFIX}")

    def read(self, name: str) -> dict[str, Tensor]:
        """Weights by ``module/parameter``.

        Raises:
            RunError: The file is missing or not what was written.
        """
        from safetensors.torch import load

        path = self.folder / f"{name}{_SUFFIX}"
        with naming_damage(path, "start the run again in a new folder"):
            data = path.read_bytes()
            if hashlib.sha256(data).hexdigest()[:_DIGITS] != name.rpartition(".")[2]:
                raise ValueError("its bytes are not those that were written")
            return load(data)

    def remove(self, names: Iterable[str]) -> None:
        """Remove weights that nobody needs any more."""
        for name in names:
            (self.folder / f"{name}{_SUFFIX}").unlink(missing_ok=True)

    def remove_others(self, names: Collection[str]) -> None:
        """Remove all weights but these: a killed process leaves some that count nowhere.

        Raises:
            RunError: Some of these are missing.
        """
        wanted = set(names)
        if not wanted and (self._given is None or not self._given.is_dir()):
            return
        there = {path.name.removesuffix(_SUFFIX) for path in self.folder.glob(f"*{_SUFFIX}")}
        if lost := wanted - there:
            raise RunError(
                f"{self.folder} lacks the weights of {len(lost)} clients, {min(lost)} among them",
                hint="restore the folder from a copy, or start the run again in a new one",
            )
        self.remove(there - wanted)
