"""The same data, split and budget for every method, over several seeds, splits and data sets."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from fedvtc_edge.config import Config, load_config
from fedvtc_edge.errors import ConfigError, RunError, UsageError
from fedvtc_edge.progress import Progress, SilentProgress
from fedvtc_edge.runs.directory import as_json, as_toml, check_empty
from fedvtc_edge.storage.atomic import write_atomic
from fedvtc_edge.storage.lock import alone

from .cells import FOLDER, Cell, CellStore, Result
from .plan import plan
from .rows import methods_by_name
from .tables import Results
from .tuning import tried_cells, tune
from .work import Work

__all__ = ["SETTINGS", "compare", "methods_by_name", "settings_of"]

SETTINGS = "comparison.toml"
"""Name of the resolved settings in a comparison's folder."""


def compare(
    config: Config,
    methods: Sequence[str] | None = None,
    seeds: Sequence[int] | None = None,
    *,
    out: Path | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Run every method on every seed, split and data set of ``[compare]``.

    A seed fixes the split, the streams and the weights. Each run is one file of ``out`` when it
    is done: the same call goes on where an earlier one was cut off. ``engine.workers`` runs are
    worked at the same time, with the same results.

    Args:
        config: Everything that the rows do not change.
        methods: Names from :func:`methods_by_name`; None takes those of ``[compare]``.
        seeds: One run each; None takes those of ``[compare]``.
        out: Folder for ``comparison.json``, ``comparison.csv`` and cells: new, empty, or of a
            comparison with the same settings; None writes nothing.
        progress: Told of each run.

    Returns:
        The content of ``comparison.json``.

    Raises:
        UsageError: An unknown method, or none.
        ConfigError: No method can run with these settings.
        RunError: ``out`` cannot be written, or holds something else.
    """
    config = _asked_for(config, methods, seeds)
    if out is not None:
        _check_folder(out)
    shown = progress or SilentProgress()
    planned = plan(config)
    with ExitStack() as held:
        if out is not None:
            held.enter_context(_opened(out))
        store = CellStore(out)
        results = Results(planned, store)
        if out is not None:
            first = tried_cells(planned) if config.compare.tune else results.all_cells()
            store.known(first)  # of other settings? then the folder stays as it is
            write_atomic(out / SETTINGS, as_toml(config))
        for label, reason in planned.left_out.items():
            shown.say(f"left out, {label}: {reason}")
        for table in planned.tables:
            for row in table.rows.values():
                if row.refused:
                    shown.say(f"cannot run, {table.label}, {row.name}: {row.refused}")
        work = held.enter_context(Work(config.engine.workers, store, shown))
        if config.compare.tune:
            tune(planned, results, store, lambda cells: work.do(cells, "tuning"))
        cells = results.all_cells()

        def taken(cell: Cell, result: Result) -> None:
            if out is not None and results.complete(cell):
                _write(out, results)

        try:
            work.do(cells, "runs", taken)
            if config.compare.audit:
                audits = [results.audit(table, row) for table, row in planned.rows()]
                work.do(audits, "audits", taken)
        finally:
            shown.close()
        if out is not None:
            _write(out, results)
        return results.comparison().document()


def settings_of(folder: Path) -> Config:
    """Settings of the comparison in a folder, to go on with it.

    Raises:
        RunError: There is none.
    """
    path = folder / SETTINGS
    if not path.is_file():
        raise RunError(
            f"{folder} holds no comparison (no {SETTINGS})",
            hint="start one: fedvtc-edge compare --out DIR",
        )
    try:
        return load_config(path)
    except ConfigError as error:
        raise RunError(f"{path} is not one of this version: {error}", hint=error.hint) from None


def _asked_for(
    config: Config, methods: Sequence[str] | None, seeds: Sequence[int] | None
) -> Config:
    """The settings with the methods and seeds of a call."""
    for words, what in ((methods, "methods"), (seeds, "seeds")):
        if words is not None and not words:
            raise UsageError(
                f"no {what}", hint=f"at least one; methods: {', '.join(methods_by_name())}"
            )
    changes: dict[str, Any] = {}
    if methods is not None:
        changes["methods"] = tuple(methods)
    if seeds is not None:
        changes["seeds"] = tuple(seeds)
    return config.replace(compare=changes) if changes else config


def _check_folder(out: Path) -> None:
    """Refuse a folder that holds anything but a comparison."""
    if not (out / SETTINGS).is_file():
        check_empty(out)


def _opened(out: Path) -> Any:
    """The folder, for this process alone."""
    held = ExitStack()
    held.enter_context(alone(out))
    with held:
        _check_folder(out)  # still? somebody else may have come first
        (out / FOLDER).mkdir(exist_ok=True)
        return held.pop_all()


def _write(out: Path, results: Results) -> None:
    write_atomic(out / "comparison.json", as_json(results.comparison().document()))
    write_atomic(out / "comparison.csv", results.csv())
