"""docs/distributed.md and docs/trial.sh against the commands and the sources that they quote."""

from __future__ import annotations

import ast
import re
import shlex
import subprocess
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import click
import pytest

from fedvtc_edge.__main__ import command_line

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "distributed.md").read_text("utf-8")
SCRIPT = ROOT / "docs" / "trial.sh"

BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
REDIRECTED = re.compile(r"\s(\d?>|&|#).*", re.DOTALL)
SAYS_LITTLE = 8  # literal characters; a source with fewer would match anything


def blocks(kind: str) -> list[str]:
    return [found[2] for found in BLOCK.finditer(PAGE) if found[1] == kind]


def lines_of(text: str) -> Iterator[str]:
    for line in text.replace("\\\n", " ").splitlines():
        command = line.strip().removeprefix("$ ")
        if command.startswith("fedvtc-edge "):
            yield REDIRECTED.sub("", command)


TYPED = sorted(
    {
        *(line for text in blocks("sh") for line in lines_of(text)),
        *(
            line
            for text in (*blocks("console"), *blocks("text"))
            for line in lines_of("\n".join(x for x in text.splitlines() if x.startswith("$ ")))
        ),
        *lines_of(SCRIPT.read_text("utf-8")),
    }
)
# In running text: words may be left out, options may not be made up.
MENTIONED = sorted(set(re.findall(r"`((?:fedvtc-edge )?(?:serve|join|run|keys) [^`…:]+)`", PAGE)))


def command_of(words: list[str]) -> tuple[click.Command, list[str]]:
    found: click.Command = command_line
    rest = [word for word in words if word != "fedvtc-edge"]
    while isinstance(found, click.Group):
        inner = found.get_command(click.Context(found), rest[0])
        assert inner is not None, f"no command {rest[0]}"
        found, rest = inner, rest[1:]
    return found, rest


@pytest.mark.parametrize("line", TYPED)
def test_commands_can_be_typed(line: str) -> None:
    command, rest = command_of(shlex.split(line))
    context = click.Context(command)
    _, left, _ = command.make_parser(context).parse_args(rest)
    assert not left


@pytest.mark.parametrize("text", MENTIONED)
def test_options_in_running_text_exist(text: str) -> None:
    command, rest = command_of(text.split())
    known = {
        name
        for parameter in command.params
        for name in (*parameter.opts, *parameter.secondary_opts)
    }
    assert {word for word in rest if word.startswith("--")} <= known


def test_there_is_something_to_check() -> None:
    assert len(TYPED) > 10
    assert len(MENTIONED) > 3
    assert len(SAID) > 30


def said() -> Iterator[str]:
    for text in (*blocks("text"), *blocks("console"), *blocks("")):
        for line in text.splitlines():
            for mark in ("fedvtc-edge: error: ", "fedvtc-edge: hint: "):
                if line.startswith(mark):
                    yield line.removeprefix(mark)
            refused = re.fullmatch(r"run [0-9a-f]{32}: no part taken: (.+) \((.+)\)", line)
            if refused:
                yield from refused.groups()


SAID = sorted(set(said()))


def template(node: ast.expr) -> tuple[str, int] | None:
    """A pattern for what a string in the sources may become, and how much of it is literal."""
    parts = node.values if isinstance(node, ast.JoinedStr) else [node]
    pattern, literal = "", 0
    for part in parts:
        if isinstance(part, ast.Constant) and isinstance(part.value, str):
            pattern += re.escape(part.value)
            literal += len(part.value)
        elif isinstance(part, ast.FormattedValue):
            pattern += ".*?"
        else:
            return None
    return pattern, literal


@cache
def sources() -> list[re.Pattern[str]]:
    patterns = set()
    for path in (ROOT / "fedvtc_edge").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Constant | ast.JoinedStr):
                found = template(node)
                if found and found[1] >= SAYS_LITTLE and "\n\n" not in found[0]:
                    patterns.add(found[0])
    return [re.compile(pattern) for pattern in patterns]


@pytest.mark.parametrize("text", SAID)
def test_what_is_quoted_is_said(text: str) -> None:
    assert any(pattern.fullmatch(text) for pattern in sources())


def test_the_script_is_one() -> None:
    done = subprocess.run(["bash", "-n", SCRIPT], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_an_existing_folder_is_not_written_to(tmp_path: Path) -> None:
    words = ["bash", str(SCRIPT), str(tmp_path)]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert (done.returncode, list(tmp_path.iterdir())) == (2, [])
    assert done.stderr == f"trial.sh: {tmp_path} exists; choose another folder\n"


def test_links_lead_somewhere() -> None:
    headings = {
        re.sub(r"[^a-z0-9 -]", "", line.lstrip("# ").lower()).replace(" ", "-")
        for line in PAGE.splitlines()
        if line.startswith("#")
    }
    for target in re.findall(r"\]\(([^)]+)\)", PAGE):
        if target.startswith("#"):
            assert target[1:] in headings
        elif not target.startswith("https:"):
            assert (ROOT / "docs" / target).is_file()
