"""``fedvtc-edge verify``: every byte against what was exported and signed."""

from __future__ import annotations

from pathlib import Path

import click

from fedvtc_edge.commands import _common as common


@click.command()
@common.bundle_argument
@common.extractor_option
@common.key_option
@common.json_option
def command(bundle: Path, extractor: Path | None, key: Path | None, as_json: bool) -> None:
    """Check every byte of BUNDLE against its manifest, and that against a key.

    Exit code 0 only if all is as it was exported, else 1.
    """
    from ..verification import verify

    verified = verify(bundle, key, extractor=extractor)
    manifest = verified.manifest
    if as_json:
        common.emit_json(
            {
                "schema": 1,
                "verified": True,
                "signed_by": verified.signer,
                "signature": _signature(verified.signer, verified.signed),
                "client": manifest.client,
                "revision": manifest.revision,
                "extractor": extractor is not None,
                "privacy": manifest.privacy.document(),
                "files": {name: file.document() for name, file in manifest.files.items()},
            }
        )
        return
    rows = [(name, str(file.size), file.sha256) for name, file in manifest.files.items()]
    named = manifest.referenced
    if named is not None:
        where = str(extractor) if extractor else "extractor, NOT checked: give --extractor FILE"
        rows.append((where, str(named.size), named.sha256))
    common.emit_table(("file", "bytes", "SHA-256"), rows)
    click.echo()
    click.echo(f"{manifest.client}, revision {manifest.revision}: every byte is as exported")
    for line in manifest.privacy.words():
        click.echo(line)
    click.echo(
        {
            "valid": f"signed by {verified.signer}",
            "unchecked": "signed, but the signature was NOT checked: give --key PUB",
            "none": "NOT signed: whoever can write here could have changed it",
        }[_signature(verified.signer, verified.signed)]
    )


def _signature(signer: str | None, signed: bool) -> str:
    if signer is not None:
        return "valid"
    return "unchecked" if signed else "none"
