"""Table of what each sharing mode gives away on each data set: docs/audit-results.md.

``python -m fedvtc_edge.attacks.sweep --data digits --out DIR``

Anchored uploads are staged, without training. Own features need a run of their own, whose
uploads are attacked by the server and a client's device together; noise is refused there.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from threadpoolctl import threadpool_limits

from fedvtc_edge.config import Config, load_config
from fedvtc_edge.data import load_data
from fedvtc_edge.errors import FedVTCError
from fedvtc_edge.privacy.mechanism import mechanism_of
from fedvtc_edge.progress import BarProgress, Progress, SilentProgress
from fedvtc_edge.runs.finished import FinishedRun
from fedvtc_edge.storage.atomic import write_atomic
from fedvtc_edge.training.compute import deterministic
from fedvtc_edge.workflows.run import run

from .adversary.staging import UploadStager
from .adversary.subjects import Settings
from .adversary.trials import AuditedRun
from .answers import answers_of
from .attempts import STAGED, Group, groups_of
from .curve import accuracy
from .dp.claims import claim_of_run
from .dp.game import audit_claim
from .registry import parse_attacks
from .scoring.findings import Policy

EPSILONS = (None, 8.0, 3.0, 1.0)
SHARES = ("anchored", "features", "features+decoder")
TRIALS = 100

LIMIT = 2000
"""Images dealt out of data sets larger than the digits."""


@dataclass(frozen=True)
class SweepRow:
    """One upload size of one setting; see :func:`table`.

    Args:
        attack: Attack that identifies most from one upload.
        identification: Share of members it tells from 49 non-members, with its 95 % limits.
        membership: TPR at 1 % FPR of the membership test, or None with too few non-members.
        differencing: Identification from two uploads, one record apart; None: not staged.
        epsilon_lower_bound: Lower bound of the audit of the noise, or None.
        accuracy: Accuracy from statistics only, or of the clients' own models.
    """

    data: str
    share: str
    moments: str
    epsilon: float | None
    records: str
    attack: str
    identification: float
    low: float
    high: float
    membership: float | None
    differencing: float | None
    epsilon_lower_bound: float | None
    accuracy: float | None


def sweep(
    data: str,
    root: str,
    shares: Sequence[str],
    trials: int,
    progress: Progress,
    *,
    extractor: str = "random",
    staged: Sequence[int] = STAGED,
) -> Iterator[SweepRow]:
    """Rows of one data set.

    Args:
        extractor: ``method.extractor``.
        staged: Numbers of records of each class of a staged client.
    """
    basis = load_config(
        {
            "data": {"name": data, "root": root, "limit": 0 if data == "digits" else LIMIT},
            "clients": {"count": 5},
            "privacy": {"population": 1437 if data == "digits" else LIMIT},
            "method": {"extractor": extractor},
        }
    )
    settings: list[Config] = []
    for share in shares:
        if share != "anchored":
            settings.append(basis.replace(method={"share": share}))
            continue
        for moments in ("diagonal", "covariance"):
            for epsilon in EPSILONS:
                private = {"mode": "none"} if epsilon is None else _private(epsilon)
                settings.append(basis.replace(method={"moments": moments}, privacy=private))
    progress.start(len(settings), data)
    for config in settings:
        anchored = config.method.share == "anchored"
        yield from _staged(config, trials, staged) if anchored else _trained(config, trials)
        progress.advance(f"{config.method.share}, {config.method.moments}")
    progress.close()


def _private(epsilon: float) -> dict[str, Any]:
    return {"mode": "anchored", "epsilon": epsilon}


def _staged(config: Config, trials: int, staged: Sequence[int]) -> Iterator[SweepRow]:
    data = load_data(config)
    audited = AuditedRun(Settings(config, classes=data.classes), data)
    stage, claim = UploadStager(audited), claim_of_run(config)
    dp = None if claim is None else audit_claim(audited, claim, quick=True)
    worth = accuracy(stage, "", 1)
    for count in staged:
        names = ["decode", "exact", "membership", "differencing"]
        made = stage.trials(count, trials, repetitions=0)
        if not made:
            continue
        yield replace(
            _row(config, names, Group(str(count), made[0].case.view.who, count, made)),
            epsilon_lower_bound=None if dp is None else dp["lower_bound"],
            accuracy=worth,
        )


def _trained(config: Config, trials: int) -> Iterator[SweepRow]:
    with tempfile.TemporaryDirectory(prefix="sweep-") as folder:
        summary = run(config, out=Path(folder, "run")).summary
        finished = FinishedRun.open(Path(folder, "run"))
        audited = AuditedRun(finished, load_data(config))
        seen = [one for one in audited.observed() if one.who == "server+device"]
        groups = groups_of(audited, seen, trials, staged=())
        for group in sorted(groups, key=lambda group: group.trials[0].count):
            if len(group.trials) >= 20:
                row = _row(config, ["decode", "exact", "membership", "inversion"], group)
                yield replace(row, accuracy=summary["accuracy_mean"])


def _row(config: Config, names: Sequence[str], group: Group) -> SweepRow:
    stream, cases = torch.Generator().manual_seed(0), [trial.case for trial in group.trials]
    found = []
    for attack in parse_attacks(names):
        guesses = attack.guess(cases, stream)
        answers = answers_of(attack.name, group.trials, guesses, group.name, stream)
        if answers is not None:
            found += answers.findings(Policy(), 0.95)
    told = {(one.attack, one.metric): one.value for one in found}
    single = [
        one for one in found if one.metric == "identification" and one.attack != "differencing"
    ]
    best = max(single, key=lambda one: one.value or 0.0)
    return SweepRow(
        _named(config),
        config.method.share,
        config.method.moments if config.method.share == "anchored" else "diagonal",
        None if mechanism_of(config) is None else config.privacy.epsilon,
        group.name.removeprefix("n = "),
        best.attack,
        best.value or 0.0,
        best.low or 0.0,
        best.high or 0.0,
        told.get(("membership", "tpr_at_1_percent_fpr")),
        told.get(("differencing", "identification")),
        None,
        None,
    )


def _named(config: Config) -> str:
    extractor = config.method.extractor
    return config.data.name if extractor == "random" else f"{config.data.name}, {extractor}"


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point of ``python -m fedvtc_edge.attacks.sweep``."""
    parser = argparse.ArgumentParser(prog="fedvtc_edge.attacks.sweep", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--data", default="digits", help="digits, mnist or cifar10")
    parser.add_argument("--root", default="", help="where it lies")
    parser.add_argument("--share", nargs="+", choices=SHARES, default=list(SHARES))
    parser.add_argument("--extractor", default="random", help="as in method.extractor")
    parser.add_argument("--staged", type=int, nargs="+", default=list(STAGED), metavar="N")
    parser.add_argument("--trials", type=int, default=TRIALS)
    parser.add_argument("--out", type=Path, required=True, help="folder for sweep.json")
    parser.add_argument("--quiet", action="store_true")
    given = parser.parse_args(arguments)
    progress: Progress = SilentProgress() if given.quiet else BarProgress()
    try:
        with deterministic(), threadpool_limits(limits=1):
            rows = list(
                sweep(
                    given.data,
                    given.root,
                    given.share,
                    given.trials,
                    progress,
                    extractor=given.extractor,
                    staged=given.staged,
                )
            )
    except FedVTCError as error:
        parser.exit(error.exit_code, f"error: {error}\nhint: {error.hint}\n")
    except KeyboardInterrupt:
        parser.exit(130, "\ninterrupted\n")
    given.out.mkdir(parents=True, exist_ok=True)
    document = {"schema": 1, "trials": given.trials, "rows": [asdict(row) for row in rows]}
    write_atomic(given.out / "sweep.json", (json.dumps(document, indent=1) + "\n").encode())
    print(table(rows))


def table(rows: Sequence[SweepRow]) -> str:
    """Rows as Markdown: one line per setting, one column per number of records.

    A cell is identification from one upload, membership's TPR at 1 % FPR, and identification
    from two uploads one record apart.
    """
    columns = list(dict.fromkeys(row.records for row in rows))
    heads = ["data", "shared", "moments", "ε", *(f"n = {name}" for name in columns)]
    heads += ["ε at least", "accuracy"]
    lines = ["| " + " | ".join(heads) + " |", "| " + " | ".join("---" for _ in heads) + " |"]
    settings = dict.fromkeys((r.data, r.share, r.moments, r.epsilon) for r in rows)
    for setting in settings:
        own = {r.records: r for r in rows if (r.data, r.share, r.moments, r.epsilon) == setting}
        some = next(iter(own.values()))
        cells = [_cell(own[name]) if name in own else "" for name in columns]
        data, share, moments, epsilon = setting
        bound = "–" if some.epsilon_lower_bound is None else f"{some.epsilon_lower_bound:.1f}"
        worth = "–" if some.accuracy is None else f"{some.accuracy:.1%}"
        head = f"{epsilon:g}" if epsilon is not None else "–"
        line = [data, share, moments, head, *cells, bound, worth]
        lines.append("| " + " | ".join(line) + " |")
    return "\n".join(lines)


def _cell(row: SweepRow) -> str:
    values = (row.identification, row.membership, row.differencing)
    return ", ".join("–" if value is None else f"{100 * value:.0f}" for value in values)


if __name__ == "__main__":
    main()
