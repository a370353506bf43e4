"""Finds the sub-commands through entry points, and loads only what is asked for."""

from __future__ import annotations

import difflib
from importlib import metadata

import click

from fedvtc_edge.errors import UsageError

GROUP = "fedvtc_edge.commands"

REINSTALL = 'run: pip install -e ".[train]" in the folder that holds pyproject.toml'


class DiscoveredCommands(click.Group):
    """A click group whose commands are entry points of installed distributions."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The names, sorted; refuses a checkout that was never installed."""
        return sorted(_entry_points())

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        """Load one command, or None where there is none of that name."""
        entry = _entry_points().get(name)
        return None if entry is None else _load(entry)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command that the arguments name, or say which was meant."""
        name, known = args[0], sorted(_entry_points())
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
            hint = f"did you mean {near[0]}?" if near else f"commands: {', '.join(known)}"
            raise UsageError(f"unknown command {name!r}", hint=hint)
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """One line per command; one that cannot be loaded must not hide the others."""
        rows = []
        for name, entry in sorted(_entry_points().items()):
            try:
                rows.append((name, _load(entry).get_short_help_str(limit=60)))
            except UsageError as error:
                rows.append((name, f"(cannot be loaded: {error})"))
        with formatter.section("Commands"):
            formatter.write_dl(rows)


def _entry_points() -> dict[str, metadata.EntryPoint]:
    found = {entry.name: entry for entry in metadata.entry_points(group=GROUP)}
    if not found:  # the source is on the path, but no installation knows its commands
        raise UsageError("fedvtc-edge is not installed, only its source was found", hint=REINSTALL)
    return found


def _load(entry: metadata.EntryPoint) -> click.Command:
    try:
        command = entry.load()
    except ModuleNotFoundError as error:
        if error.name != entry.module:
            raise
        # The registration is older or newer than the source: a stale installation.
        raise UsageError(
            f"the command {entry.name!r} is registered, but {entry.module} does not exist",
            hint=REINSTALL,
        ) from None
    if not isinstance(command, click.Command):
        raise UsageError(
            f"the command {entry.name!r} is {type(command).__name__}, expected a click.Command",
            hint=f"look at the entry point {entry.value}",
        )
    return command
