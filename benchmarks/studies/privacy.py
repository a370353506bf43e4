"""Study of what privacy costs: accuracy against ε, on the same split, clients and budget.

``python -m fedvtc_edge.benchmarks.studies privacy --epsilons 1,4,8 --seeds 0,1,2 --out DIR``

One run per ε and seed, and one per seed without privacy; ``--release-only`` trains
nobody, and reads what the statistics alone make of the one release. The privacy mode is
``anchored`` unless ``--set privacy.mode=…`` names another. Writes ``privacy.json`` and
``privacy.svg`` into DIR. Test images are read, and nothing is chosen on them.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import torch
from matplotlib.figure import Figure

import fedvtc_edge
from fedvtc_edge.config import Config, load_config
from fedvtc_edge.data import load_data
from fedvtc_edge.errors import ConfigError
from fedvtc_edge.federation.assembly import assemble
from fedvtc_edge.federation.local import LocalExecutor
from fedvtc_edge.federation.preflight import check
from fedvtc_edge.federation.rounds import take_steps
from fedvtc_edge.progress import BarProgress, Progress, SilentProgress
from fedvtc_edge.report.canvas import CALIBRATED, CONTROL, FULL, LOCAL, OWN, draw, legend
from fedvtc_edge.storage.atomic import write_atomic
from fedvtc_edge.training.compute import Compute, as_images, deterministic

from .runner import Document, Study, listed

FIGURES = {
    "calibrated": "accuracy_calibrated_mean",
    "f_k": "accuracy_mean",
    "control": "accuracy_control",
    "local-only": "accuracy_local_only_mean",
}
"""Keys of the document's rows, and of a run's summary."""

_STYLES = {
    "calibrated": ("combined", "D-", CALIBRATED),
    "f_k": ("own model", "o-", OWN),
    "control": ("statistics only (no training)", "x--", CONTROL),
    "local-only": ("local only", "s:", LOCAL),
}


def measure(
    config: Config,
    epsilons: Sequence[float],
    seeds: Sequence[int],
    progress: Progress,
    *,
    release_only: bool = False,
) -> Document:
    """Run every ε and no privacy at all with every seed.

    Args:
        config: The settings; ``privacy.epsilon`` and ``seed`` are replaced, and
            ``privacy.mode`` where it is ``none``.
        seeds: Of the runs; the noise has none.
        progress: Told of each run.
        release_only: Train nobody; only the classifier by statistics is measured.

    Returns:
        ``{"schema", "data", "seeds", "delta", "rows": [{"epsilon", "f_k": {"mean",
        "per_seed"}, …}]}``; ``epsilon`` is null for the runs without privacy.
    """
    rows, mode = [], config.privacy.mode
    if mode == "none":
        mode = "anchored"
    progress.start((len(epsilons) + 1) * len(seeds), "runs")
    for epsilon in [*sorted(epsilons), None]:
        summaries = []
        for seed in seeds:
            privacy = {"mode": "none"}
            if epsilon is not None:
                privacy = {"mode": mode, "epsilon": epsilon}  # type: ignore[dict-item]
            settings = config.replace(seed=seed, privacy=privacy)
            summaries.append(
                statistics_alone(settings) if release_only else fedvtc_edge.run(settings).summary
            )
            progress.advance(f"epsilon {epsilon}, seed {seed}")
        row: Document = {"epsilon": epsilon}
        for name, key in FIGURES.items():
            if key in summaries[0]:
                values = [summary[key] for summary in summaries]
                row[name] = {"mean": statistics.fmean(values), "per_seed": values}
        rows.append(row)
    progress.close()
    return {
        "schema": 1,
        "mode": mode,
        "data": config.data.name,
        "clients": config.clients.count,
        "seeds": list(seeds),
        "delta": config.privacy.delta,
        "rows": rows,
    }


def statistics_alone(config: Config) -> dict[str, float]:
    """Accuracy of the training-free classifier after the one release of an anchored federation.

    Raises:
        ConfigError: Settings without such a release.
    """
    if config.method.name != "fedvtc" or config.method.share != "anchored":
        raise ConfigError(
            "--release-only without an anchor", hint='use method.share = "anchored" of "fedvtc"'
        )
    check(config)
    data = load_data(config)
    with deterministic():
        compute = Compute.of(config.engine)
        method = assemble(config, data, compute)
        executor = LocalExecutor(method)
        take_steps(method, executor, 0, executor.clients)
        scores = method.control(as_images(data.x_test, compute.device))
    assert scores is not None
    right = scores.argmax(1) == torch.from_numpy(data.y_test.copy())
    return {FIGURES["control"]: float(right.double().mean())}


def plot(document: Document) -> str:
    """Accuracy against ε on a logarithmic axis, without privacy at its right end."""
    rows = document["rows"]
    places = list(range(len(rows)))

    def drawing(figure: Figure) -> None:
        axes = figure.add_subplot()
        for name, (label, style, color) in _STYLES.items():
            if name not in rows[0]:
                continue
            means = [100 * row[name]["mean"] for row in rows]
            axes.plot(places, means, style, color=color, label=label, linewidth=1.8, markersize=5)
            for place, row in zip(places, rows, strict=True):
                seeds = [100 * value for value in row[name]["per_seed"]]
                axes.plot([place] * len(seeds), seeds, ".", color=color, alpha=0.4, markersize=4)
        axes.set_ylim(0, 102)
        axes.yaxis.set_major_formatter("{x:.0f}%")
        axes.grid(axis="y")
        names = ["no privacy" if row["epsilon"] is None else f"{row['epsilon']:g}" for row in rows]
        axes.set_xticks(places, names)
        unit = "client" if document["mode"] == "client" else "example of one client"
        axes.set_xlabel(f"ε per {unit}, at δ = {document['delta']:g}")
        legend(figure, axes, columns=4)

    chart = draw("privacy", drawing, label="Accuracy against epsilon.", width=FULL, height=340)
    return _standalone(chart.svg)


def _standalone(svg: object) -> str:
    """A chart as a file of its own."""
    spaces = 'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'
    return str(svg).replace("<svg ", f'<svg {spaces} width="{FULL}" ', 1) + "\n"


def plot_beside(documents: Mapping[str, Document]) -> str:
    """Accuracy from statistics only against ε, of several studies with the same budgets.

    Args:
        documents: Of :func:`measure`, by their labels.
    """
    rows = next(iter(documents.values()))["rows"]
    budgets = [row["epsilon"] for row in rows]

    def drawing(figure: Figure) -> None:
        axes = figure.add_subplot()
        for index, (label, document) in enumerate(documents.items()):
            means = [100 * row["control"]["mean"] for row in document["rows"]]
            style = ("o-", "o--", "s-", "s--", "^-", "^--")[index % 6]
            color = (OWN, CALIBRATED, LOCAL)[index // 2 % 3]
            axes.plot(range(len(means)), means, style, color=color, label=label, markersize=5)
        axes.set_ylim(40, 100)
        axes.yaxis.set_major_formatter("{x:.0f}%")
        axes.grid(axis="y")
        names = ["no privacy" if epsilon is None else f"{epsilon:g}" for epsilon in budgets]
        axes.set_xticks(range(len(names)), names)
        axes.set_xlabel("ε per example of one client; statistics only")
        legend(figure, axes, columns=2)

    return _standalone(draw("beside", drawing, label="Accuracy.", width=FULL, height=380).svg)


def _measure(
    epsilons: Sequence[float],
    seeds: Sequence[int],
    overrides: Sequence[str],
    release_only: bool,
    beside: Sequence[tuple[str, Path]],
    out: Path,
    quiet: bool,
) -> Document:
    progress = SilentProgress() if quiet else BarProgress()
    config = load_config({"clients": {"count": 5}}, overrides=overrides)
    document = measure(config, epsilons, seeds, progress, release_only=release_only)
    out.mkdir(parents=True, exist_ok=True)
    write_atomic(out / "privacy.json", (json.dumps(document, indent=2) + "\n").encode())
    write_atomic(out / "privacy.svg", plot(document).encode())
    if beside:
        others = {label: json.loads(path.read_text()) for label, path in beside}
        chart = plot_beside({**others, config.data.name: document})
        write_atomic(out / "beside.svg", chart.encode())
    return document


def _lines(document: Document) -> Iterator[str]:
    for row in document["rows"]:
        means = (
            f"{label} {100 * row[name]['mean']:.1f} %"
            for name, (label, *_) in _STYLES.items()
            if name in row
        )
        yield f"epsilon {row['epsilon']}: {', '.join(means)}"


def _budget(text: str) -> float:
    if not (value := float(text)) > 0:
        raise argparse.ArgumentTypeError(f"{text}: expected a number above 0")
    return value


def _seed(text: str) -> int:
    if (value := int(text)) < 0:
        raise argparse.ArgumentTypeError(f"{text}: expected a whole number from 0")
    return value


def _labelled(text: str) -> tuple[str, Path]:
    label, separator, path = text.rpartition("=")
    if not separator or not Path(path).is_file():
        raise argparse.ArgumentTypeError(f"{text}: expected LABEL=FILE of a privacy.json")
    return label, Path(path)


def _options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--epsilons", type=listed(_budget), default=[1.0, 4.0, 8.0], metavar="1,4,8")
    add("--seeds", type=listed(_seed), default=[0, 1, 2], metavar="0,1,2")
    add("--set", dest="overrides", action="append", default=[], metavar="KEY=VALUE")
    add(
        "--beside",
        type=_labelled,
        action="append",
        default=[],
        metavar="LABEL=FILE",
        help="privacy.json of another study, drawn into beside.svg; repeatable",
    )
    add("--release-only", action="store_true", help="train nobody")
    add("--out", type=Path, required=True, metavar="DIR")
    add("--quiet", action="store_true", help="no progress on stderr")


STUDY = Study("privacy", __doc__, _options, _measure, _lines)


if __name__ == "__main__":
    STUDY.main()
