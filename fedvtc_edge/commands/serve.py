"""``fedvtc-edge serve``: the server of a federation whose clients join over the network."""

from __future__ import annotations

from pathlib import Path

import click

from . import _common as common
from .run import how_to_go_on, new_directory, print_summary, report_of

_FILE = click.Path(path_type=Path)


@click.command()
@common.config_argument
@common.set_option
@click.option("--keys", metavar="DIR", type=_FILE, help="Folder of `keys trial` with all keys.")
@click.option("--certificate", metavar="FILE", type=_FILE, help="TLS certificate, PEM.")
@click.option("--private-key", metavar="FILE", type=_FILE, help="Of the certificate, PEM.")
@click.option("--authority", metavar="FILE", type=_FILE, help="Who signed it; clients have it.")
@click.option("--identity", metavar="FILE", type=_FILE, help="Private identity: opens uploads.")
@click.option("--trust", metavar="FILE", type=_FILE, help="Trust list of the clients.")
@click.option("--nodes", metavar="DIR", type=_FILE, help="Clients' node keys, CLIENT-ID.pub.")
@click.option(
    "--previous",
    metavar="FILE",
    type=_FILE,
    multiple=True,
    help="Identity that was replaced, to which clients may still seal; repeatable.",
)
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--port", type=click.IntRange(1, 65535), default=8000, show_default=True)
@common.out_option("Where the run goes [default: runs/DATA-METHOD-TIME].")
@click.option("--resume", metavar="DIR", type=_FILE, help="Go on with a run that was cut off.")
@common.json_option
@common.quiet_option
def command(
    config_file: Path | None,
    overrides: tuple[str, ...],
    keys: Path | None,
    previous: tuple[Path, ...],
    host: str,
    port: int,
    out: Path | None,
    resume: Path | None,
    as_json: bool,
    quiet: bool,
    **parts: Path | None,
) -> None:
    """Serve one run: wait for the clients, and go through its rounds with those that answer.

    Keys come from --keys, each of them also from an option of its own. Clients start with
    `fedvtc-edge join`. The process may be stopped and goes on with --resume.
    """
    if resume is not None and (config_file or overrides or out):
        raise click.UsageError("--resume takes its settings and its folder from the run")
    from fedvtc_edge.config import load_config

    config = None
    if resume is None:
        config = load_config(config_file, overrides=(*overrides, "engine.name=flower"))
    directory = resume or out or new_directory(config)
    try:
        with common.needing_extras(), common.reporting(quiet) as progress:
            from fedvtc_edge.flower.access.keys import ServerKeyBundle
            from fedvtc_edge.workflows.serve import resume_serving, serve

            kit = common.kit_of(ServerKeyBundle, keys, parts)
            if config is None:
                summary = resume_serving(directory, kit, previous, host, port, progress)
            else:
                summary = serve(config, directory, kit, previous, host, port, progress)
    except KeyboardInterrupt:
        hint = how_to_go_on("serve", directory, " and the same keys, host and port")
        raise common.Interrupted(hint) from None
    if as_json:
        common.emit_json(summary)
        return
    print_summary(summary)
    click.echo(f"run: {directory}")
    click.echo(f"report: {report_of(directory)}")
