"""Made-up but lifelike audits: numbers as privacy.md says they come out."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from sklearn.datasets import load_digits

from fedvtc_edge.attacks.report import Picture

SEEN = {"n = 1": 1, "n = 2": 2, "n = 3 to 5": 4, "n = 6 to 19": 11, "n = 20 to 99": 45}
STAGED = {f"n = {n}, staged": n for n in (1, 2, 5, 20, 100)}
# What an attack keeps at n records: identification falls like 1 / n to its power.
POWERS = {
    "decode": 0.95,
    "inversion": 0.8,
    "exact": 1.4,
    "membership": 0.3,
    "second-moments": 0.45,
    "differencing": 0.0,
    "rounds": 0.5,
    "shadow": 1.1,
}
VIEWS = [
    ("server", "count, mean and second moments of each class, per client, once", True),
    ("server+device", "the same, and a client's extractor", True),
    ("colluders", "the published sums, less their own", True),
    ("device", "the published statistics, and the models in its bundle", True),
    ("eavesdropper", "sealed envelopes: their number, length and time", False),
]
LAYERS = [
    ("sealing", True, "eavesdroppers and forged uploads", "the server, which opens every upload"),
    ("masking", False, "a server that looks at one client", "what the sum itself tells"),
    ("noise", False, "every attack, up to ε", "anything beyond the unit of the claim"),
    ("anchor", True, "features that were trained on the very data", "reading means of few records"),
]


def finding(
    attack: str, view: str, metric: str, value: float | None, **more: Any
) -> dict[str, Any]:
    row: dict[str, Any] = dict.fromkeys(("low", "high", "null", "baseline", "ceiling", "threshold"))
    row |= {"attack": attack, "view": view, "metric": metric, "value": value, "group": "all"}
    return row | {"trials": 200, "staged": False, "note": ""} | more


def about(share: float, trials: int) -> tuple[float, float]:
    """A Wilson interval at some 3.2 standard errors, as Bonferroni makes them."""
    z, n = 3.2, trials
    middle = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z * math.sqrt(share * (1 - share) / n + (z / (2 * n)) ** 2) / (1 + z * z / n)
    return max(middle - half, 0.0), min(middle + half, 1.0)


def findings_of(
    scale: float = 1.0,
    views: tuple[str, ...] = ("server",),
    attacks: int = len(POWERS),
    limit: float = 0.1,
) -> list[dict[str, Any]]:
    """Rows of the first attacks; ``scale`` 1 leaks, 0 leaves chance."""
    rows = []
    for view in views:
        groups = SEEN | (STAGED if view == "server" else {})
        for (attack, power), (group, n) in (
            (one, two) for one in list(POWERS.items())[:attacks] for two in groups.items()
        ):
            staged = "staged" in group
            repeated = attack in ("differencing", "rounds")
            if (attack == "exact" and n > 2) or (repeated and not staged):
                continue
            trials = 300 if staged else 15 + 13 * (n % 7)
            value = 0.02 + scale * 0.97 * min(1.0, n**-power)
            low, high = about(value, trials)
            common = {"group": group, "trials": trials, "staged": staged}
            rows.append(
                finding(
                    attack,
                    view,
                    "identification",
                    value,
                    low=low,
                    high=high,
                    null=0.018 + 0.001 * (n % 5),
                    baseline=0.024,
                    ceiling=1.0 if n < 5 else 0.6,
                    threshold=limit,
                    **common,
                )
            )
            auc = 0.5 + 0.48 * scale * n ** (-power / 2)
            rows.append(
                finding(
                    attack,
                    view,
                    "auc",
                    auc,
                    low=auc - 0.02,
                    high=min(auc + 0.02, 1.0),
                    null=0.499,
                    **common,
                )
            )
            if trials * 49 > 1000:
                low, high = about(value * 0.8, trials)
                rows.append(
                    finding(
                        attack,
                        view,
                        "tpr_at_1_percent_fpr",
                        value * 0.8,
                        low=low,
                        high=high,
                        null=0.01,
                        threshold=limit,
                        **common,
                    )
                )
                if trials * 49 > 10_000:
                    rare = finding(attack, view, "tpr_at_0.1_percent_fpr", value * 0.6, **common)
                    rows.append(rare | {"low": low * 0.6, "high": high * 0.6})
            if attack in ("decode", "inversion", "rounds"):
                rows.append(finding(attack, view, "ssim", 0.74, baseline=0.71, **common))
                rows.append(finding(attack, view, "psnr", 15.2, baseline=14.9, **common))
    return rows


def facts() -> list[dict[str, Any]]:
    return [
        finding(
            "exact",
            "server",
            "recovered_exactly",
            1.0,
            low=1.0,
            high=1.0,
            threshold=0.0,
            group="n = 1",
            note="exact recovery; median relative error 3.1e-08",
        ),
        finding(
            "exact",
            "server",
            "recovered_exactly",
            0.96,
            low=0.96,
            high=0.96,
            threshold=0.0,
            group="n = 2",
            staged=True,
            note="exact recovery, up to order and the sign of each feature; "
            "median relative error inf",
        ),
        finding("histogram", "server", "counts_exact", 1.0, null=0.04, trials=60),
        finding("histogram", "server", "missing_classes_told", 1.0, trials=60),
        finding("memorised", "device", "nearest_train_ratio", 0.731, note="unknown measure"),
        finding("memorised", "device", "blocks", 12_400.0),
    ]


def curve() -> list[dict[str, Any]]:
    points = []
    for epsilon in (None, 8.0, 4.0, 1.0):
        for moments in ("mean", "pooled", "class") if epsilon is None else ("pooled",):
            for minimum in (1, 5, 20):
                strength = {"mean": 0.6, "pooled": 0.9, "class": 1.0}[moments]
                strength *= 1.0 if epsilon is None else 0.02 * epsilon
                value = 0.02 + 0.97 * strength * minimum**-0.55
                low, high = about(value, 200)
                lost = {None: 0.0, 8.0: 0.06, 4.0: 0.09, 1.0: 0.24}[epsilon]
                best = {"mean": 0.942, "pooled": 0.974, "class": 0.968}[moments]
                points.append(
                    {
                        "epsilon": epsilon,
                        "minimum": minimum,
                        "moments": moments,
                        "low": low,
                        "high": high,
                        "identification": value,
                        "accuracy": best - lost - 0.004 * minimum**0.5,
                    }
                )
    return points


def leak() -> dict[str, Any]:
    """A run without privacy, with every part of a page."""
    return {
        "schema": 2,
        "version": "0.1.0",
        "subject": {
            "kind": "run",
            "name": "runs/hospital-wards",
            "data": "digits",
            "share": "anchored",
            "moments": "covariance",
            "privacy": "none",
            "masking": False,
            "sealed": True,
            "clients": 6,
            "digest": "9f2b4c" * 10 + "beef",
        },
        "verdict": "leak",
        "exit_code": 1,
        "reasons": [
            "inversion identifies 97.0% at n = 1 (at least 90.3%, limit 10.0%)",
            "differencing identifies 99.0% at every n",
            "features of single records are recovered exactly",
        ],
        "claim": None,
        "threat_model": [{"view": v, "sees": s, "covered": c} for v, s, c in VIEWS],
        "unit": None,
        "neighbouring": None,
        "confidence": 0.95,
        "seed": 0,
        "trials": 200,
        "findings": findings_of() + findings_of(views=("colluders", "device"), attacks=2) + facts(),
        "epsilon_lower_bound": 4.7,
        "dp": None,
        "curve": curve(),
        "recommendations": [
            {
                "setting": "no class of fewer than 20 records",
                "why": "a mean of few shows its records",
            },
            {"setting": 'method.moments = "covariance"', "why": "pooled moments tell less"},
            {"setting": 'privacy.mode = "anchored"', "why": "with 6 clients, noise of their own"},
        ],
        "layers": [{"layer": a, "on": b, "stops": c, "does_not_stop": d} for a, b, c, d in LAYERS],
        "seconds": 412.3,
        "utility": {"accuracy_control": 0.974, "accuracy_mean": 0.927},
    }


def passing() -> dict[str, Any]:
    """A run at ε = 4."""
    document = leak()
    document["subject"] |= {"privacy": "anchored", "name": "runs/private"}
    return document | {
        "verdict": "pass",
        "exit_code": 0,
        "reasons": [],
        "claim": {
            "epsilon": 4.0,
            "delta": 1e-5,
            "unit": "one training example of one client",
            "neighbouring": "added or removed (replacing one is twice the sensitivity: ε = 9.1)",
            "mechanism": "discrete Gaussian noise, z = 1.0812, on sums of L2 norm 1, once",
            "source": "ledger.json of the run",
        },
        "findings": findings_of(0.03, attacks=4, limit=0.546),
        "epsilon_lower_bound": 1.2,
        "dp": {
            "epsilon": 4.0,
            "lower_bound": 2.61,
            "control_lower_bound": 6.84,
            "control_caught": True,
            "trials": 20_000,
            "worlds": "a white, a black, a mislabelled and a natural image",
            "mechanisms": [
                {"name": "anchored release", "lower_bound": 2.61, "verdict": "not refuted"},
                {"name": "the same at half its noise", "lower_bound": 6.84, "verdict": "refuted"},
            ],
        },
        "recommendations": [],
        "utility": {"accuracy_control": 0.885, "accuracy_mean": 0.869},
    }


def invalid() -> dict[str, Any]:
    """A claim that is refused before any attack."""
    document = passing()
    for key in ("curve", "findings", "layers", "threat_model", "utility", "dp", "seconds"):
        del document[key]
    return document | {
        "verdict": "claim invalid",
        "exit_code": 4,
        "reasons": [
            "ε was computed by a Gaussian-DP approximation, which is no upper bound",
            "BatchNorm under DP-SGD mixes the examples of a batch: no example has a bounded part",
        ],
        "epsilon_lower_bound": None,
        "recommendations": [{"setting": "a claim made with PRV or PLD", "why": "both are bounds"}],
    }


def bundle() -> dict[str, Any]:
    """An exported bundle: no upload, no curve, nothing by number of records."""
    return {
        "schema": 2,
        "version": "0.1.0",
        "subject": {
            "kind": "bundle",
            "name": "bundles/client-00",
            "privacy": "none",
            "digest": "00ff" * 16,
        },
        "verdict": "inconclusive",
        "exit_code": 3,
        "reasons": ["fewer than 20 training records are known: no rate can be stated"],
        "claim": None,
        "threat_model": [{"view": "device", "sees": "classifier and decoder", "covered": True}],
        "findings": [
            finding("memorised", "device", "auc", 0.957, low=0.93, high=0.98, null=0.51),
            finding(
                "memorised",
                "device",
                "identification",
                0.31,
                low=0.22,
                high=0.41,
                null=0.02,
                threshold=None,
            ),
            finding("scan", "device", "initialisers_that_hold_images", 0.0),
        ],
        "recommendations": [{"setting": "export without features", "why": "they invert"}],
        "seed": 3,
        "trials": 200,
    }


def pictures(
    labels: int = 3,
    groups: tuple[str, ...] = ("n = 1", "n = 1, staged", "n = 20, staged"),
    side: int = 8,
    channels: int = 1,
) -> list[Picture]:
    """Real digits, or noise of another shape; attacks see them the worse the more there are."""
    digits = load_digits()
    rng = np.random.default_rng(4)
    if (side, channels) == (8, 1):
        pools = [digits.images[digits.target == label % 10][:8] * 15.9 for label in range(labels)]
    else:
        pools = list(rng.uniform(0, 255, (labels, 8, side, side)))
    made = []
    for attack in ("decode", "inversion", "rounds"):
        for group in groups:
            for label, pool in enumerate(pools):
                images = np.repeat(pool[..., None], channels, 3).astype(np.uint8)
                target, mean = images[label % 7], images.mean(0).astype(np.uint8)
                near = np.clip(target + rng.normal(0, 14, target.shape), 0, 255).astype(np.uint8)
                null, ceiling = None if label == 1 else images[7], None if label == 2 else mean
                seen = mean if "20" in group else near
                words = (attack, "server", group, str(label))
                made.append(Picture(*words, target, seen, null, mean, ceiling))
    return made
