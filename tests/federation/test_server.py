"""The server adds, whatever the order, and refuses what does not belong."""

from __future__ import annotations

import itertools
import tracemalloc
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from fedvtc_edge.config import ServerSettings, load_config
from fedvtc_edge.errors import FedVTCError, PrivacyError, ServerError
from fedvtc_edge.federation import averaging
from fedvtc_edge.federation import exchange as exchanges
from fedvtc_edge.federation.averaging import Average
from fedvtc_edge.federation.exchange import Clipped, Exact, Exchange, Noised
from fedvtc_edge.federation.robustness import CheckError, contributors, suppress, trimmed_sum
from fedvtc_edge.federation.server import Server, quorum_of
from fedvtc_edge.privacy.mechanism import CentralMechanism
from fedvtc_edge.privacy.release import estimate
from fedvtc_edge.privacy.release_spec import ClientReleaseSpec, ReleaseSpec
from fedvtc_edge.privacy.release_store import SERVER, ReleaseStore
from fedvtc_edge.statistics.class_statistics import ClassStatistics, GlobalStatistics
from fedvtc_edge.transport.channel import Delivery
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

Uploads = Mapping[str, bytes] | Iterable[tuple[str, bytes]]


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


def exact(*, pooled: bool = False, floor: float = 0.0, **settings: Any) -> Exact:
    def never(_: object) -> ClassStatistics:
        raise AssertionError("the server measures nothing")

    asked = ServerSettings(**settings)
    return Exact("features", never, CLASSES, WIDTH, pooled, floor, server=asked)


def close(
    server: Server,
    exchange: Exchange[Any],
    sent: Uploads,
    *,
    quorum: int,
    context: Context = of(SERVER),  # noqa: B008  (it is frozen)
) -> bytes:
    """What is published of uploads that come in some order, each with its sender's fingerprint."""
    pairs = list(sent.items() if isinstance(sent, Mapping) else sent)
    arriving = (
        (replace(context, sender=sender), Delivery(data, len(data), f"SHA256:{sender}"))
        for sender, data in pairs
    )
    return server.aggregate(exchange, context, arriving, number=len(pairs), quorum=quorum)[0]


Refused = list[tuple[Context, FedVTCError, str | None]]


def noting(refused: Refused) -> Server:
    return Server(refuse=lambda *refusal: refused.append(refusal))


@pytest.mark.parametrize("pooled", [False, True])
def test_the_order_of_uploads_does_not_change_a_bit(pooled: bool) -> None:
    made, exchange = uploads(pooled=pooled), exact(pooled=pooled, floor=0.2)
    results = {
        close(Server(), exchange, order, quorum=len(made))
        for order in itertools.permutations(made.items())
    }
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
    results = {
        close(Server(), exact(), order, quorum=3) for order in itertools.permutations(made.items())
    }
    assert len(results) == 1


def test_one_upload_counts() -> None:
    (sender, data), *_ = uploads().items()
    refused: Refused = []
    twice = close(noting(refused), exact(), [(sender, data), (sender, data)], quorum=1)
    ((context, error, fingerprint),) = refused
    assert (context, fingerprint) == (of(sender), "SHA256:client-00")
    assert isinstance(error, ServerError)
    assert str(error) == "client-00 uploads twice in round 1"
    assert twice == close(Server(), exact(), {sender: data}, quorum=1)


def test_too_few_uploads_do_not_close_a_round_and_more_may_still_come() -> None:
    server, (first, second, *_) = Server(), uploads().items()
    with pytest.raises(ServerError, match="1 uploads, the quorum is 2"):
        close(server, exact(), [first], quorum=2)
    assert published(close(server, exact(), [first, second], quorum=2)).count.sum() == 5


def test_no_upload_at_all_never_closes_a_round() -> None:
    for trim in (0.0, 0.2):
        with pytest.raises(ServerError, match="0 uploads"):
            close(Server(), exact(trim=trim), {}, quorum=0)


def test_rounds_do_not_run_into_each_other() -> None:
    first, _, third, _ = uploads().items()
    server = Server()
    alone = close(server, exact(), [first], quorum=1)
    close(server, exact(), [third], quorum=1)
    # Heard in an earlier round, and welcome in this one.
    assert close(server, exact(), [first], quorum=1) == alone


def test_the_recorder_sees_the_exact_bytes_even_of_what_is_refused() -> None:
    seen = []
    server = Server(lambda *upload: seen.append(upload))
    made = uploads()
    sent = [("client-00", made["client-00"]), ("client-01", made["client-02"])]
    close(server, exact(), sent, quorum=1)
    with pytest.raises(ServerError):
        close(server, exact(pooled=True), {"x": b"junk"}, quorum=1, context=of(SERVER, 9, "anchor"))
    assert seen == [
        (1, "client-00", "features", made["client-00"]),
        (1, "client-01", "features", made["client-02"]),
        (9, "x", "anchor", b"junk"),
    ]


def test_a_refused_upload_is_not_counted() -> None:
    server = Server()
    other = uploads(pooled=True)["client-00"]
    with pytest.raises(
        ServerError, match=r"0 uploads, the quorum is 1; refused client-00: \d+ bytes"
    ):
        close(server, exact(), {"client-00": other}, quorum=1)
    with pytest.raises(ServerError, match=r"0 uploads, the quorum is 1$"):
        close(server, exact(), {}, quorum=1)  # of which nothing was refused
    own = uploads()["client-00"]
    assert close(server, exact(), [("client-00", other), ("client-00", own)], quorum=1)


def test_who_is_counted_is_told() -> None:
    made = [
        (of(sender), Delivery(data, len(data), None))
        for sender, data in list(uploads().items())[1:]
    ]
    found, counted = Server().aggregate(exact(), of(SERVER), made, number=99, quorum=3)
    assert counted == set(uploads()) - {"client-00"}
    assert found == close(Server(), exact(), list(uploads().items())[1:], quorum=3)


def test_a_round_goes_on_without_those_that_are_refused() -> None:
    made, refused = uploads(), Refused()
    twice = measured()["client-03"]
    scaled = encode(ClassStatistics(twice.count, 2 * twice.total, 4 * twice.square))
    bad = {
        "client-00": b"junk",
        "client-01": made["client-02"],
        "client-03": made["client-03"][:128] + scaled[128:],
        "client-04": uploads(round_=2)["client-00"],
    }
    good = {"client-02": made["client-02"]}
    went_on = close(noting(refused), exact(), bad | good, quorum=1)
    assert [(context.sender, fingerprint) for context, _, fingerprint in refused] == [
        (sender, f"SHA256:{sender}") for sender in bad
    ]
    kinds = [type(error) for _, error, _ in refused]
    assert kinds == [WireError, WireError, CheckError, WireError]
    assert went_on == close(Server(), exact(), good, quorum=1)


@pytest.mark.parametrize(
    ("share", "cohort", "least"),
    [(1.0, 7, 7), (0.5, 7, 4), (0.5, 6, 3), (0.07, 100, 7), (0.01, 3, 1), (0.9, 1, 1)],
)
def test_a_quorum_is_a_share_rounded_up(share: float, cohort: int, least: int) -> None:
    assert quorum_of(share, cohort) == least


@pytest.mark.parametrize("pooled", [False, True])
def test_what_is_published_is_trimmed_and_suppressed(pooled: bool) -> None:
    made = uploads(pooled=pooled)
    parts = [decode(data, classes=CLASSES, width=WIDTH, pooled=pooled) for data in made.values()]
    number = contributors(parts)
    assert number.tolist() == [2, 3, 2]
    for trim, total in ((0.34, trimmed_sum(parts, 0.34)), (0.0, sum(parts[1:], parts[0]))):
        exchange = exact(pooled=pooled, floor=0.2, minimum_contributors=3, trim=trim)
        world = GlobalStatistics.from_sum(total, floor=0.2)
        assert close(Server(), exchange, made, quorum=4) == publish(
            suppress(world, number, 3, floor=0.2)
        )


def test_nothing_is_published_where_every_class_is_one_clients_own() -> None:
    own = {"client-02": uploads()["client-02"]}
    with pytest.raises(ServerError, match="no class has 2 contributors, the most are 1"):
        close(Server(), exact(minimum_contributors=2), own, quorum=1)


@pytest.mark.parametrize("what", ["release", "clipped", "decoder"])
def test_of_what_has_no_classes_so_many_must_be_heard(what: str) -> None:
    names = list(_releases())[:2]
    exchange, sent, context = decoders(2), dict[str, bytes](), of(SERVER)
    if what != "decoder":
        exchange, context = {"release": noised, "clipped": clipped}[what](2), OPENING
    for count in (0, 1):
        with pytest.raises(ServerError, match=f"{count} uploads, the quorum is 2"):
            close(Server(), exchange, sent, quorum=1, context=context)
        name = names[count]
        sent[name] = {
            "release": _releases()[name],
            "clipped": encode_release(
                np.zeros(DESIGN.size, np.int64), context=of(name, 0, "anchor")
            ),
            "decoder": encode_weights(_weights(1.0), context=of(name)),
        }[what]
    assert close(Server(), exchange, sent, quorum=1, context=context)


# ---------------------------------------------------------------- memory


@pytest.mark.parametrize("what", ["exact", "pooled", "release", "decoder"])
def test_memory_does_not_grow_with_the_number_of_clients(
    what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An upload is checked, added and forgotten: eight times the clients need no more.

    Beyond what is kept to be compared, which is bounded by itself.
    """
    for module in (exchanges, averaging):
        monkeypatch.setattr(module, "LARGEST_COMPARED", 0)
    classes, width = 10, 128
    blank = np.zeros((width, width) if what == "pooled" else (classes, width))
    part = ClassStatistics(np.ones(classes), np.zeros((classes, width)), blank)
    spec = ReleaseSpec(classes, width, True, 1.0, 4.0, 1e-5)
    weights = {"a": np.ones((128, 128), np.float32)}
    exchange: Exchange[Any] = Average("decoder", lambda _: weights, weights)
    if what in ("exact", "pooled"):
        exchange = Exact("features", lambda _: part, classes, width, what == "pooled")
    elif what == "release":
        draw = np.zeros(spec.size, np.int64)
        exchange = Noised("features", lambda _: draw, spec, np.zeros(width), ReleaseStore(None))

    def upload(own: Context) -> bytes:
        if what == "decoder":
            return encode_weights(weights, context=own)
        if what == "release":
            return encode_release(np.ones(spec.size, np.int64), context=own)
        return encode(part, context=own)

    def arriving(clients: int) -> Iterator[tuple[Context, Delivery]]:
        for index in range(clients):
            own = of(f"client-{index:03d}")
            data = upload(own)
            yield own, Delivery(data, len(data), None)

    def peak(clients: int) -> int:
        tracemalloc.start()
        try:
            sent = arriving(clients)
            Server().aggregate(exchange, of(SERVER), sent, number=clients, quorum=clients)
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    few = peak(50)  # caches are warm by then
    few, many = peak(50), peak(400)
    assert many < 1.5 * few
    assert many - few < 350 * len(upload(of("client-000"))) / 20  # names are kept


def test_where_extremes_are_trimmed_all_uploads_are_compared() -> None:
    """Of which every one must be kept: no running sum knows what the extremes will be."""
    honest, liar = measured()["client-02"], measured()["client-02"]
    sent = {
        name: encode(honest, context=of(name)) for name in ("client-00", "client-01", "client-02")
    }
    lie = ClassStatistics(liar.count, -liar.total, liar.square)
    fooled = {**sent, "client-03": encode(lie, context=of("client-03"))}
    robust = published(close(Server(), exact(trim=0.25), fooled, quorum=4))
    truth = published(close(Server(), exact(), sent, quorum=3))
    np.testing.assert_allclose(robust.mean, truth.mean, rtol=1e-6)


# ---------------------------------------------------------------- decoders


def _weights(value: float) -> dict[str, np.ndarray]:
    return {"a": np.full((2, 3), value, np.float32), "b": np.arange(4, dtype=np.float32) * value}


def decoders(least: int = 0) -> Average:
    return Average("decoder", lambda _: _weights(0.0), _weights(0.0), least)


def test_decoders_are_averaged_whatever_the_order_and_seen_by_the_recorder() -> None:
    seen: list[tuple[int, str, str, bytes]] = []
    context, answers = of(SERVER, 3, "decoder"), []
    for order in ((1.0, 2.0, 6.0), (6.0, 1.0, 2.0)):
        server = Server(lambda *upload: seen.append(upload))
        made = {
            f"c{value}": encode_weights(
                _weights(value), context=replace(context, sender=f"c{value}")
            )
            for value in order
        }
        answers.append(close(server, decoders(), made, quorum=3, context=context))
    assert answers[0] == answers[1]
    mean = decode_weights(answers[0], like=_weights(0.0))
    np.testing.assert_allclose(mean["b"], np.arange(4) * 3.0)
    assert seen[0] == (3, "c1.0", "decoder", made["c1.0"])


@pytest.mark.parametrize("clients", [1, 2, 7, 8, 9, 33, 130])
def test_a_running_average_has_the_bits_of_the_stacked_one(clients: int) -> None:
    rng = np.random.default_rng(clients)
    shapes = {"one": (1,), "row": (5,), "matrix": (1, 3), "kernel": (2, 3, 3, 3)}
    made = [
        {
            name: (rng.standard_normal(shape) * 10 ** rng.uniform(-4, 4, shape)).astype(np.float32)
            for name, shape in shapes.items()
        }
        for _ in range(clients)
    ]
    for one in made:
        one["zero"] = np.full((2, 2), -0.0, np.float32)
    stacked = {
        name: np.stack([one[name] for one in made]).mean(0, dtype=np.float64) for name in made[0]
    }
    exchange = Average("decoder", lambda _: made[0], made[0])
    assert exchange.aggregate(iter(made), of(SERVER)) == encode_weights(stacked)


def test_a_decoder_counts_once_and_only_with_a_quorum() -> None:
    upload, refused = encode_weights(_weights(1.0), context=of("a")), Refused()
    with pytest.raises(ServerError, match="quorum is 2"):
        close(noting(refused), decoders(), [("a", upload), ("a", upload)], quorum=2)
    assert [type(error) for _, error, _ in refused] == [ServerError]


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
    sent = [("a", encode_weights(bad, context=of("a"))), ("a", b"garbage")]
    with pytest.raises(ServerError, match="0 uploads"):
        close(noting(refused), decoders(), sent, quorum=1)
    assert [type(error) for _, error, _ in refused] == [WireError, WireError]


# ---------------------------------------------------------------- private releases

DESIGN = ReleaseSpec(CLASSES, WIDTH, True, 1.0, 4.0, 1e-5)
CENTRE = np.full(WIDTH, 0.1)
OPENING = of(SERVER, 0, "anchor")


def noised(least: int = 0) -> Noised:
    def never(_: object) -> np.ndarray:
        raise AssertionError("the server draws nothing for a client")

    return Noised("anchor", never, DESIGN, CENTRE, ReleaseStore(None), least, most=100_000)


def clipped(least: int = 0) -> Clipped:
    spec = ClientReleaseSpec(CLASSES, WIDTH, True, 1.0, 4.0, 1e-5)
    mechanism = CentralMechanism(load_config({"privacy": {"mode": "client"}}), CLASSES)
    vars(mechanism)["spec"] = spec
    return Clipped(
        "anchor",
        lambda _: np.zeros(spec.size, np.int64),
        mechanism,
        CENTRE,
        lambda context, draw: draw(),
        least,
    )


def _releases() -> dict[str, bytes]:
    draw = np.random.default_rng(3)
    return {
        sender: encode_release(
            draw.integers(-(2**24), 2**26, DESIGN.size), context=of(sender, 0, "anchor")
        )
        for sender in ("client-00", "client-01", "client-02")
    }


def close_releases(server: Server, sent: Uploads, *, quorum: int) -> bytes:
    return close(server, noised(), sent, quorum=quorum, context=OPENING)


def test_releases_add_up_whatever_the_order_and_are_seen_by_the_recorder() -> None:
    made, results = _releases(), set()
    for order in itertools.permutations(made.items()):
        seen: list[tuple[int, str, str, bytes]] = []
        server = Server(lambda *upload, seen=seen: seen.append(upload))
        results.add(close_releases(server, order, quorum=3))
        assert seen == [(0, sender, "anchor", data) for sender, data in order]
    arrays = [decode_release(data, size=DESIGN.size) for data in made.values()]
    assert results == {publish(estimate(DESIGN, sum(arrays[1:], arrays[0]), 3, CENTRE))}


def test_a_release_counts_once_and_only_with_a_quorum() -> None:
    made, refused = _releases(), Refused()
    first = ("client-00", made["client-00"])
    server = noting(refused)
    with pytest.raises(ServerError, match="1 uploads, the quorum is 3"):
        close_releases(server, [first, first], quorum=3)
    assert len(refused) == 1
    assert close_releases(server, [first], quorum=1)
    with pytest.raises(ServerError, match="0 uploads"):
        close_releases(server, {}, quorum=0)


def test_a_release_beyond_the_budget_is_never_opened(monkeypatch: pytest.MonkeyPatch) -> None:
    def spent(*_: object) -> None:
        raise PrivacyError("spent", hint="-")

    def never(*_: object, **__: object) -> None:
        raise AssertionError("opened")

    monkeypatch.setattr("fedvtc_edge.wire.decode_release", never)
    with pytest.raises(PrivacyError):
        close_releases(Server(spent), {"client-00": _releases()["client-00"]}, quorum=1)


def test_a_release_of_another_design_is_refused() -> None:
    wide = encode_release(np.zeros(DESIGN.size + 1, np.int64), context=of("a", 0, "anchor"))
    own, refused = _releases()["client-00"], Refused()
    bad = [uploads()["client-00"], wide, b"", _releases()["client-01"]]
    found = close_releases(noting(refused), [("client-00", data) for data in (*bad, own)], quorum=1)
    assert len(refused) == len(bad)
    assert found == close_releases(Server(), {"client-00": own}, quorum=1)


def test_hostile_releases_do_not_wrap() -> None:
    """Every client at the largest value allowed: the sum is what Python's integers say."""
    part = decode_release(encode_release(np.full(DESIGN.size, 2**49)), size=DESIGN.size)
    exchange = replace(noised(), most=2**48)
    world = published(exchange.aggregate(itertools.repeat(part, 10_000), OPENING))
    assert world.count.min() > 1e10
