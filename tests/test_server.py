"""The server adds, whatever the order, and refuses what does not belong."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from fedvtc_edge.errors import PrivacyError
from fedvtc_edge.privacy.design import Design
from fedvtc_edge.privacy.estimation import estimate
from fedvtc_edge.server import Server, ServerError
from fedvtc_edge.statistics import ClassStatistics, GlobalStatistics
from fedvtc_edge.wire import (
    WireError,
    decode,
    decode_release,
    decode_weights,
    encode,
    encode_release,
    encode_weights,
    publish,
    published,
)

CLASSES, WIDTH = 3, 4


def uploads(*, pooled: bool = False) -> dict[str, bytes]:
    rng = np.random.default_rng(7)
    made = {}
    for index, size in enumerate((5, 0, 11, 1)):
        z, y = rng.standard_normal((size, WIDTH)), rng.integers(0, CLASSES, size)
        statistics = ClassStatistics.of(z, y, classes=CLASSES, pooled=pooled)
        made[f"client-{index:02d}"] = encode(statistics)
    return made


def ignore(round_: int, sender: str, kind: str, data: bytes) -> None:
    """A witness that keeps nothing."""


def send(server: Server, sender: str, data: bytes, *, pooled: bool = False) -> None:
    server.receive(data, sender=sender, round_=1, kind="features", width=WIDTH, pooled=pooled)


@pytest.mark.parametrize("pooled", [False, True])
def test_the_order_of_uploads_does_not_change_a_bit(pooled: bool) -> None:
    made = uploads(pooled=pooled)
    results = set()
    for order in itertools.permutations(made):
        server = Server(CLASSES, ignore)
        for sender in order:
            send(server, sender, made[sender], pooled=pooled)
        results.add(server.close(quorum=len(made), floor=0.2))
    assert len(results) == 1

    total = None  # the slow twin: plain sums in the order of the names
    for sender in sorted(made):
        part = decode(made[sender], classes=CLASSES, width=WIDTH, pooled=pooled)
        total = part if total is None else total + part
    assert total is not None
    assert results == {publish(GlobalStatistics.from_sum(total, floor=0.2))}


def test_not_even_where_rounding_depends_on_the_order() -> None:
    """1e10 + 1e-8 − 1e10 is 0 or 1e-8, as one adds; only sorting makes it one of them."""
    made = {
        name: encode(ClassStatistics.of(np.full((1, WIDTH), z), [0], classes=CLASSES))
        for name, z in (("a", 1e10), ("b", 1e-8), ("c", -1e10))
    }
    results = set()
    for order in itertools.permutations(made):
        server = Server(CLASSES, ignore)
        for sender in order:
            send(server, sender, made[sender])
        results.add(server.close(quorum=3))
    assert len(results) == 1


def test_one_upload_counts() -> None:
    (sender, data), *_ = uploads().items()
    server = Server(CLASSES, ignore)
    send(server, sender, data)
    with pytest.raises(ServerError, match="client-00 uploads twice in round 1"):
        send(server, sender, data)
    once = Server(CLASSES, ignore)
    send(once, sender, data)
    assert server.close(quorum=1) == once.close(quorum=1)


def test_too_few_uploads_do_not_close_a_round_and_more_may_still_come() -> None:
    server = Server(CLASSES, ignore)
    (first, a), (second, b), *_ = uploads().items()
    send(server, first, a)
    with pytest.raises(ServerError, match="1 uploads, the quorum is 2"):
        server.close(quorum=2)
    send(server, second, b)
    assert published(server.close(quorum=2)).count.sum() == 5


def test_no_upload_at_all_never_closes_a_round() -> None:
    with pytest.raises(ServerError, match="0 uploads"):
        Server(CLASSES, ignore).close(quorum=0)


def test_rounds_do_not_run_into_each_other() -> None:
    (first, a), _, (third, c), _ = uploads().items()
    server = Server(CLASSES, ignore)
    send(server, first, a)
    alone = server.close(quorum=1)
    send(server, third, c)
    server.close(quorum=1)
    send(server, first, a)  # heard in an earlier round, and welcome in this one
    assert server.close(quorum=1) == alone


def test_the_witness_sees_the_exact_bytes_even_of_what_is_refused() -> None:
    seen = []
    server = Server(CLASSES, lambda *upload: seen.append(upload))
    made = uploads()
    send(server, "client-00", made["client-00"])
    with pytest.raises(ServerError):
        send(server, "client-00", made["client-02"])
    with pytest.raises(WireError):
        server.receive(b"junk", sender="x", round_=9, kind="anchor", width=WIDTH, pooled=True)
    assert seen == [
        (1, "client-00", "features", made["client-00"]),
        (1, "client-00", "features", made["client-02"]),
        (9, "x", "anchor", b"junk"),
    ]


def test_a_refused_upload_is_not_counted() -> None:
    server = Server(CLASSES, ignore)
    with pytest.raises(WireError):
        send(server, "client-00", uploads(pooled=True)["client-00"])
    with pytest.raises(ServerError):
        server.close(quorum=1)
    send(server, "client-00", uploads()["client-00"])
    server.close(quorum=1)


# ---------------------------------------------------------------- decoders


def _weights(value: float) -> dict[str, np.ndarray]:
    return {"a": np.full((2, 3), value, np.float32), "b": np.arange(4, dtype=np.float32) * value}


def test_decoders_are_averaged_whatever_the_order_and_seen_by_the_witness() -> None:
    seen: list[tuple[int, str, str, bytes]] = []
    answers = []
    for order in ((1.0, 2.0, 6.0), (6.0, 1.0, 2.0)):
        server = Server(2, lambda *upload: seen.append(upload))
        for value in order:
            upload = encode_weights(_weights(value))
            server.receive_decoder(upload, sender=f"c{value}", round_=3, like=_weights(0.0))
        answers.append(server.close_decoders(quorum=3))
    assert answers[0] == answers[1]
    mean = decode_weights(answers[0], like=_weights(0.0))
    np.testing.assert_allclose(mean["b"], np.arange(4) * 3.0)
    assert seen[0] == (3, "c1.0", "decoder", encode_weights(_weights(1.0)))


def test_a_decoder_counts_once_and_only_with_a_quorum() -> None:
    server = Server(2, lambda *_: None)
    upload = encode_weights(_weights(1.0))
    server.receive_decoder(upload, sender="a", round_=1, like=_weights(0.0))
    with pytest.raises(ServerError, match="twice"):
        server.receive_decoder(upload, sender="a", round_=1, like=_weights(0.0))
    with pytest.raises(ServerError, match="quorum is 2"):
        server.close_decoders(quorum=2)


@pytest.mark.parametrize(
    "bad",
    [
        {"a": np.zeros((2, 3), np.float32)},
        {"a": np.zeros((3, 2), np.float32), "b": np.zeros(4, np.float32)},
        {"a": np.full((2, 3), np.nan, np.float32), "b": np.zeros(4, np.float32)},
        {"a": np.zeros((2, 3), np.float32), "b": np.zeros(4000, np.float32)},
    ],
    ids=["missing", "shape", "nan", "huge"],
)
def test_a_decoder_of_another_shape_is_refused(bad: dict[str, np.ndarray]) -> None:
    server = Server(2, lambda *_: None)
    with pytest.raises(WireError):
        server.receive_decoder(encode_weights(bad), sender="a", round_=1, like=_weights(0.0))


def test_garbage_is_no_decoder() -> None:
    with pytest.raises(WireError, match="safetensors"):
        Server(2, lambda *_: None).receive_decoder(
            b"garbage", sender="a", round_=1, like=_weights(0.0)
        )


# ---------------------------------------------------------------- private releases

DESIGN = Design(CLASSES, WIDTH, True, 1.0, 4.0, 1e-5)
CENTRE = np.full(WIDTH, 0.1)


def _releases() -> dict[str, bytes]:
    draw = np.random.default_rng(3)
    return {
        f"client-{index:02d}": encode_release(draw.integers(-(2**24), 2**26, DESIGN.size))
        for index in range(3)
    }


def _release(server: Server, sender: str, data: bytes) -> None:
    server.receive_release(data, sender=sender, round_=0, kind="anchor", design=DESIGN)


def test_releases_add_up_whatever_the_order_and_are_seen_by_the_witness() -> None:
    made, results = _releases(), set()
    for order in itertools.permutations(made):
        seen: list[tuple[int, str, str, bytes]] = []
        server = Server(CLASSES, lambda *upload, seen=seen: seen.append(upload))
        for sender in order:
            _release(server, sender, made[sender])
        assert seen == [(0, sender, "anchor", made[sender]) for sender in order]
        results.add(server.close_releases(quorum=3, design=DESIGN, centre=CENTRE))
    arrays = [decode_release(data, size=DESIGN.size) for data in made.values()]
    assert results == {publish(estimate(DESIGN, sum(arrays[1:], arrays[0]), 3, CENTRE))}


def test_a_release_counts_once_and_only_with_a_quorum() -> None:
    made, server = _releases(), Server(CLASSES, ignore)
    _release(server, "client-00", made["client-00"])
    with pytest.raises(ServerError, match="client-00 uploads twice in round 0"):
        _release(server, "client-00", made["client-00"])
    with pytest.raises(ServerError, match="1 uploads, the quorum is 3"):
        server.close_releases(quorum=3, design=DESIGN, centre=CENTRE)
    server.close_releases(quorum=1, design=DESIGN, centre=CENTRE)
    with pytest.raises(ServerError, match="0 uploads"):
        server.close_releases(quorum=0, design=DESIGN, centre=CENTRE)


def test_a_release_beyond_the_budget_is_never_opened(monkeypatch: pytest.MonkeyPatch) -> None:
    def spent(*_: object) -> None:
        raise PrivacyError("spent", hint="-")

    def never(*_: object, **__: object) -> None:
        raise AssertionError("opened")

    monkeypatch.setattr("fedvtc_edge.server.decode_release", never)
    server = Server(CLASSES, spent)
    with pytest.raises(PrivacyError):
        _release(server, "a", _releases()["client-00"])
    with pytest.raises(ServerError):
        server.close_releases(quorum=1, design=DESIGN, centre=CENTRE)


def test_a_release_of_another_design_is_refused() -> None:
    server = Server(CLASSES, ignore)
    for data in (uploads()["client-00"], encode_release(np.zeros(DESIGN.size + 1, np.int64)), b""):
        with pytest.raises(WireError):
            _release(server, "a", data)
    _release(server, "a", _releases()["client-00"])


def test_hostile_releases_do_not_wrap() -> None:
    """Every client at the largest value allowed: the sum is what Python's integers say."""
    server = Server(CLASSES, ignore)
    data = encode_release(np.full(DESIGN.size, 2**49))
    for index in range(10_000):
        server._releases[f"{index}"] = decode_release(data, size=DESIGN.size)
    world = published(server.close_releases(quorum=1, design=DESIGN, centre=CENTRE))
    assert world.count.min() > 1e10
