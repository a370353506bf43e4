"""Names that architectures, extractors, methods and attacks go by, and whence they come.

A registry has what ships with the package, what a plug-in registered, and what an
installed distribution offers as an entry point. A plug-in is a Python module or file that
the user names, on the command line with ``--plugin`` or here with :func:`load`; processes
that this one starts find it in their environment and load it when they first look up a
name. No plug-in is ever taken from a run directory, a bundle or a message.
"""

from __future__ import annotations

import difflib
import functools
import hashlib
import importlib
import importlib.util
import os
import shlex
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any, ClassVar, Generic, Protocol, TypeVar

from .errors import ConfigError, FedVTCError, UsageError

VARIABLE = "FEDVTC_PLUGINS"
"""Environment variable with plug-ins, separated as the folders of PATH are."""

T = TypeVar("T")


class PluginError(UsageError):
    """A plug-in that is not there, cannot be imported, or offers what is no use."""


class Registry(Generic[T]):
    """Things of one kind by their names.

    Args:
        key: Where a user writes such a name.
        group: Entry-point group in which installed distributions offer more.
        builtins: Module whose import registers what ships with the package; empty where
            whoever asks has imported it.
        error: Raised for a name that is unknown or taken.
    """

    def __init__(
        self,
        what: str,
        key: str,
        group: str,
        *,
        builtins: str = "",
        error: type[UsageError] = ConfigError,
    ) -> None:
        self.what, self.key, self.group = what, key, group
        self._builtins, self._error = builtins, error
        self._known: dict[str, T] = {}
        _REGISTRIES.append(self)

    def register(self, name: str, thing: T) -> T:
        """Add a thing under a name.

        Raises:
            UsageError: The name is taken, or none that a user could write.
        """
        if not isinstance(name, str) or not name.isprintable() or not name.strip():
            raise self._error(
                f"{name!r:.80} is no name for a plug-in", hint="expected printable text"
            )
        if name in self._known:
            raise self._error(
                f"{self.what} {name!r} is registered already", hint="choose another name"
            )
        self._known[name] = thing
        return thing

    def names(self) -> tuple[str, ...]:
        """All names: built in and registered in their order, then entry points."""
        self._prepare()
        return tuple(dict.fromkeys((*self._known, *_offered(self.group))))

    def find(self, name: str) -> T:
        """Object registered as ``name``.

        Raises:
            UsageError: Nothing is; or two things are.
            PluginError: Its entry point, or a plug-in of this process, cannot be loaded.
        """
        self._prepare()
        entry = _offered(self.group).get(name)
        if entry is not None:
            self._take(entry)
        if name not in self._known:
            near = difflib.get_close_matches(name, self.names(), n=1)
            hint = f"did you mean {near[0]}?" if near else f"known: {', '.join(self.names())};"
            raise self._error(
                f"unknown {self.what} {name!r} in {self.key}",
                hint=f"{hint} one of your own needs --plugin FILE.py",
            )
        return self._known[name]

    @contextmanager
    def lent(self, things: Mapping[str, T]) -> Iterator[None]:
        """More things for the time of a block."""
        self._prepare()
        added = []
        try:
            for name, thing in things.items():
                self.register(name, thing)
                added.append(name)
            yield
        finally:
            for name in added:
                del self._known[name]

    def _prepare(self) -> None:
        if self._builtins:
            importlib.import_module(self._builtins)
        for text in _inherited():
            _import(text)

    def _take(self, entry: metadata.EntryPoint) -> None:
        """Register an entry point's object, once."""
        try:
            thing = entry.load()
        except Exception as error:
            raise _broken(f"the entry point {entry.name} = {entry.value}", error, None) from error
        if self._known.get(entry.name, thing) is not thing:
            owner = entry.dist.name if entry.dist else entry.value
            raise self._error(
                f"{self.what} {entry.name!r} is there twice: one is of the package {owner}",
                hint=f"pip uninstall {owner}, or ask its makers for another name",
            )
        self._known[entry.name] = thing


_REGISTRIES: list[Registry[Any]] = []
_loaded: set[str] = set()


class MethodTraits(Protocol):
    """Properties of a method, known where nothing is trained; see ``federation.methods``."""

    has_decoder: ClassVar[bool]
    trains: ClassVar[bool]
    nearest_prototype: ClassVar[bool]
    publishes_statistics: ClassVar[bool]
    common_head: ClassVar[bool]
    standalone: ClassVar[bool]
    needs_public: ClassVar[bool]
    for_senders: ClassVar[frozenset[str]]
    sends_moments: ClassVar[bool]

    @classmethod
    def head(cls, settings: Any, known: Any) -> Any:
        """Coefficients of the head that all clients share, from what was published."""

    @classmethod
    def shared(cls, settings: Any) -> str:
        """Content of the clients' uploads."""

    @classmethod
    def companion(cls, settings: Any, shape: Any, classes: int, *, seed: int) -> Any:
        """Small network that each client keeps beside its own, or None."""


ARCHITECTURES: Registry[Callable[..., Any]] = Registry(
    "architecture",
    "clients.architectures",
    "fedvtc_edge.architectures",
    builtins="fedvtc_edge.models",
)
EXTRACTORS: Registry[Callable[..., Any] | None] = Registry(
    "extractor",
    "method.extractor",
    "fedvtc_edge.extractors",
    builtins="fedvtc_edge.models.extractor",
)
METHODS: Registry[type[MethodTraits]] = Registry(
    "method", "method.name", "fedvtc_edge.methods", builtins="fedvtc_edge.federation.methods"
)


def load(*sources: str | Path) -> None:
    """Import plug-ins, here and in every process that this one will start.

    A plug-in may run any code: name only what you would run yourself. What it registered
    before an error is forgotten.

    Args:
        sources: A module's dotted name, or the path of a file that ends in ``.py``.

    Raises:
        PluginError: It is not there, or its import fails.
    """
    for source in sources:
        text = str(Path(source).absolute()) if _is_file(str(source)) else str(source)
        if os.pathsep in text:
            raise PluginError(
                f"plug-in {text}: a path with {os.pathsep!r} in it", hint="rename the file"
            )
        _import(text)
        if text not in _inherited():
            os.environ[VARIABLE] = os.pathsep.join([*_inherited(), text])


def options() -> str:
    """Words that name this process's plug-ins on another command line, with a space before."""
    return "".join(f" --plugin {shlex.quote(text)}" for text in _inherited())


def _inherited() -> list[str]:
    """Plug-ins that this process was started with, or passes on."""
    return list(filter(None, os.environ.get(VARIABLE, "").split(os.pathsep)))


def _is_file(text: str) -> bool:
    return text.endswith(".py") or os.sep in text


def _import(text: str) -> None:
    """Import a plug-in once; whatever it looks up meanwhile does not import it again."""
    if text in _loaded:
        return
    before = [set(registry._known) for registry in _REGISTRIES]
    _loaded.add(text)
    try:
        _import_file(Path(text)) if _is_file(text) else _import_module(text)
    except BaseException:
        _loaded.discard(text)
        for registry, names in zip(_REGISTRIES, before, strict=False):
            for name in registry._known.keys() - names:
                # What ships with the package may have been imported first by the plug-in.
                if not getattr(registry._known[name], "__module__", "").startswith("fedvtc_edge."):
                    del registry._known[name]
        raise


def _import_file(path: Path) -> None:
    if not path.is_file() or path.suffix != ".py":
        raise PluginError(
            f"no plug-in at {path}", hint="expected a file that ends in .py, or a module's name"
        )
    name = f"fedvtc_edge_plugin_{hashlib.sha256(os.fsencode(path)).hexdigest()[:12]}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None  # it ends in .py
    assert spec.loader is not None
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        del sys.modules[name]
        raise _broken(f"plug-in {path}", error, str(path)) from error


def _import_module(name: str) -> None:
    try:
        found = importlib.util.find_spec(name)
    except (ImportError, ValueError):
        found = None
    if found is None:
        raise PluginError(
            f"no plug-in module {name!r} can be imported here",
            hint="install the package that holds it, or give the path of a .py file",
        )
    try:
        importlib.import_module(name)
    except Exception as error:
        raise _broken(f"plug-in {name}", error, found.origin) from error


def _broken(where: str, error: Exception, file: str | None) -> PluginError:
    """What went wrong inside of a plug-in, with its own line and words."""
    frames = traceback.extract_tb(error.__traceback__)
    lines = [frame.lineno for frame in frames if frame.filename == file]
    if isinstance(error, SyntaxError) and error.filename == file:
        lines = [error.lineno]
    at = f", line {lines[-1]}" if lines else ""
    if isinstance(error, FedVTCError):
        return PluginError(f"{where}{at}: {error}", hint=error.hint)
    said = str(error).splitlines()[0] if str(error) else "no message"
    hint = "mend it there; docs/plugins.md shows one of each kind"
    if isinstance(error, ModuleNotFoundError) and error.name:
        hint = f"install what provides {error.name} beside fedvtc-edge, or take the import out"
    return PluginError(f"{where}{at}: {type(error).__name__}: {said}", hint=hint)


@functools.cache  # looking through all that is installed takes a hundredth of a second
def _offered(group: str) -> dict[str, metadata.EntryPoint]:
    return {entry.name: entry for entry in metadata.entry_points(group=group)}
