"""Settings: defaults, overrides, every kind of refusal, and the page that documents them."""

from __future__ import annotations

import contextlib
import json
import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel

from fedvtc_edge.config import MAX_CONFIG_BYTES, Config, load_config
from fedvtc_edge.errors import ConfigError, UsageError

PAGE = Path(__file__).parents[1] / "docs" / "configuration.md"


def keys(table: type[BaseModel], prefix: str = "") -> dict[str, Any]:
    """Every dotted key of the configuration with its default."""
    found: dict[str, Any] = {}
    for name, field in table.model_fields.items():
        if isinstance(field.default, BaseModel):
            found |= keys(type(field.default), f"{prefix}{name}.")
        else:
            found[prefix + name] = field.default
    return found


def documented() -> dict[str, list[str]]:
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in PAGE.read_text("utf-8").splitlines()
        if line.startswith("| `")
    ]
    assert all(len(row) == 5 for row in rows)
    assert len({row[0] for row in rows}) == len(rows)
    return {row[0].strip("`"): row[1:] for row in rows}


def test_the_page_lists_every_key_and_no_other() -> None:
    assert list(documented()) == list(keys(Config))


@pytest.mark.parametrize("key", keys(Config))
def test_the_page_tells_the_true_default(key: str) -> None:
    text = documented()[key][2]
    assert re.fullmatch(r"`.+`", text)
    if keys(Config)[key] is None:
        assert text == "`unset`"
        return
    told = tomllib.loads(f"value = {text.strip('`')}")["value"]
    true = json.loads(json.dumps(keys(Config)[key]))  # tuples are lists in TOML
    assert told == true
    assert type(told) is type(true)


@pytest.mark.parametrize("key", keys(Config))
def test_the_page_names_every_choice(key: str) -> None:
    table, _, name = key.rpartition(".")
    model = type(getattr(Config(), table)) if table else Config
    schema = model.model_json_schema()["properties"][name]
    choices = schema.get("enum") or schema.get("items", {}).get("enum") or []
    for choice in choices:
        assert f"`{choice}`" in documented()[key][1]


def test_nothing_is_the_defaults() -> None:
    assert load_config() == load_config({}) == Config()


def test_a_file_overridden_from_the_command_line(tmp_path: Path) -> None:
    path = tmp_path / "c.toml"
    path.write_text('seed = 3\n[method]\nrounds = 4\nlatent = 8\n[data]\nname = "mnist"\n')
    config = load_config(path, overrides=["method.rounds=5", "data.name = cifar10", "data.alpha=1"])
    assert (config.seed, config.method.rounds, config.method.latent) == (3, 5, 8)
    assert (config.data.name, config.data.alpha) == ("cifar10", 1.0)


def test_replace_validates_again_and_leaves_the_original() -> None:
    config = Config()
    changed = config.replace(seed=1, method={"share": "features"})
    assert (changed.seed, changed.method.share) == (1, "features")
    assert changed.method.rounds == config.method.rounds
    assert config.seed == 0
    with pytest.raises(ConfigError, match=r"method\.rounds = 0"):
        config.replace(method={"rounds": 0})


def test_settings_cannot_be_changed_in_place() -> None:
    with pytest.raises(ValueError, match="frozen"):
        Config().seed = 1  # type: ignore[misc]


@pytest.mark.parametrize(
    ("override", "message", "hint"),
    [
        ("method.alpha=1", "unknown key method.alpha", "did you mean data.alpha?"),
        ("alpha=1", "unknown key alpha", "did you mean data.alpha?"),
        ("method.round=1", "unknown key method.round", "did you mean method.rounds?"),
        ("clients.device=1", "clients.device", "did you mean engine.device or clients.devices?"),
        ("trainng.epochs=1", "unknown key trainng", "did you mean training?"),
        ("data.zzz=1", "unknown key data.zzz", "valid keys: alpha, "),
        ("method.rounds", "--set 'method.rounds' has no value", "method.rounds=5"),
        ("=5", "has no value", "method.rounds=5"),
        ("method.rounds=0", "method.rounds = 0: expected greater than or equal to 1", "docs/"),
        ("method.rounds=2.0", "method.rounds = 2.0: expected a valid integer", "docs/"),
        ("method.rounds=true", "method.rounds = True: expected a valid integer", "docs/"),
        ("training.rate=nan", "training.rate = nan: expected", "docs/"),
        ("training.rate='1'", "training.rate = '1': expected a valid number", "docs/"),
        ("method.share=all", "method.share = 'all': expected 'anchored', 'features'", "docs/"),
        ("method.ablate=['dm', 'x']", "method.ablate.1 = 'x': expected 'dm', 'kl'", "docs/"),
        ("clients.architectures=mlp", "clients.architectures = 'mlp': expected a list", "docs/"),
        ("clients.architectures=[]", "an empty list", "at least one"),
        ("data=5", "data = 5: expected a table", "docs/"),
        ("seed.x=1", "seed = {'x': 1}: expected a valid integer", "docs/"),
        ("seed=-1", "seed = -1: expected", "docs/"),
        ("data.image_size=9", "data.image_size = 9", "multiple of 4"),
        ("method.rounds=1\nlatent=2", "method.rounds = '1\\nlatent=2'", "docs/"),
    ],
)
def test_refusals_name_key_value_and_remedy(override: str, message: str, hint: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(overrides=[override])
    assert message in str(caught.value)
    assert hint in caught.value.hint
    assert isinstance(caught.value, UsageError)
    assert caught.value.exit_code == 2


def test_a_long_value_is_cut_short() -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(overrides=["seed=" + "9" * 10_000])  # more digits than Python converts
    assert len(str(caught.value)) < 200


@pytest.mark.parametrize(
    "content",
    [b"a = = 1", b"\xff\xfe", b"a = " + b"[" * 5000, b"seed = " + b"9" * 5000, b"\x00"],
    ids=["syntax", "not UTF-8", "too deep", "too many digits", "control character"],
)
def test_a_file_that_is_not_toml(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "c.toml"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match="is not TOML"):
        load_config(path)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="No such file"):
        load_config(tmp_path / "missing.toml")
    with pytest.raises(ConfigError, match="cannot read"):
        load_config(tmp_path)
    large = tmp_path / "large.toml"
    large.write_bytes(b"#" * (MAX_CONFIG_BYTES + 1))
    with pytest.raises(ConfigError, match="larger than"):
        load_config(large)


@pytest.mark.skipif(not Path("/dev/zero").exists(), reason="needs an endless file")
def test_an_endless_file_is_refused() -> None:
    with pytest.raises(ConfigError, match="larger than"):
        load_config("/dev/zero")


@given(st.text(max_size=60))
def test_no_override_ends_in_anything_but_settings_or_a_config_error(text: str) -> None:
    with contextlib.suppress(ConfigError):
        assert isinstance(load_config(overrides=[text]), Config)


def test_rounds_are_more_where_something_is_shared_in_each() -> None:
    assert load_config().method.rounds == 3
    for share in ("features", "features+decoder"):
        assert load_config(overrides=[f"method.share={share}"]).method.rounds == 10
        assert load_config({"method": {"share": share, "rounds": 4}}).method.rounds == 4
        assert load_config({"method": {"share": share}}).training.decoder_steps == 30
        given = load_config({"method": {"share": share}, "training": {"decoder_steps": 7}})
        assert (given.method.rounds, given.training.decoder_steps) == (10, 7)
        assert load_config().replace(method={"share": share}).method.rounds == 3  # equal budgets
    assert load_config({"method": {"share": "anchored"}}).method.rounds == 3
    assert load_config({"method": {"share": "anchored"}}).training.decoder_steps == 100
    with pytest.raises(ConfigError, match="rounds"):
        load_config({"method": {"share": "features", "rounds": 0}})


@pytest.mark.parametrize(
    ("compare", "message", "hint"),
    [
        ({"rows": 1}, "unknown key compare.rows", "did you mean compare.rounds?"),
        ({"seeds": [1, 1]}, "compare.seeds = [1, 1]: one stands there twice", "each only once"),
        ({"seeds": []}, "compare.seeds = []", "docs/configuration.md"),
        ({"alphas": [0]}, "compare.alphas.0 = 0: expected greater than 0", "its range"),
        ({"datasets": "digits"}, "compare.datasets = 'digits': expected a list", "its type"),
        ({"datasets": [{}]}, "compare.datasets.0.name is not given", "docs/configuration.md"),
        (
            {"datasets": [{"name": "digits", "limt": 3}]},
            "unknown key compare.datasets.0.limt",
            "did you mean compare.datasets.0.limit?",
        ),
    ],
)
def test_a_table_of_a_comparison(compare: dict[str, Any], message: str, hint: str) -> None:
    with pytest.raises(ConfigError) as refused:
        load_config({"compare": compare})
    assert message in str(refused.value)
    assert hint in refused.value.hint


def test_data_sets_by_name_or_as_tables() -> None:
    mixed = {"datasets": ["digits", {"name": "mnist", "limit": 5, "alphas": [1]}]}
    digits, mnist = load_config({"compare": mixed}).compare.datasets
    assert (digits.name, digits.limit, digits.alphas) == ("digits", None, ())
    assert (mnist.name, mnist.limit, mnist.alphas) == ("mnist", 5, (1.0,))


def test_a_comparison_is_no_part_of_a_run() -> None:
    """A run's name is a digest of its settings, and no run depends on this table."""
    assert "compare" not in Config().model_dump()
    assert "compare" in load_config({"compare": {"tune": True}}).model_dump()
