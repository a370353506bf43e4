"""Signatures of nodes: as Flower makes and checks them, and nothing else."""

from __future__ import annotations

import base64
from datetime import UTC, datetime

import httpx
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from flwr.common.constant import SYSTEM_TIME_TOLERANCE, TIMESTAMP_HEADER, TIMESTAMP_TOLERANCE
from flwr.supercore.constant import FLEET_HTTP_PUBLIC_KEY_HEADER, FLEET_HTTP_SIGNATURE_HEADER
from flwr.supercore.primitives.asymmetric import sign_message
from flwr.supercore.protobuf.client import ProtobufRequestContext
from flwr.supernode.node_auth_http_interceptor import NodeAuthHttpInterceptor
from google.protobuf.message import Message

from fedvtc_edge.errors import DeploymentError
from fedvtc_edge.flower.access import node_signature, pki
from fedvtc_edge.flower.access.node_signature import KEY, SIGNATURE, TIME, NodeKeys
from fedvtc_edge.sealing import signing

CURVES = (ec.SECP256R1(), ec.SECP384R1(), ec.SECP521R1())
NODE = ec.generate_private_key(ec.SECP384R1())
KEYS = NodeKeys([pki.openssh_line(NODE.public_key())])


def flowers(key: ec.EllipticCurvePrivateKey) -> dict[bytes, bytes]:
    """The header that Flower's own node makes."""
    request = httpx.Request("POST", "https://x/")
    context = ProtobufRequestContext("", Message(), request)
    NodeAuthHttpInterceptor(key, key.public_key()).intercept(
        context, lambda context: httpx.Response(200)
    )
    return {name.lower(): value for name, value in request.headers.raw}


@pytest.mark.parametrize("curve", CURVES, ids=lambda curve: curve.name)
def test_flowers_own_signature(curve: ec.EllipticCurve) -> None:
    key = ec.generate_private_key(curve)
    headers = flowers(key)
    keys = NodeKeys([pki.openssh_line(key.public_key()), pki.openssh_line(NODE.public_key())])
    assert keys.signer(headers) == headers[KEY]
    assert keys.knows(headers)
    assert KEYS.signer(headers) is None
    assert not KEYS.knows(headers)


def test_names_and_window_are_flowers() -> None:
    assert TIMESTAMP_HEADER.encode() == TIME
    assert FLEET_HTTP_PUBLIC_KEY_HEADER.encode() == KEY
    assert FLEET_HTTP_SIGNATURE_HEADER.encode() == SIGNATURE
    assert node_signature._AHEAD_S == SYSTEM_TIME_TOLERANCE
    assert node_signature._BEHIND_S == TIMESTAMP_TOLERANCE + SYSTEM_TIME_TOLERANCE


@pytest.mark.parametrize(("off_s", "well"), [(-4, True), (-6, False), (304, True), (306, False)])
def test_the_window(off_s: float, well: bool) -> None:
    headers = flowers(NODE)
    signed = datetime.fromisoformat(headers[TIME].decode()).timestamp()
    keys = NodeKeys([pki.openssh_line(NODE.public_key())], clock=lambda: signed + off_s)
    assert (keys.signer(headers) is not None) == well


@pytest.mark.parametrize("part", [KEY, TIME, SIGNATURE])
@pytest.mark.parametrize(
    "value", [None, b"", b"x", b"\xff", b"2026-01-01T00:00:00", b"9" * 2000, b"A" * 96]
)
def test_anything_else_is_nobodys(part: bytes, value: bytes | None) -> None:
    headers = flowers(NODE)
    if value is None:
        del headers[part]
    else:
        headers[part] = value
    assert KEYS.signer(headers) is None


def test_a_time_without_a_zone_is_refused_though_signed() -> None:
    when = datetime.now(UTC).replace(tzinfo=None).isoformat()
    headers = flowers(NODE)
    headers[TIME] = when.encode()
    headers[SIGNATURE] = base64.b64encode(sign_message(NODE, when.encode()))
    assert KEYS.signer(headers) is None


def test_another_kind_of_key_is_no_nodes() -> None:
    key = signing.generate()
    assert isinstance(key, ed25519.Ed25519PrivateKey)
    line = key.public_key().public_bytes(
        serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH
    )
    with pytest.raises(DeploymentError, match="another kind"):
        NodeKeys([line])
