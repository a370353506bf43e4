"""A server's word opens no file here: clients use their own, and are held to its hash."""

from __future__ import annotations

import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
import torchvision
from onnx import TensorProto, helper, numpy_helper
from safetensors.torch import save_file

from fedvtc_edge.config import Config
from fedvtc_edge.distributed.client.participant import Participant
from fedvtc_edge.errors import ConfigError
from fedvtc_edge.models import weight_files
from fedvtc_edge.models.extractor import pinned
from fedvtc_edge.models.pretrained import LITE0, LITE0_SHA256
from fedvtc_edge.runs.finished import FinishedRun

Make = Callable[..., Any]
SMALL = "shufflenet_v2_x0_5"


def graph(seed: int) -> bytes:
    """A linear map of 16 average colours."""
    draw = np.random.default_rng(seed).standard_normal((48, 20)).astype(np.float32)
    nodes = [
        helper.make_node("AveragePool", ["x"], ["p"], kernel_shape=[4, 4], strides=[4, 4]),
        helper.make_node("Flatten", ["p"], ["f"]),
        helper.make_node("MatMul", ["f", "w"], ["y"]),
    ]
    ports = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
        for name, shape in (("x", ["N", 3, 16, 16]), ("y", ["N", 20]))
    ]
    body = helper.make_graph(nodes, "g", ports[:1], ports[1:], [numpy_helper.from_array(draw, "w")])
    opset = [helper.make_opsetid("", 17)]
    data: bytes = helper.make_model(body, opset_imports=opset, ir_version=8).SerializeToString()
    onnx.checker.check_model(onnx.load_model_from_string(data))
    return data


def put(path: Path, seed: int = 0) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(graph(seed))
    return str(path)


@pytest.fixture
def served(village: Make, small: Make, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Make:
    """``served(files, extractor=…)``: a village whose clients have files of their own."""

    def make(files: dict[str, str], **method: Any) -> Any:
        config: Config = small(data={"image_size": 16}, method={"rounds": 1, **method})
        one = village(pinned(config))
        usual = one.participant

        def participant(name: str, **changes: Any) -> Participant:
            return usual(name, **{"extractor": files.get(name, ""), **changes})  # type: ignore[no-any-return]

        monkeypatch.setattr(one, "participant", participant)
        return one

    return make


def nobody(*_: Any, **__: Any) -> None:
    pytest.fail("it was fetched")


def test_each_works_with_its_own_copy(served: Make, tmp_path: Path) -> None:
    names = ["client-00", "client-01", "client-02"]
    files = {name: put(tmp_path / name / "copy.onnx") for name in names}
    at_server = put(tmp_path / "server.onnx")
    one = served(files, extractor=at_server)
    one.serve()
    assert one.published()
    for name in names:
        home = one.home(name)
        settings = tomllib.loads((home.path / "config.toml").read_text())
        assert settings["method"]["extractor"] == files[name]
        finished = FinishedRun.open(home.path)
        assert finished.config.method.extractor == files[name]


def test_another_file_is_refused_by_name_before_anything_leaves(
    served: Make, tmp_path: Path
) -> None:
    good, bad = put(tmp_path / "a" / "one.onnx"), put(tmp_path / "b" / "other.onnx", seed=1)
    one = served({"client-00": good, "client-01": bad}, extractor=put(tmp_path / "server.onnx"))
    assert one.reply("client-00", one.hello()).envelope
    reply = one.reply("client-01", one.hello())
    assert reply.envelope == b""
    assert one.home("client-01").joined is None
    digest = one.config.method.extractor_sha256
    for words in ("other.onnx' here has sha256", f"the run's has {digest[:16]}"):
        assert words in reply.problem
    assert str(tmp_path) not in reply.problem


def test_a_file_that_changes_after_the_hello_stops_the_client(served: Make, tmp_path: Path) -> None:
    file = put(tmp_path / "mine.onnx")
    one = served({"client-00": file}, extractor=put(tmp_path / "server.onnx"))
    assert one.reply("client-00", one.hello()).envelope
    put(tmp_path / "mine.onnx", seed=2)
    reply = one.reply("client-00", one.request("client-00", 0, "anchor"))
    assert reply.envelope == b""
    assert "the run's has" in reply.problem
    assert one.ledger("client-00") == []


def test_a_file_that_moved_is_given_again(served: Make, tmp_path: Path) -> None:
    files = {"client-00": put(tmp_path / "mine.onnx")}
    one = served(files, extractor=put(tmp_path / "server.onnx"))
    one.reply("client-00", one.hello())
    moved = Path(files["client-00"]).rename(tmp_path / "moved.onnx")
    files["client-00"] = str(moved)
    assert one.reply("client-00", one.hello("again")).envelope
    assert one.home("client-00").config().method.extractor == str(moved)


def test_a_path_that_the_server_names_is_never_opened(
    served: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    at_server = put(tmp_path / "server.onnx")
    one = served({}, extractor=at_server)
    monkeypatch.setattr(Path, "open", nobody)
    monkeypatch.setattr(Path, "stat", nobody, raising=True)
    with pytest.raises(ConfigError, match="an ONNX file of sha256") as caught:
        one.participant("client-00")._with_extractor(one.config)
    assert "join --extractor FILE.onnx" in caught.value.hint
    assert at_server not in str(caught.value)


@pytest.mark.parametrize("kind", ["random", LITE0])
def test_a_file_where_none_is_asked_for_is_refused(served: Make, tmp_path: Path, kind: str) -> None:
    one = served({"client-00": put(tmp_path / "mine.onnx")}, extractor=kind)
    reply = one.reply("client-00", one.hello())
    assert f"the run's extractor is '{kind}'" in reply.problem
    assert "leave --extractor out" in reply.problem


def test_an_installed_one_needs_no_file(served: Make) -> None:
    one = served({}, extractor=LITE0)
    assert one.config.method.extractor_sha256 == LITE0_SHA256
    assert one.reply("client-00", one.hello()).envelope
    assert one.home("client-00").config() == one.config


def test_a_librarys_network_comes_from_a_file_or_the_cache_and_never_from_the_network(
    served: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.hub, "download_url_to_file", nobody)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    torch.manual_seed(0)
    network = torchvision.models.get_model(SMALL, weights=None)
    weights = {key: value.clone() for key, value in network.state_dict().items()}
    save_file(weights, tmp_path / "server.safetensors")
    save_file(weights, tmp_path / "mine.safetensors", metadata={"format": "pt"})
    mine = {"client-00": str(tmp_path / "mine.safetensors")}
    at_server = {"extractor": f"torchvision:{SMALL}"}
    at_server["extractor_weights"] = str(tmp_path / "server.safetensors")
    one = served(mine, **at_server)
    assert one.reply("client-00", one.hello()).envelope
    assert one.home("client-00").config().method.extractor_weights == mine["client-00"]
    problem = one.reply("client-01", one.hello()).problem
    assert "its weights are not in the cache here, and nobody asked for them" in problem
    mine["client-01"] = put(tmp_path / "graph.onnx")
    assert "FILE.safetensors" in one.reply("client-01", one.hello()).problem


def test_a_server_that_names_no_hash_is_refused(served: Make, tmp_path: Path) -> None:
    file = put(tmp_path / "mine.onnx")
    one = served({"client-00": file}, extractor=put(tmp_path / "server.onnx"))
    bare = one.config.replace(method={"extractor_sha256": ""})
    with pytest.raises(ConfigError, match="the run's extractor is") as caught:
        one.participant("client-00")._with_extractor(bare)
    assert "without its hash" in caught.value.hint


def test_downloads_are_allowed_again_afterwards(served: Make) -> None:
    one = served({}, extractor=LITE0)
    one.reply("client-00", one.hello())
    assert weight_files._downloads.get()
