"""``devices`` takes a name, or nothing, or the one word that is a sub-command."""

from __future__ import annotations

import json

import pytest
from click.testing import CliRunner, Result

from fedvtc_edge.commands.devices import command
from fedvtc_edge.devices import DeviceProfile, profile_names


def call(*words: str) -> Result:
    return CliRunner().invoke(command, words)


def test_nothing_lists_all() -> None:
    rows = call().stdout.splitlines()[1 : 1 + len(profile_names())]
    assert [row.split()[0] for row in rows] == list(profile_names())
    listed = json.loads(call("--json").stdout)["devices"]
    assert [device["name"] for device in listed] == list(profile_names())


@pytest.mark.parametrize(
    "words", [("rpi4", "--json"), ("--json", "rpi4"), ("--json", "--", "rpi4")]
)
def test_a_name_shows_one(words: tuple[str, ...]) -> None:
    shown = DeviceProfile.load("rpi4").model_dump(mode="json")
    assert json.loads(call(*words).stdout) == {"schema": 1, **shown}
    assert "deadline_s         600    assumed" in call("rpi4").stdout


def test_help_names_both_ways() -> None:
    text = call("--help").stdout
    assert "[NAME] | calibrate" in text
    assert "calibrate" in text.rpartition("Commands:")[2]
    assert "show" not in text.rpartition("Commands:")[2]
    assert "--out FILE.toml" in call("calibrate", "--help").stdout


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--josn",), "--json"),
        (("rpi4", "rpi5"), "unexpected extra argument"),
        (("calibrate", "rpi4"), "unexpected extra argument"),
    ],
)
def test_slips(words: tuple[str, ...], message: str) -> None:
    answer = call(*words)
    assert answer.exit_code == 2
    assert message in answer.stderr
