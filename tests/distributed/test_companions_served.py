"""Small shared networks over messages: the same bits, and publications that a client refuses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fedvtc_edge
from fedvtc_edge import wire
from fedvtc_edge.distributed.messages import REPORT, digest_of
from fedvtc_edge.federation.methods.companions import KIND

METHODS = ["fml", "fedkd", "fedmrl", "fedtype", "fedmd"]
MIXED = {"clients": {"architectures": ["mlp", "lenet"]}}


def networks(clients: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in clients.glob("*.safetensors")}


@pytest.mark.parametrize("name", METHODS)
def test_same_bits_as_in_one_process_also_killed(
    village: Any, small: Any, tmp_path: Path, name: str
) -> None:
    config = small(**MIXED, method={"name": name, "rounds": 2}, data={"public": "rest"})
    here = tmp_path / "local"
    fedvtc_edge.run(config.replace(engine={"name": "local"}), out=here)
    there = village(config)
    assert there.serve_through("server", every=20)
    assert there.refusals() == []
    for client in there.names:
        own = networks(here / "clients" / client)
        assert (f"{KIND}.safetensors" in own) == (name != "fedmd")
        assert networks(there.home(client).path / "clients" / client) == own


def test_a_client_refuses_weights_of_another_network(village: Any, small: Any) -> None:
    there, me = village(small(method={"name": "fml", "rounds": 2})), "client-00"
    assert there.reply(me, there.hello()).envelope
    assert there.reply(me, there.request(me, 1, KIND)).envelope
    data = wire.encode_weights({"head.bias": np.zeros(10, np.float32)})
    lie = {"digests": {KIND: digest_of(data)}, "published": {KIND: data}}
    reply = there.reply(me, there.request(me, 1, REPORT, 1, **lie))
    assert not reply.envelope
    assert "weights must have the names and shapes" in reply.problem
