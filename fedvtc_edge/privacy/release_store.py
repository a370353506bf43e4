"""Noised releases, kept before they leave, so that a retry sends the same bytes.

Noise drawn twice is spent twice: two noised answers to one question average to a
better one. What was drawn once is therefore on disk before anybody sees it: :meth:`sync` comes
between drawing and sending, once for all that an exchange sends.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from fedvtc_edge.storage.atomic import OWNER_ONLY, sync_files, write_atomic

_KEY = "noise.key"

SERVER = "server"
"""Who releases where uploads are noised in sum; no client has that id."""


class ReleaseStore:
    """Each client's releases of one run, or the server's.

    Args:
        folder: The run directory; None keeps them for the time of the process.
    """

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder
        self._kept: dict[tuple[str, str], bytes] = {}
        self._unsynced: list[Path] = []

    def once(self, sender: str, kind: str, draw: Callable[[], bytes]) -> bytes:
        """The bytes that ``sender`` releases as ``kind``: drawn the first time, then kept.

        They must not leave before :meth:`sync`.
        """
        if self._folder is None:
            if (sender, kind) not in self._kept:
                self._kept[sender, kind] = draw()
            return self._kept[sender, kind]
        path = self._home(self._folder, sender) / f"{kind}.release"
        if not path.is_file():
            data = draw()
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomic(path, data, durable=False, mode=OWNER_ONLY)
        self._unsynced.append(path)  # one that was there, too: a killed process may have drawn it
        return path.read_bytes()

    def sync(self) -> None:
        """Make all that was drawn durable: past this no crash has it drawn again."""
        if self._unsynced:
            sync_files(self._unsynced)
            self._unsynced = []

    def secret(self, sender: str, draw: Callable[[], bytes]) -> bytes:
        """The key of ``sender``'s noise: whoever reads it can take the noise off again."""
        if self._folder is None:
            return self.once(sender, "key", draw)
        path = self._home(self._folder, sender) / _KEY
        if not path.is_file():
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomic(path, draw(), mode=OWNER_ONLY)
        return path.read_bytes()

    def forget_secrets(self) -> None:
        """Delete every key: what was noised is done, and nobody may take the noise off again."""
        self._kept = {name: data for name, data in self._kept.items() if name[1] != "key"}
        if self._folder is not None:
            for path in sorted((self._folder / "clients").glob(f"*/{_KEY}")):
                path.unlink()

    @staticmethod
    def _home(folder: Path, sender: str) -> Path:
        return folder / SERVER if sender == SERVER else folder / "clients" / sender
