"""The server adds, whatever the order, and refuses what does not belong."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from fedvtc_edge.config import ServerSettings
from fedvtc_edge.errors import FedVTCError, PrivacyError
from fedvtc_edge.federation.robustness import CheckError, contributors, suppress, trimmed_sum
from fedvtc_edge.federation.server import Server, ServerError, quorum_of
from fedvtc_edge.privacy.release import estimate
from fedvtc_edge.privacy.release_spec import ReleaseSpec
from fedvtc_edge.statistics.class_statistics import ClassStatistics, GlobalStatistics
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
from fedvtc_edge.wire.context import Context

CLASSES, WIDTH = 3, 4
RUN = "0" * 32


def of(sender: str, round_: int = 1, kind: str = "features") -> Context:
    return Context(RUN, round_, sender, kind)


def measured(*, pooled: bool = False) -> dict[str, ClassStatistics]:
    rng = np.random.default_rng(7)
    made = {}
    for index, size in enumerate((5, 0, 11, 1)):
        z, y = rng.standard_normal((size, WIDTH)), rng.integers(0, CLASSES, size)
        z *= WIDTH**0.5 / np.linalg.norm(z, axis=1, keepdims=True)
        statistics = ClassStatistics.of(z, y, classes=CLASSES, pooled=pooled)
        made[f"client-{index:02d}"] = statistics
    return made


def uploads(*, pooled: bool = False, round_: int = 1) -> dict[str, bytes]:
    return {
        sender: encode(statistics, context=of(sender, round_))
        for sender, statistics in measured(pooled=pooled).items()
    }


Refused = list[tuple[Context, FedVTCError, str | None]]


def noting(refused: Refused) -> Callable[..., None]:
    return lambda *refusal: refused.append(refusal)


def ignore(round_: int, sender: str, kind: str, data: bytes) -> None:
    """A witness that keeps nothing."""


def send(server: Server, sender: str, data: bytes, *, pooled: bool = False) -> bool:
    return server.receive(data, context=of(sender), width=WIDTH, pooled=pooled)


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
    """1 + 1e-17 − 1 is 0 or 1e-17, as one adds; only sorting makes it one of them."""
    made = {
        name: encode(
            ClassStatistics.of(np.full((1, WIDTH), z), [0], classes=CLASSES), context=of(name)
        )
        for name, z in (("a", 1.0), ("b", 1e-17), ("c", -1.0))
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
    refused: Refused = []
    server = Server(CLASSES, ignore, refuse=noting(refused))
    assert send(server, sender, data)
    assert not send(server, sender, data)
    ((context, error, fingerprint),) = refused
    assert (context, fingerprint) == (of(sender), None)
    assert isinstance(error, ServerError)
    assert str(error) == "client-00 uploads twice in round 1"
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
    assert send(server, "client-00", made["client-00"])
    assert not send(server, "client-00", made["client-02"])
    assert not server.receive(b"junk", context=of("x", 9, "anchor"), width=WIDTH, pooled=True)
    assert seen == [
        (1, "client-00", "features", made["client-00"]),
        (1, "client-00", "features", made["client-02"]),
        (9, "x", "anchor", b"junk"),
    ]


def test_a_refused_upload_is_not_counted() -> None:
    server = Server(CLASSES, ignore)
    assert not send(server, "client-00", uploads(pooled=True)["client-00"])
    with pytest.raises(
        ServerError, match=r"0 uploads, the quorum is 1; refused client-00: \d+ bytes"
    ):
        server.close(quorum=1)
    assert send(server, "client-00", uploads()["client-00"])
    server.close(quorum=1)


def test_a_round_goes_on_without_those_that_are_refused() -> None:
    made, refused = uploads(), Refused()
    server = Server(CLASSES, ignore, refuse=noting(refused))
    twice = measured()["client-03"]
    scaled = encode(ClassStatistics(twice.count, 2 * twice.total, 4 * twice.square))
    bad = {
        "client-00": b"junk",
        "client-01": made["client-02"],
        "client-03": HEADER_OF_03 + scaled[128:],
        "client-04": uploads(round_=2)["client-00"],
    }
    for sender, data in bad.items():
        assert not server.receive(
            data, context=of(sender), width=WIDTH, pooled=False, fingerprint=f"SHA256:{sender}"
        )
    assert send(server, "client-02", made["client-02"])
    assert [(context.sender, fingerprint) for context, _, fingerprint in refused] == [
        (sender, f"SHA256:{sender}") for sender in bad
    ]
    kinds = [type(error) for _, error, _ in refused]
    assert kinds == [WireError, WireError, CheckError, WireError]
    alone = Server(CLASSES, ignore)
    send(alone, "client-02", made["client-02"])
    assert server.close(quorum=1) == alone.close(quorum=1)


HEADER_OF_03 = uploads()["client-03"][:128]


@pytest.mark.parametrize(
    ("share", "cohort", "least"),
    [(1.0, 7, 7), (0.5, 7, 4), (0.5, 6, 3), (0.07, 100, 7), (0.01, 3, 1), (0.9, 1, 1)],
)
def test_a_quorum_is_a_share_rounded_up(share: float, cohort: int, least: int) -> None:
    assert quorum_of(share, cohort) == least


@pytest.mark.parametrize("pooled", [False, True])
def test_what_is_published_is_trimmed_and_suppressed(pooled: bool) -> None:
    settings = ServerSettings(minimum_contributors=3, trim=0.34)
    server = Server(CLASSES, ignore, settings=settings)
    for sender, data in uploads(pooled=pooled).items():
        send(server, sender, data, pooled=pooled)
    parts = [
        decode(data, classes=CLASSES, width=WIDTH, pooled=pooled)
        for data in uploads(pooled=pooled).values()
    ]
    number = contributors(parts)
    assert number.tolist() == [2, 3, 2]
    world = GlobalStatistics.from_sum(trimmed_sum(parts, 0.34), floor=0.2)
    assert server.close(quorum=4, floor=0.2) == publish(suppress(world, number, 3, floor=0.2))


def test_nothing_is_published_where_every_class_is_one_clients_own() -> None:
    server = Server(CLASSES, ignore, settings=ServerSettings(minimum_contributors=2))
    send(server, "client-02", uploads()["client-02"])
    with pytest.raises(ServerError, match="no class has 2 contributors, the most are 1"):
        server.close(quorum=1)


@pytest.mark.parametrize("what", ["release", "decoder"])
def test_of_what_has_no_classes_so_many_must_be_heard(what: str) -> None:
    server = Server(CLASSES, ignore, settings=ServerSettings(minimum_contributors=2))

    def close() -> Any:
        if what == "decoder":
            return server.close_decoders(quorum=1)
        return server.close_releases(quorum=1, spec=DESIGN, centre=CENTRE)

    for sender, data in list(_releases().items())[:2]:
        with pytest.raises(ServerError, match="the quorum is 2"):
            close()
        if what == "release":
            assert _release(server, sender, data)
        else:
            layers = encode_weights(_weights(1.0), context=of(sender))
            assert server.receive_decoder(layers, context=of(sender), like=_weights(0.0))
    assert close()


# ---------------------------------------------------------------- decoders


def _weights(value: float) -> dict[str, np.ndarray]:
    return {"a": np.full((2, 3), value, np.float32), "b": np.arange(4, dtype=np.float32) * value}


def test_decoders_are_averaged_whatever_the_order_and_seen_by_the_witness() -> None:
    seen: list[tuple[int, str, str, bytes]] = []
    answers = []
    for order in ((1.0, 2.0, 6.0), (6.0, 1.0, 2.0)):
        server = Server(2, lambda *upload: seen.append(upload))
        for value in order:
            context = of(f"c{value}", 3, "decoder")
            upload = encode_weights(_weights(value), context=context)
            assert server.receive_decoder(upload, context=context, like=_weights(0.0))
        answers.append(server.close_decoders(quorum=3))
    assert answers[0] == answers[1]
    mean = decode_weights(answers[0], like=_weights(0.0))
    np.testing.assert_allclose(mean["b"], np.arange(4) * 3.0)
    assert seen[0] == (
        3,
        "c1.0",
        "decoder",
        encode_weights(_weights(1.0), context=of("c1.0", 3, "decoder")),
    )


def test_a_decoder_counts_once_and_only_with_a_quorum() -> None:
    server = Server(2, lambda *_: None)
    upload = encode_weights(_weights(1.0), context=of("a"))
    assert server.receive_decoder(upload, context=of("a"), like=_weights(0.0))
    assert not server.receive_decoder(upload, context=of("a"), like=_weights(0.0))
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
    refused = Refused()
    server = Server(2, ignore, refuse=noting(refused))
    for data in (encode_weights(bad, context=of("a")), b"garbage"):
        assert not server.receive_decoder(data, context=of("a"), like=_weights(0.0))
    assert [type(error) for _, error, _ in refused] == [WireError, WireError]


# ---------------------------------------------------------------- private releases

DESIGN = ReleaseSpec(CLASSES, WIDTH, True, 1.0, 4.0, 1e-5)
CENTRE = np.full(WIDTH, 0.1)


def _releases() -> dict[str, bytes]:
    draw = np.random.default_rng(3)
    return {
        sender: encode_release(
            draw.integers(-(2**24), 2**26, DESIGN.size), context=of(sender, 0, "anchor")
        )
        for sender in ("client-00", "client-01", "client-02")
    }


def _release(server: Server, sender: str, data: bytes) -> bool:
    return server.receive_release(data, context=of(sender, 0, "anchor"), spec=DESIGN)


def test_releases_add_up_whatever_the_order_and_are_seen_by_the_witness() -> None:
    made, results = _releases(), set()
    for order in itertools.permutations(made):
        seen: list[tuple[int, str, str, bytes]] = []
        server = Server(CLASSES, lambda *upload, seen=seen: seen.append(upload))
        for sender in order:
            _release(server, sender, made[sender])
        assert seen == [(0, sender, "anchor", made[sender]) for sender in order]
        results.add(server.close_releases(quorum=3, spec=DESIGN, centre=CENTRE))
    arrays = [decode_release(data, size=DESIGN.size) for data in made.values()]
    assert results == {publish(estimate(DESIGN, sum(arrays[1:], arrays[0]), 3, CENTRE))}


def test_a_release_counts_once_and_only_with_a_quorum() -> None:
    made, server = _releases(), Server(CLASSES, ignore)
    assert _release(server, "client-00", made["client-00"])
    assert not _release(server, "client-00", made["client-00"])
    with pytest.raises(ServerError, match="1 uploads, the quorum is 3"):
        server.close_releases(quorum=3, spec=DESIGN, centre=CENTRE)
    server.close_releases(quorum=1, spec=DESIGN, centre=CENTRE)
    with pytest.raises(ServerError, match="0 uploads"):
        server.close_releases(quorum=0, spec=DESIGN, centre=CENTRE)


def test_a_release_beyond_the_budget_is_never_opened(monkeypatch: pytest.MonkeyPatch) -> None:
    def spent(*_: object) -> None:
        raise PrivacyError("spent", hint="-")

    def never(*_: object, **__: object) -> None:
        raise AssertionError("opened")

    monkeypatch.setattr("fedvtc_edge.federation.server.decode_release", never)
    server = Server(CLASSES, spent)
    with pytest.raises(PrivacyError):
        _release(server, "a", _releases()["client-00"])
    with pytest.raises(ServerError):
        server.close_releases(quorum=1, spec=DESIGN, centre=CENTRE)


def test_a_release_of_another_design_is_refused() -> None:
    server = Server(CLASSES, ignore)
    wide = encode_release(np.zeros(DESIGN.size + 1, np.int64), context=of("a", 0, "anchor"))
    for data in (uploads()["client-00"], wide, b"", _releases()["client-01"]):
        assert not _release(server, "client-00", data)
    assert _release(server, "client-00", _releases()["client-00"])


def test_hostile_releases_do_not_wrap() -> None:
    """Every client at the largest value allowed: the sum is what Python's integers say."""
    server = Server(CLASSES, ignore)
    data = encode_release(np.full(DESIGN.size, 2**49))
    for index in range(10_000):
        server._releases[f"{index}"] = decode_release(data, size=DESIGN.size)
    world = published(server.close_releases(quorum=1, spec=DESIGN, centre=CENTRE))
    assert world.count.min() > 1e10
