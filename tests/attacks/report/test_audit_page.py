"""The page of an audit: self-contained, escaped, repeatable, and honest about what is missing."""

from __future__ import annotations

import math
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from audit_samples import bundle, facts, finding, invalid, leak, passing, pictures

from fedvtc_edge.attacks.adversary.view import Case, Guess, View
from fedvtc_edge.attacks.report import Picture, render, shown
from fedvtc_edge.attacks.report.charts import beside
from fedvtc_edge.attacks.report.pictures import PIXEL_BUDGET, gallery
from fedvtc_edge.attacks.report.wording import (
    amount,
    interval,
    number,
    odds,
    ordered,
    records,
    told,
)
from fedvtc_edge.errors import RunError

Document = dict[str, Any]


def page_of(directory: Path, document: Document, images: list[Picture] | None = None) -> str:
    path = render(document, images or [], directory / "report.html")
    assert path == directory / "report.html"
    return path.read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def leaking(tmp_path_factory: pytest.TempPathFactory) -> str:
    return page_of(tmp_path_factory.mktemp("leak"), leak(), pictures())


@pytest.fixture(scope="module")
def quiet(tmp_path_factory: pytest.TempPathFactory) -> str:
    return page_of(tmp_path_factory.mktemp("pass"), passing())


def small(**changes: Any) -> Document:
    """A document without charts, which are what takes time."""
    return bundle() | changes


def words(page: str) -> str:
    """What a reader sees or hears."""
    page = re.sub(r"<style>.*?</style>", "", page, flags=re.DOTALL)
    heard = " ".join(re.findall(r'(?:alt|aria-label|title)="([^"]*)"', page))
    return re.sub(r"\s+", " ", re.sub(r"<[^>]*>", " ", page)) + heard


def cells(page: str, attack: str) -> list[str]:
    """The cells of an attack's first row."""
    row = re.search(rf'<tr><th scope="row" title="{attack}">.*?</tr>', page, re.DOTALL)
    assert row
    return re.findall(r"<td.*?</td>", row.group(), re.DOTALL)


# ---------------------------------------------------------------- promises


def test_is_one_file_that_loads_nothing(leaking: str) -> None:
    assert not re.search(r"https?://", leaking)
    assert "<script" not in leaking
    assert "@import" not in leaking
    assert "Content-Security-Policy" in leaking
    assert "default-src 'none'" in leaking
    for value in re.findall(r'(?:src|href)="([^"]*)"|url\(([^)]*)\)', leaking):
        assert "".join(value).startswith(("data:image/png;base64,", "#")), value
    assert len(leaking) < 1_000_000


def test_every_reference_is_met_once(leaking: str) -> None:
    ids = re.findall(r'\sid="([^"]*)"', leaking)
    assert len(ids) == len(set(ids))
    used = re.findall(r'href="#([^"]*)"|url\(#([^)]*)\)|aria-labelledby="([^"]*)"', leaking)
    assert {"".join(one) for one in used} <= set(ids)


def test_can_be_heard(leaking: str) -> None:
    assert all('alt="' in image for image in re.findall(r"<img[^>]*>", leaking))
    assert all("aria-label" in image for image in re.findall(r'<[^>]*role="img"[^>]*>', leaking))
    for table in re.findall(r"<table.*?</table>", leaking, re.DOTALL):
        assert '<th scope="col"' in table
        assert '<th scope="row"' in table
    assert '<html lang="en">' in leaking


def test_same_audit_same_bytes(tmp_path: Path) -> None:
    document = passing() | {"findings": passing()["findings"][:12]}
    first = render(document, pictures(), tmp_path / "report.html").read_bytes()
    assert render(document, pictures(), tmp_path / "report.html").read_bytes() == first
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]


def test_draws_without_torch(tmp_path: Path) -> None:
    code = (
        "import sys, json, pathlib; from fedvtc_edge.attacks.report import render; "
        "render(json.loads(sys.argv[1]), [], pathlib.Path(sys.argv[2])); "
        "print('torch' in sys.modules, 'matplotlib.pyplot' in sys.modules)"
    )
    where = str(tmp_path / "report.html")
    done = subprocess.run(
        [sys.executable, "-c", code, '{"verdict": "pass"}', where],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == "False False"


def test_page_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="cannot write"):
        render(small(), [], tmp_path / "nowhere" / "report.html")


# ---------------------------------------------------------------- what it says


def test_stands_in_order(leaking: str, quiet: str) -> None:
    for page in (leaking, quiet):
        ids = ("claim", "set", "adversaries", "records", "tradeoff", "pictures", "epsilon",
               "membership", "others", "layers", "method")  # fmt: skip
        places = [page.find(f'<h2 id="{name}">') for name in ids]
        found = [place for place in places if place >= 0]
        assert found == sorted(found)
        assert len(found) == (11 if page is leaking else 10)
        assert page.index('class="verdict') < min(found)


@pytest.mark.parametrize(
    ("verdict", "word", "means"),
    [
        ("pass", "Pass", "not better ones"),
        ("leak", "Leak", "not by chance"),
        ("inconclusive", "Inconclusive", "take it for no audit"),
        ("claim invalid", "Claim invalid", "does not hold as it is stated"),
    ],
)
def test_verdict_has_a_colour_a_word_and_a_sentence(
    tmp_path: Path, verdict: str, word: str, means: str
) -> None:
    page = page_of(tmp_path, small(verdict=verdict, reasons=["for <this> reason", "nan"]))
    assert f'<div class="verdict {verdict.replace(" ", "-")}"' in page
    assert f'<p class="word">{word}</p>' in page
    assert means in page
    assert "<li>for &lt;this&gt; reason</li>" in page
    assert f"<title>Privacy audit: {word}, bundles/client-00 – fedvtc-edge</title>" in page


def test_many_reasons_are_folded(tmp_path: Path) -> None:
    page = page_of(tmp_path, small(reasons=[f"reason {place}" for place in range(30)]))
    assert "<summary>22 more</summary>" in page
    assert "<li>reason 29</li>" in page


def test_claim_is_told_in_words(quiet: str, leaking: str) -> None:
    said = words(quiet)
    for text in ("ε = 4", "at δ = 1e-5", "one training example of one client", "added or removed",
                 "z = 1.0812", "by a factor of up to 55", "but for a chance of δ",
                 "covered by the claim", "not covered by the claim"):  # fmt: skip
        assert text in said, text
    assert "Nothing is claimed: not differentially private." in words(leaking)
    assert "covered by the claim" not in leaking


def test_unit_of_the_audit_completes_the_claim(tmp_path: Path) -> None:
    document = small(unit="one client", neighbouring="replaced", claim={"epsilon": 1.0})
    page = page_of(tmp_path, document)
    assert "<dd>one client</dd>" in page
    assert "<dd>replaced</dd>" in page
    assert "<dd>not named</dd>" in page  # the mechanism
    infinite = page_of(tmp_path, small(claim={"epsilon": math.inf, "unit": "x"}))
    assert "Nothing is claimed" in infinite


def test_invalid_claim_is_not_repeated(tmp_path: Path) -> None:
    said = words(page_of(tmp_path, invalid()))
    assert "Do not repeat this ε" in said
    assert "by a factor of" not in said
    assert "No attack was scored" in said
    assert "Pictures that the attacks made" not in said
    assert "The claimed ε was not put to the test" in said


def test_headline_cell_has_value_interval_comparisons_and_judgement(
    leaking: str, quiet: str
) -> None:
    first, *_, last = cells(leaking, "decode")
    assert 'class="cell leaks"' in first
    for text in (">99.0%<", ">leak<", "–100.0%, 28 trials", "null 2 · mean 2 · best 100"):
        assert text in first, text
    assert 'class="cell open"' in last
    assert ">undecided<" in last
    assert '<td class="cell quiet">–</td>' in leaking  # exact recovery at n = 20
    assert 'class="cell fine"' in "".join(cells(quiet, "decode"))


def test_every_adversary_has_a_section(leaking: str) -> None:
    section = leaking[leaking.index('id="adversaries"') : leaking.index('id="records"')]
    parts = section.split('<section class="card adversary"')[1:]
    assert len(parts) == 5
    assert [part.count("<table") for part in parts] == [2, 0, 1, 1, 0]
    assert "Sees: sealed envelopes" in parts[4]
    assert "nothing is shown to be safe" in parts[4]


def test_unjudged_and_unknown_findings_render(tmp_path: Path) -> None:
    document = small(
        findings=[
            finding("new", "aliens", "identification", 0.5, group="on mars"),
            finding("new", "device", "Foo_bar", -12.3456, note="a <b> note"),
            finding("new", "device", "hits", 1e12),
            finding("new", "device", "psnr", 26.04),
            finding("new", "device", "recovered_exactly", 1.0, low=1.0, high=1.0, threshold=0.0),
            {"attack": "bare", "view": "device", "metric": "auc"},
        ]
    )
    page = page_of(tmp_path, document)
    for text in ("not judged", "aliens", "on mars", "Foo bar", "−12.3", "1e12", "26.0 dB",
                 "a &lt;b&gt; note"):  # fmt: skip
        assert text in page, text
    _, leaks, sound = page[page.index('id="others"') :].split('<details class="card"')
    assert leaks.startswith(" open>\n<summary>1 finding <span>beyond their limit")
    assert "Recovered exactly" in leaks
    assert sound.startswith(">\n<summary>3 findings <span>within it")


def test_charts_speak(leaking: str) -> None:
    labels = re.findall(r'<svg role="img" aria-label="([^"]*)"', leaking)
    assert len(labels) == 4  # three adversaries and the curve
    assert "decode: n = 1, staged 99.0%, n = 2, staged" in labels[0]
    assert "ε = 8, means, pooled second moments, 20 records or more:" in labels[-1]
    assert "Read off the highest marker" in leaking


def test_pictures_stand_beside_what_they_are_compared_with(leaking: str, quiet: str) -> None:
    assert "This page shows training images." in leaking
    assert "training images" not in quiet
    grids = re.findall(r'<table class="grid">.*?</table>', leaking, re.DOTALL)
    assert len(grids) == 9
    heads = re.findall(r'<th scope="col"[^>]*>([^<]*)<', grids[0])
    assert heads == ["Class", "Target", "Recon&shy;struc&shy;tion", "Null", "Class mean", "Ceiling"]
    assert grids[0].count('class="strip') == 13  # three rows of five, less a null and a ceiling
    assert leaking.count("background-image: url(data:") == len(
        set(re.findall(r"shared-\d+", leaking))
    )


def test_audit_of_epsilon_shows_claim_bound_and_control(quiet: str, tmp_path: Path) -> None:
    said = words(quiet)
    for text in ("ε = 4", "ε ≥ 2.61", "no contradiction, no proof", "ε ≥ 6.84", "20 000",
                 "half the noise: caught", "the same at half its noise"):  # fmt: skip
        assert text in said, text
    refuted = {"epsilon": 1.0, "lower_bound": 2.5, "control_caught": False}
    said = words(page_of(tmp_path, small(dp=refuted)))
    assert "above the claim: the claim is refuted" in said
    assert "not caught , so the audit is blind" in said
    said = words(page_of(tmp_path, small(epsilon_lower_bound=0.7)))
    assert "nothing is claimed, so there is no ε to refute. The attacks alone prove ε ≥ 0.7" in said


def released(sender: str, noise: float | None, passed: bool | None, **more: Any) -> Document:
    limits = {} if noise is None else {"low": 0.95 * noise, "high": 1.05 * noise}
    row = {"sender": sender, "round": 2, "kind": "anchor", "numbers": 330, "noise": noise}
    return row | limits | {"passed": passed, "refused": [], "reason": ""} | more


def test_own_bytes_are_told_the_worst_first(tmp_path: Path) -> None:
    rows = [
        released("client-00", 1.01, True),
        released("client-01", 0.0, False, refused=["noise: scale"]),
        released("sum", None, None, reason="the sum cannot be made again"),
    ]
    own = {"level": 0.001, "tests": 30, "reused": [["client-00", "client-03"]], "releases": rows}
    page = page_of(tmp_path, small(own_bytes=own))
    said = re.sub(r"\s+", " ", words(page))
    assert "3 releases: 1 leak, 1 undecided, 1 pass." in said
    assert "Noise was used twice: client-00 and client-03." in said
    assert "refuse an honest run with a chance of 0.1%" in said
    order = [said.index(name) for name in ("client-01, round 2", "the masked sum", "client-00, r")]
    assert order == sorted(order)
    assert "noise: scale" in said
    assert "the sum cannot be made again" in said
    assert "was not replayed" in said
    many = [released(f"client-{number:02d}", 1.0, True) for number in range(40)]
    page = page_of(tmp_path, small(own_bytes=own | {"releases": many}))
    assert "client-11" in page
    assert "client-12" not in page
    assert "The worst 12 of 40" in words(page)


def test_what_a_replay_found_is_told(tmp_path: Path) -> None:
    note = "the only record: noise was asked for at another scale"
    found = finding("replay", "server", "violations", 1.0, low=1.0, high=1.0, threshold=0.0)
    page = page_of(tmp_path, small(findings=[found | {"trials": 12, "note": note}]))
    said = re.sub(r"\s+", " ", words(page))
    assert f"Replay on 12 pairs of neighbouring data sets: leak {note}." in said
    assert "was not replayed" not in said
    assert 'id="bytes"' not in page_of(tmp_path, small())


def test_who_is_not_covered_has_a_verdict(tmp_path: Path) -> None:
    beyond = [
        {"view": "device", "verdict": "leak", "reasons": ["memorised: 25 %", "and so on"]},
        {"view": "server+device", "verdict": "inconclusive", "reasons": []},
    ]
    said = re.sub(r"\s+", " ", words(page_of(tmp_path, passing() | {"beyond": beyond})))
    assert "Whoever takes a device apart leak memorised: 25 %; and 1 more" in said
    assert "The server, with a client&#39;s device inconclusive" in said


def test_method_is_honest(quiet: str) -> None:
    said = words(quiet)
    for text in ("seed 0", "up to 200 trials a group", "95% confidence", "Bonferroni",
                 "SSIM and PSNR decide nothing", "fewer than 10,000 nulls",
                 "fedvtc-edge audit RUN", "What each layer stops"):  # fmt: skip
        assert text in said, text


# ---------------------------------------------------------------- what may go wrong


def visible_nonsense(page: str) -> list[str]:
    bare = re.sub(r"data:image/png;base64,[A-Za-z0-9+/=]*", "", page)
    return re.findall(r"\b(?:NaN|nan|None|inf|Infinity|Undefined)\b", bare)


def test_never_shows_what_is_no_number(leaking: str, quiet: str, tmp_path: Path) -> None:
    for page in (leaking, quiet, page_of(tmp_path, bundle()), page_of(tmp_path, invalid())):
        assert not visible_nonsense(page)


@pytest.mark.parametrize("poison", [math.nan, math.inf, -math.inf, None])
def test_numbers_that_are_none_are_dashes(tmp_path: Path, poison: float | None) -> None:
    def poisoned(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: poisoned(item) for key, item in value.items()}
        if isinstance(value, list):
            return [poisoned(item) for item in value]
        return poison if isinstance(value, float) else value

    for document in (leak(), passing()):
        page = page_of(tmp_path, poisoned(document))
        assert not visible_nonsense(page)
        assert "–" in page


def test_hostile_words_are_only_text(tmp_path: Path) -> None:
    hostile = '"><script>alert(1)</script><svg onload=x>\ud800$\\frac{x$'

    def spoiled(value: Any, key: str = "") -> Any:
        if isinstance(value, dict):
            return {name: spoiled(item, name) for name, item in value.items()}
        if isinstance(value, list):
            return [spoiled(item, key) for item in value]
        kept = ("verdict", "metric", "group")
        return value + hostile if isinstance(value, str) and key not in kept else value

    document = passing()
    document["findings"] = [*document["findings"][:12], *facts()]
    images = [Picture(hostile, hostile, hostile, hostile, *[np.zeros((8, 8, 1), np.uint8)] * 2)]
    page = page_of(tmp_path, spoiled(document), images)
    assert "<script" not in page
    assert "<svg onload" not in page
    assert "&lt;script&gt;alert(1)" in page


def test_nearly_nothing_still_renders(tmp_path: Path) -> None:
    page = page_of(tmp_path, {"verdict": "pass"})
    assert "<h1>Privacy audit</h1>" in page
    assert "No attack was scored in this audit." in page
    assert not visible_nonsense(page)
    for name in ("records", "tradeoff", "pictures", "membership", "others", "layers"):
        assert f'id="{name}"' not in page


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schema": 1}, "schema 1"),
        ({"verdict": "fine"}, "verdict is 'fine'"),
        ({"verdict": None}, "verdict"),
        ({"findings": [{"attack": "a"}]}, r"findings\.0\.view"),
        ({"findings": "many"}, "findings is 'many'"),
        ({"curve": [{"minimum": 1, "moments": "mean", "accuracy": 97}]}, "accuracy is 97"),
        ({"dp": {"lower_bound": -1}}, "lower_bound is -1"),
    ],
)
def test_damaged_document_is_an_error(tmp_path: Path, change: Document, message: str) -> None:
    with pytest.raises(RunError, match=message) as caught:
        render(small() | change, [], tmp_path / "report.html")
    assert caught.value.hint
    assert not list(tmp_path.iterdir())


def test_many_classes_of_colour_stay_bounded(tmp_path: Path) -> None:
    groups = tuple(f"n = {n}, staged" for n in (1, 2, 5, 20, 100))
    images = pictures(100, groups, side=32, channels=3)
    page = page_of(tmp_path, small(), images)
    assert len(page) < 3_000_000
    assert page.count('<table class="grid">') == 15
    laid = gallery(pictures(2, tuple(f"n = {n}" for n in range(1, 30)), side=130, channels=3))
    kept = [grid for grids in laid.attacks.values() for grid in grids]
    assert laid.left_out == 3 * 29 - len(kept) > 0
    assert max(records(grid.group) or 0 for grid in kept) < 20  # those of few records stay
    assert sum(5 * len(grid.rows) * 44 * 44 * 3 for grid in kept) < 1.1 * PIXEL_BUDGET
    assert kept[0].rows[0].reconstruction.width == 2 * 44  # of 130 pixels every third


# ---------------------------------------------------------------- pieces


def test_shown_turns_trials_into_pictures() -> None:
    view = View(
        who="server", label=1, count=1.0, mean=np.zeros(2), std=None,
        public=torch.stack([torch.zeros(3, 4, 5), torch.ones(3, 4, 5)]),
        everyday=torch.zeros(1, 3, 4, 5),
    )  # fmt: skip
    candidates = torch.rand(4, 3, 4, 5)
    trial = SimpleNamespace(case=Case(view, candidates), target=2, average=candidates[2])
    painted = torch.full((3, 4, 5), 2.0)
    painted[0, 0, 0] = math.nan
    example = SimpleNamespace(
        attack="decode", group="n = 1", trial=trial, guess=Guess(np.zeros(4), painted), null=None
    )
    blind = SimpleNamespace(**vars(example) | {"guess": Guess(np.zeros(4))})
    (picture,) = shown([example, blind], ["zero", "one"])  # type: ignore[list-item]
    assert (picture.attack, picture.view, picture.group) == ("decode", "server", "n = 1")
    assert picture.label == "one"
    assert picture.target.shape == (4, 5, 3)
    assert picture.target.dtype == np.uint8
    expected = np.rint(255 * candidates[2].double().numpy().transpose(1, 2, 0))
    assert np.array_equal(picture.target, expected)
    assert picture.reconstruction[0, 0, 0] == 0
    assert picture.reconstruction[1:].min() == 255
    assert picture.class_mean is not None
    assert set(np.unique(picture.class_mean)) == {128}
    assert picture.ceiling is not None
    assert picture.null is None
    assert shown([example], ["zero"])[0].label == "1"  # type: ignore[list-item]


@pytest.mark.parametrize(
    ("group", "size"),
    [("n = 1", 1), ("n = 3 to 5", math.sqrt(15)), ("n = 20, staged", 20), ("all", None),
     ("n = 100 or more", 100), ("n = 0", 1), ("round 3", None)],
)  # fmt: skip
def test_groups_have_sizes(group: str, size: float | None) -> None:
    assert records(group) == (size if size is None else pytest.approx(size))


def test_groups_stand_by_size() -> None:
    groups = ["all", "n = 100 or more", "n = 20 to 99", "n = 3 to 5", "n = 1"]
    assert ordered(groups) == groups[::-1]


def test_labels_do_not_crowd() -> None:
    ends = [(90.0, 97.0), (99.0, 96.4), (60.0, 93.8), (10.0, 73.0)]
    placed = beside(ends, 1.5)
    assert placed[2:] == ends[2:]
    assert {x for x, _ in placed[:2]} == {99.0}
    assert placed[0][1] - placed[1][1] == pytest.approx(1.5)
    assert beside([], 1.0) == []


def test_numbers_read_well() -> None:
    assert [number(v) for v in (1e-5, 0.97, 12_400, -3.0, None)] == [
        "1e-5", "0.97", "12\u202f400", "\u22123", "–"
    ]  # fmt: skip
    assert amount("auc", 0.5) == "0.500"
    assert interval("identification", 0.951, 0.994) == "95.1–99.4%"
    assert interval("identification", None, 0.994) == ""
    assert "up to 2.7" in odds(1)
    assert "more than a million" in odds(1e9)
    assert told("error nan, info, -inf") == "error –, info, –"
