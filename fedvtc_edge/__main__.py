"""Command line: ``fedvtc-edge`` and ``python -m fedvtc_edge``.

Sub-commands are entry points of installed distributions; only the one that is asked for is
loaded, and each takes ``--plugin``.

Everything that goes wrong by a user's doing ends here as two lines on stderr
and an exit code; what goes wrong by ours keeps its traceback.
"""

from __future__ import annotations

import contextlib
import difflib
import errno
import io
import os
import select
import sys
import warnings
from collections.abc import Sequence
from importlib import metadata
from typing import NoReturn, TextIO

import click

from . import plugins
from .commands._common import Interrupted
from .errors import FedVTCError, FedVTCWarning, UsageError

PROGRAM = "fedvtc-edge"
INTERRUPTED, READER_GONE = 130, 141  # 128 + SIGINT and 128 + SIGPIPE, as shells count

# What the machine, not the program, refuses; anything else is a bug and keeps its traceback.
_FULL = {errno.ENOSPC, errno.EDQUOT}
_REFUSALS = {
    **dict.fromkeys(_FULL, "free some space; a run that was cut off goes on with run --resume DIR"),
    errno.EACCES: "choose a folder that you may write to",
    errno.EPERM: "choose a folder that you may write to",
    errno.EROFS: "choose a folder that can be written to",
}


GROUP = "fedvtc_edge.commands"

_REINSTALL = 'run: pip install -e ".[train]" in the folder that holds pyproject.toml'


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
        name, entries = args[0], _entry_points()
        if name not in entries:
            known = sorted(entries)
            near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
            hint = f"did you mean {near[0]}?" if near else f"commands: {', '.join(known)}"
            raise UsageError(f"unknown command {name!r}", hint=hint)
        return name, _load(entries[name]), args[1:]

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
        raise UsageError("fedvtc-edge is not installed, only its source was found", hint=_REINSTALL)
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
            hint=_REINSTALL,
        ) from None
    if not isinstance(command, click.Command):
        raise UsageError(
            f"the command {entry.name!r} is {type(command).__name__}, expected a click.Command",
            hint=f"look at the entry point {entry.value}",
        )
    _add_plugin_option(command)
    return command


def _add_plugin_option(command: click.Command) -> None:
    """Let a command, or each command of a group, take ``--plugin``."""
    if isinstance(command, click.Group):
        for inner in command.commands.values():
            _add_plugin_option(inner)
    elif not any(option.name == "plugins" for option in command.params):
        option = click.Option(
            ["--plugin", "plugins"],
            multiple=True,
            metavar="MODULE|FILE.py",
            is_eager=True,  # before an argument is looked at: it may be a name of the plug-in's
            expose_value=False,
            callback=_load_plugins,
            help="Python code of your own to run first; repeatable, see docs/plugins.md.",
        )
        command.params.append(option)


def _load_plugins(context: click.Context, _: click.Parameter, sources: tuple[str, ...]) -> None:
    if not context.resilient_parsing:
        plugins.load(*sources)


def _print_version(context: click.Context, _: click.Parameter, wanted: bool) -> None:
    if not wanted or context.resilient_parsing:
        return
    try:
        version = metadata.version(PROGRAM)
    except metadata.PackageNotFoundError:
        raise UsageError(
            "fedvtc-edge is not installed, so it has no version", hint=_REINSTALL
        ) from None
    click.echo(f"{PROGRAM} {version}")
    context.exit()


@click.group(
    cls=DiscoveredCommands,
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)
@click.option(
    "--version",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_print_version,
    help="Print the version.",
)
@click.pass_context
def command_line(context: click.Context) -> None:
    """Federated learning from statistics alone, for unequal edge devices."""
    if context.invoked_subcommand is None:
        click.echo(context.get_help())


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run one command and exit with its code.

    Args:
        arguments: The words after the program's name; None takes the process's own.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # "±" must not end a run on an ASCII terminal
    with warnings.catch_warnings():
        warnings.showwarning = _show_warning
        code = _run(list(sys.argv[1:] if arguments is None else arguments))
    sys.exit(code)


def _run(arguments: list[str]) -> int:
    # Not click's own main(): it ends quietly on any EPIPE and any EOFError, also on one from
    # deep inside a run, and prints errors in its own style.
    try:
        with command_line.make_context(PROGRAM, arguments) as context:
            command_line.invoke(context)
        sys.stdout.flush()
    except click.exceptions.Exit as done:
        return done.exit_code
    except FedVTCError as error:
        return _complain(str(error), error.hint, error.exit_code)
    except click.ClickException as error:
        return _complain(*_explain_usage(error, arguments), UsageError.exit_code)
    except Interrupted as stop:
        return _complain("interrupted", stop.hint, INTERRUPTED)
    except (KeyboardInterrupt, click.Abort):
        return _complain("interrupted", "give the same command to start again", INTERRUPTED)
    except BrokenPipeError:
        if not _reader_gone():
            raise
        return _discard_output(READER_GONE)
    except OSError as error:
        # A full disk names no file; any other refusal without one is not about a user's file.
        if error.errno not in _REFUSALS or not (error.filename or error.errno in _FULL):
            raise
        where = f"{error.filename}: " if error.filename else ""
        hint = _REFUSALS[error.errno]
        return _discard_output(_complain(f"{where}{error.strerror}", hint, UsageError.exit_code))
    except (MemoryError, RuntimeError) as error:
        if not _out_of_memory(error):
            raise
        hint = "lower training.batch, data.limit or engine.workers; a run continues with --resume"
        return _complain("not enough memory", hint, UsageError.exit_code)
    return 0


def _out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out, in Python, numpy or torch (which must not be imported to ask)."""
    return (
        isinstance(error, MemoryError)
        or type(error).__name__ == "OutOfMemoryError"  # torch, on an accelerator
        or "DefaultCPUAllocator: can't allocate memory" in str(error)  # torch, on the CPU
    )


def _explain_usage(error: click.ClickException, arguments: list[str]) -> tuple[str, str]:
    # click does not say for every error which command it came from; the words do.
    command = f"{PROGRAM} {arguments[0]}" if arguments and arguments[0][:1] != "-" else PROGRAM
    hint = f"see {command} --help"
    if isinstance(error, click.NoSuchOption):
        if error.possibilities:
            hint = f"did you mean {sorted(error.possibilities)[0]}?"
        return f"unknown option {error.option_name}", hint
    return error.format_message().rstrip("."), hint


def _show_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    """Our own warnings as one line, all others as Python writes them."""
    if issubclass(category, FedVTCWarning):
        text = f"{PROGRAM}: warning: {_one_line(str(message))}\n"
    else:
        text = warnings.formatwarning(message, category, filename, lineno, line)
    with contextlib.suppress(BrokenPipeError):
        click.echo(text, file=file, err=True, nl=False)


def _complain(message: str, hint: str, exit_code: int) -> int:
    start = "\n" if exit_code == INTERRUPTED and sys.stderr.isatty() else ""  # below the ^C
    with contextlib.suppress(BrokenPipeError):  # stderr's reader has gone: nobody left to tell
        click.echo(f"{start}{PROGRAM}: error: {_one_line(message)}", err=True)
        click.echo(f"{PROGRAM}: hint: {_one_line(hint)}", err=True)
    return exit_code


def _one_line(text: str) -> str:
    """One printable line: a file's name or content must not move the cursor or add lines."""
    joined = " ".join(part.strip() for part in text.splitlines() if part.strip())
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in joined)


def _reader_gone() -> bool:
    """Whether it is stdout that broke, and not a pipe inside the work, which is a bug."""
    if not hasattr(select, "poll"):
        return True  # Windows: no way to ask
    poll = select.poll()
    poll.register(sys.stdout, 0)  # errors and hang-ups are reported unasked
    return bool(poll.poll(0))


def _discard_output(exit_code: int) -> int:
    # What is still buffered for a stdout that refused it would fail again at exit, with a
    # message and a code of the interpreter's own.
    try:
        descriptor = sys.stdout.fileno()
    except (AttributeError, io.UnsupportedOperation):
        return exit_code  # not a file: nothing is flushed at exit
    void = os.open(os.devnull, os.O_WRONLY)
    os.dup2(void, descriptor)
    os.close(void)
    return exit_code


if __name__ == "__main__":
    main()
