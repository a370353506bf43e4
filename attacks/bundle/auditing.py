"""Audit of one bundle: what is in it beside its architecture, and whether that is the client's.

Names and structure need no knowledge. Whether weights of the right names hold images or
statistics only an auditor can tell who knows them: without a run or data nothing passes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedvtc_edge.errors import ParityError, UsageError
from fedvtc_edge.export.exporting import TOOLS, privacy_of, tools
from fedvtc_edge.export.manifest import ANCHOR, File, Manifest
from fedvtc_edge.graph_rules import GraphError, check_graph
from fedvtc_edge.privacy.claim import UNITS, Claim
from fedvtc_edge.runs.finished import FinishedRun

from ..scoring.findings import Finding
from .known import Known
from .manifest_check import strange_in
from .packed import arrays_of
from .planted import Search
from .reading import MANIFEST, SIGNATURE, STATISTICS, Files, Piece, pieces_of, read_files
from .records import Records, bytes_of
from .reference import Reference, of_architecture, of_run
from .scan import Leak, scan_pieces, shown
from .structure import Difference, differences

MOST_WORK = 1.5e11
"""Products of numbers that images are compared with, and so how many images there are time for."""

_WITH_DATA = "--run RUN or --data PATH: the client's own images"
PROTOTYPES = "model.mean"
"""Initialiser of a classifier by the nearest published prototype."""

_KINDS = ("images", "statistics", "histogram")
_MOST_NAMED = 10
"""Findings of one kind and file that are told one by one; all are counted."""


@dataclass(frozen=True, eq=False)
class BundleAudit:
    """Findings on one bundle, and the claim that it carries.

    Args:
        client: Whose it says that it is.
        claim: What its manifest claims of the run; None: nothing.
        invalid: Why that claim cannot be true.
    """

    client: str
    findings: Sequence[Finding]
    claim: Claim | None
    invalid: Sequence[str]


def audit_bundle(path: Path, *, run: Path | None = None, data: Path | None = None) -> BundleAudit:
    """Compare a bundle with what export writes, and search it for the client's records.

    Args:
        run: The finished run that it is of.
        data: Where the client's own images lie, as ``join`` reads them.

    Raises:
        UsageError: Both are given.
        BundleError: No such folder.
        VerificationError: No bundle, one that cannot be read, or a manifest that is none.
        RunError: No such run, or one that does not know whose images are where.
        DataError: No images there.
    """
    if run is not None and data is not None:
        raise UsageError("--run and --data", hint="give one of them: a run knows its data")
    files = read_files(path)
    manifest = Manifest.from_bytes(files[MANIFEST])
    pieces = list(pieces_of(files))
    finished = None if run is None else FinishedRun.open(run)
    records = None
    if finished is not None:
        records = Records.of_run(finished, manifest.client)
    elif data is not None:
        records = Records.of_data(data, manifest, path)
    reference, doubts = _reference(finished, manifest)
    found = [*doubts, *_structure(files, manifest, reference)]
    published = reference.exact and files.get(STATISTICS) == reference.files.get(STATISTICS)
    found += _scanned(pieces, records, published)
    if records is None:
        found += _unknown()
    else:
        found += _searched(files, pieces, records, reference)
    claim = claim_of(manifest)
    return BundleAudit(manifest.client, found, claim, _against(manifest, finished))


def claim_of(manifest: Manifest) -> Claim | None:
    """The claim that a manifest makes, with its unit and relation as far as they are said."""
    told = manifest.privacy
    if not told.epsilon:
        return None
    units: dict[str | None, Any] = {words: name for name, words in UNITS.items()}
    return Claim(
        epsilon=told.epsilon,
        delta=told.delta,
        unit=units.get(told.unit),
        neighbouring=told.relation,
    )


def _against(manifest: Manifest, run: FinishedRun | None) -> list[str]:
    """Why the manifest's claim is none, or not the run's."""
    told = manifest.privacy
    lacking = [key for key in ("delta", "unit") if getattr(told, key) is None]
    if told.epsilon is not None and lacking:
        return [f"the manifest claims epsilon {told.epsilon:g} without {' and '.join(lacking)}"]
    if run is None:
        return []
    own, expected = manifest.privacy.document(), privacy_of(run).document()
    older = {key for key in ("relation", "covers", "covers_models") if own[key] is None}
    return [
        f"the manifest says {key} = {own[key]!r:.60}, the run's is {expected[key]!r:.60}"
        for key in own
        if own[key] != expected[key] and key not in older
    ]


# ---------------------------------------------------------------- names and structure


def _reference(run: FinishedRun | None, manifest: Manifest) -> tuple[Reference, list[Finding]]:
    """The reference to compare with, and a doubt if the run could not be exported again."""
    if run is None:
        return of_architecture(manifest), []
    try:
        return of_run(run, manifest), []
    except ParityError as error:
        doubt = _open("structure", f"the run cannot be exported again: {error}", error.hint)
        return of_architecture(manifest), [doubt]


def _structure(files: Files, manifest: Manifest, reference: Reference) -> Iterator[Finding]:
    """One finding about all of it, and one for each difference."""
    found = [
        *_listed(files, manifest),
        *_ruled(files),
        *strange_in(files[MANIFEST], manifest, reference),
        *differences(files, manifest, reference),
    ]
    found = list(dict.fromkeys(found))
    other = {name for name in TOOLS if manifest.tools.get(name) != tools()[name]}
    leaks = [one for one in found if one.kind == "structure"]
    doubts = [one for one in found if one.kind != "structure"]
    if other:  # another exporter names and orders nodes otherwise: neither the same nor proof
        graphs = [one for one in leaks if one.file.endswith(".onnx") and _may_be_tools(one)]
        leaks = [one for one in leaks if one not in graphs]
        doubts += graphs
    yield Finding.fact(
        attack="bundle",
        view="device",
        metric="structure",
        value=float(len(leaks)),
        threshold=0.0,
        note="files, nodes, initialisers, keys and texts that export would not write"
        if leaks
        else "nodes, names, shapes, keys and texts are those that export writes",
    )
    for one in _first_of_each(leaks):
        yield _fact("structure", one.file, f"{one.where}: {one.what}")
    versions = ", ".join(f"{name} {manifest.tools.get(name)}" for name in sorted(other))
    advice = f"the exporter's {versions}" if other else "an export on the exporter's machine"
    for one in _first_of_each(doubts):
        by = "--run RUN, of the run that published it" if one.kind == "unknown" else advice
        metric = "weights" if one.kind == "weights" else "structure"
        yield _open(metric, f"{one.where}: {one.what}", by, one.file)
    for file, why in reference.missing.items():
        yield _open("structure", f"not compared: {why}", "--run RUN, and what it names", file)


def _first_of_each(found: Sequence[Difference]) -> Iterator[Difference]:
    """A few of each file, so that one file's many hide no other's."""
    told: dict[str, int] = {}
    for one in found:
        told[one.file] = told.get(one.file, 0) + 1
        if told[one.file] <= _MOST_NAMED:
            yield one


def _may_be_tools(one: Difference) -> bool:
    """True if another version of the exporter may explain a difference: no text, no unread byte."""
    return not any(word in one.what for word in ("no node reads", "no reader", "no tensor"))


def _listed(files: Files, manifest: Manifest) -> Iterator[Difference]:
    names = set(files) - {MANIFEST, SIGNATURE}
    for name in sorted(names - set(manifest.files)):
        yield Difference(name, name, "a file that the manifest does not list")
    for name in sorted(set(manifest.files) - names):
        yield Difference(name, name, "a file that the manifest lists, and that is not there")
    for name in sorted(names & set(manifest.files)):
        if manifest.files[name] != File.of_bytes(files[name]):
            yield Difference(name, name, "not the file that the manifest lists")


def _ruled(files: Files) -> Iterator[Difference]:
    for name, data in files.items():
        if name.endswith(".onnx"):
            beside = f"{name}.data"
            try:
                check_graph(data, beside=[beside] if beside in files else [])
            except GraphError as error:
                yield Difference(name, name, f"a graph that devices refuse: {error}")


# ---------------------------------------------------------------- words and data


def _scanned(
    pieces: Sequence[tuple[str, list[Piece]]], records: Records | None, published: bool
) -> Iterator[Finding]:
    """People, paths, and statistics as they are."""
    known = Known() if records is None else records.known()
    leaks = [(leak, _judged(leak, records, published)) for leak in scan_pieces(pieces, known=known)]
    for leak, decided in leaks:
        note = f"{leak.where}: {leak.what}"
        if decided is None:
            yield _open(
                leak.kind,
                f"{note}, which are published if it alone has the class",
                "--run RUN",
                leak.file,
            )
        else:
            threshold = 0.0 if decided else None
            yield _fact(leak.kind, leak.file, note, threshold)
    yield Finding.fact(
        attack="bundle",
        view="device",
        metric="leaks",
        value=float(sum(decided is True for _, decided in leaks)),
        threshold=0.0,
        note="paths, people, feature outputs and unread bytes were looked for",
    )


def _judged(leak: Leak, records: Records | None, published: bool) -> bool | None:
    """Whether something that was found is a leak; None: it is published, or it is not."""
    if leak.by_design:
        return False
    if leak.kind == "statistics" and _publishes(leak.file, leak.where) and records is not None:
        # Compared with the run's publication, as a whole; what that gives away `audit RUN` says.
        return False if published else None
    return True


def _publishes(file: str, where: str) -> bool:
    """Whether published statistics stand there: in their file, or as a classifier's prototypes."""
    return file == STATISTICS or (file.startswith("classifier") and where == PROTOTYPES)


def _unknown() -> Iterator[Finding]:
    what = "only names and structure were checked"
    for kind in _KINDS:
        yield _open(kind, what, _WITH_DATA)


def _searched(
    files: Files,
    pieces: Sequence[tuple[str, list[Piece]]],
    records: Records,
    reference: Reference,
) -> Iterator[Finding]:
    """The client's images, statistics and counts, scaled and shifted, wherever numbers stand."""
    places = list(_places(files, pieces, reference))
    numbers = sum(array.size for _, _, array in places)
    wanted, images = records.wanted(max(int(MOST_WORK / (64.0 * max(numbers, 1))), 64))
    search = Search(wanted, numbers)
    hits: dict[str, list[tuple[str, str]]] = {kind: [] for kind in _KINDS}
    for file, where, array in places:
        for found in search.within(array):
            kind, name = found.wanted.kind, found.wanted.name
            if kind != "images" and _publishes(file, where):
                continue  # what is published resembles what it is the sum of
            hits[kind].append((file, f"{where}: {name}, cosine {found.cosine:.3f}"))
    for file, data in files.items():
        hits["images"] += [(file, f"image {place} as bytes") for place in whole_in(data, records)]
    skipped = {kind: sum(one.kind == kind for one in search.skipped) for kind in _KINDS}
    for kind in _KINDS:
        looked = sum(one.kind == kind for one in wanted)
        note = f"{looked - skipped[kind]} forms of them looked for in {numbers:,} numbers"
        if kind == "images":
            note = f"{images:,} of {len(records.images):,} images, {note}"
        if skipped[kind]:
            note += f"; {skipped[kind]} of too few numbers to be told from chance once scaled"
        yield Finding.fact(
            attack="bundle",
            view="device",
            metric=kind,
            value=float(len(hits[kind])),
            threshold=0.0,
            trials=looked,
            note=note if not hits[kind] else f"{len(hits[kind])} found, such as {hits[kind][0][1]}",
        )
        for file, what in hits[kind][:_MOST_NAMED]:
            yield _fact(kind, file, what)
    if images < len(records.images) and not reference.exact:
        # Weights that were compared with the run's own hide nothing in the images left out.
        left = len(records.images) - images
        yield _open(
            "images",
            f"{left:,} images were looked for as they are alone, not once scaled",
            "--run RUN, of the run that published it: its weights are compared, then",
        )


def whole_in(data: bytes, records: Records) -> list[int]:
    """Images that stand in a file byte by byte.

    Eight bytes of each, from where it has most to tell, are looked for at once.
    """
    keys: dict[int, list[tuple[int, bytes]]] = {}
    for place, image in enumerate(records.images):
        for whole in bytes_of([image]):
            start = _telling(np.frombuffer(whole, np.uint8))
            if start is not None:
                key = int.from_bytes(whole[start : start + 8], "little")
                keys.setdefault(key, []).append((place, whole))
    found = set()
    wanted = np.array(sorted(keys), np.uint64)
    for shift in range(8):
        words = np.frombuffer(data[shift : shift + (len(data) - shift) // 8 * 8], "<u8")
        for key in np.unique(words[np.isin(words, wanted)]).tolist():
            found |= {place for place, whole in keys[key] if whole in data}
    return sorted(found)


def _telling(pixels: NDArray[np.uint8]) -> int | None:
    """Where eight bytes of an image stand that are mostly different; None for a blank one."""
    if len(pixels) < 8:
        return None
    windows = np.sort(np.lib.stride_tricks.sliding_window_view(pixels, 8), axis=1)
    different = (np.diff(windows.astype(np.int16), axis=1) != 0).sum(axis=1)
    best = int(different.argmax())
    return best if different[best] >= 4 else None


def _places(
    files: Files, pieces: Iterable[tuple[str, list[Piece]]], reference: Reference
) -> Iterator[tuple[str, str, NDArray[Any]]]:
    """All arrays, and what texts may stand for; a public extractor that is the run's is passed."""
    for file, inside in pieces:
        if reference.exact and file == ANCHOR and files[file] == reference.files.get(file):
            continue
        for piece in inside:
            if piece.numbers is not None and not piece.slack:
                yield file, piece.where, piece.numbers
            for array in arrays_of(piece.raw):
                yield file, piece.where, array
        if file not in (MANIFEST, STATISTICS, SIGNATURE) and not file.endswith((".onnx", ".data")):
            for array in arrays_of(files[file]):
                yield file, file, array


# ---------------------------------------------------------------- findings


def _fact(metric: str, file: str, note: str, threshold: float | None = 0.0) -> Finding:
    return Finding.fact(
        attack="bundle",
        view="device",
        metric=metric,
        value=1.0,
        threshold=threshold,
        group=shown(file),
        note=shown(note, 400),
    )


def _open(metric: str, note: str, by: str, file: str = "all") -> Finding:
    return Finding(
        attack="bundle",
        view="device",
        metric=metric,
        low=0.0,
        high=1.0,
        threshold=0.0,
        group=shown(file),
        note=shown(note, 400),
        decides_by=by,
    )
