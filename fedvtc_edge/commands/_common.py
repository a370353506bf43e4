"""Options, tables, JSON and progress that the sub-commands share."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from fedvtc_edge.errors import MissingExtra
from fedvtc_edge.progress import BarProgress, Progress, SilentProgress

EXTRAS = {
    **dict.fromkeys(("torch", "torchvision", "sklearn", "jinja2", "matplotlib"), "train"),
    **dict.fromkeys(("onnx", "onnxscript", "opacus", "threadpoolctl", "tomli_w", "tqdm"), "train"),
    "flwr": "flower",
}

Decorated = Callable[..., Any]

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    from fedvtc_edge.flower.access.keys import ClientKeyBundle, ServerKeyBundle

    Kit = TypeVar("Kit", ServerKeyBundle, ClientKeyBundle)

json_option = click.option(
    "--json", "as_json", is_flag=True, help="Print one JSON document and nothing else."
)
quiet_option = click.option("--quiet", is_flag=True, help="No progress on stderr.")
set_option = click.option(
    "--set",
    "overrides",
    multiple=True,
    metavar="TABLE.KEY=VALUE",
    help="Change one key of the configuration; repeatable.",
)
config_argument = click.argument(
    "config_file", metavar="[CONFIG.toml]", required=False, type=click.Path(path_type=Path)
)

bundle_argument = click.argument("bundle", type=click.Path(path_type=Path))
key_option = click.option(
    "--key",
    metavar="PUB",
    type=click.Path(path_type=Path),
    help="Public key of whoever exported it; without it only hashes are checked.",
)
extractor_option = click.option(
    "--extractor",
    metavar="FILE",
    type=click.Path(path_type=Path),
    help="The extractor's graph, where the bundle names it and does not hold it.",
)
variant_option = click.option(
    "--variant",
    type=click.Choice(["auto", "fp32", "int8"]),
    default="auto",
    show_default=True,
    help="auto measures on this machine.",
)
sign_option = click.option(
    "--sign",
    metavar="KEY",
    type=click.Path(path_type=Path),
    help="Sign with this private key (fedvtc-edge keys new FILE).",
)


def signing_key(path: Path | None) -> Ed25519PrivateKey | None:
    """The key of ``--sign``, opened with the environment's passphrase.

    Raises:
        KeyFileError: It cannot be used.
    """
    if path is None:
        return None
    from fedvtc_edge.sealing import signing

    return signing.load_private(path, passphrase=os.environ.get(signing.PASSPHRASE))


def out_option(help_text: str) -> Callable[[Decorated], Decorated]:
    """``--out DIR``; whether the folder may be written to is for the callee to say."""
    return click.option("--out", metavar="DIR", type=click.Path(path_type=Path), help=help_text)


class Interrupted(Exception):  # noqa: N818  (like KeyboardInterrupt, it is no error)
    """Ctrl-C, with what can be done about the work that was cut off."""

    def __init__(self, hint: str) -> None:
        super().__init__("interrupted")
        self.hint = hint


def emit_json(document: Any) -> None:
    """Print the one JSON document of ``--json``; NaN is not JSON and raises ValueError."""
    click.echo(json.dumps(document, indent=2, allow_nan=False))


def emit_table(header: Sequence[str], rows: Sequence[Sequence[str]], *, left: int = 1) -> None:
    """Print aligned columns: the first ``left`` to the left, numbers to the right."""
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    for row in (header, *rows):
        cells = [
            cell.ljust(width) if index < left else cell.rjust(width)
            for index, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        click.echo("  ".join(cells).rstrip())


def percent(fraction: float | None) -> str:
    """``0.9012`` as ``90.1``; an accuracy that does not exist as a dash."""
    return "-" if fraction is None else f"{100 * fraction:.1f}"


def known(value: object) -> str:
    """A value, or a dash for what nobody knows."""
    return "-" if value is None else str(value)


def kilobytes(size: float | None) -> str:
    """Bytes as kB of 1,000 bytes, as networks count."""
    return "-" if size is None else f"{size / 1000:.1f}"


def kit_of(kind: type[Kit], folder: Path | None, parts: dict[str, Path | None]) -> Kit:
    """Keys from the folder of ``--keys``, from options of their own, or from both.

    Args:
        folder: Value of ``--keys``, or None.
        parts: Values of the other options, by the field of ``kind``.

    Raises:
        UsageError: Neither gives a part.
        DeploymentError: A part is not there.
    """
    given = {name: path for name, path in parts.items() if path is not None}
    if folder is not None:
        return kind.load(folder, **given)
    missing = [name for name in parts if name not in given]
    if missing:
        options = ", ".join(f"--{name.replace('_', '-')}" for name in missing)
        raise click.UsageError(f"no keys: give --keys DIR, or {options}")
    return kind(**given)


@contextmanager
def reporting(quiet: bool) -> Iterator[Progress]:
    """Progress on stderr for the time of a piece of work, whatever ends it."""
    progress: Progress = SilentProgress() if quiet else BarProgress()
    try:
        yield progress
    finally:
        progress.close()


@contextmanager
def needing_extras() -> Iterator[None]:
    """Turn the absence of an optional dependency into what to install.

    Raises:
        MissingExtra: A module of an optional part is not installed. Any other
            missing module is a bug and keeps its traceback.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        module = (error.name or "").partition(".")[0]
        if module not in EXTRAS:
            raise
        raise MissingExtra(
            f"this command needs {module}, which is not installed",
            hint=f'pip install "fedvtc-edge[{EXTRAS[module]}]"',
        ) from None
