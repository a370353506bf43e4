"""A client on a disk: each step once, whatever is killed, and nothing left behind."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedvtc_edge.masking import (
    MaskingClient,
    MaskingError,
    MaskingPlan,
    MaskingStep,
    Vault,
    take_step,
    vault,
)
from fedvtc_edge.sealing.signing import generate
from fedvtc_edge.wire.context import Context

A, B, C = "client-00", "client-01", "client-02"


class Restarted:
    """A client of whom nothing but a folder outlives a step."""

    def __init__(self, party: Any, name: str, folder: Path) -> None:
        self.party, self.name = party, name
        folder.mkdir(exist_ok=True)
        self.path = folder / "sum"

    def plan(self) -> MaskingPlan:
        party = self.party
        return MaskingPlan(party.context, party.trusted, party.size, party.bound)

    def answer(self, step: MaskingStep, message: bytes, vector: Any) -> bytes:
        given = vector if step is MaskingStep.ADVERTISE else None
        key = self.party.identities[self.name]
        return take_step(Vault(self.path), self.plan(), self.name, key, step, message, given)


def restarted(game: Any, party: Any, folder: Path, drop: dict[str, int] | None = None) -> Any:
    played = game(party, drop=drop)
    played.clients = {name: Restarted(party, name, folder / name) for name in played.clients}
    return played


def refused(what: Any, match: str) -> None:
    with pytest.raises(MaskingError, match=match) as caught:
        what()
    assert caught.value.hint
    assert "\n" not in str(caught.value) + caught.value.hint


def over(played: Any, step: MaskingStep) -> None:
    """Client A is silent for good."""
    client = played.clients[A]
    assert not client.path.exists()
    for due in list(MaskingStep)[1:]:
        refused(lambda d=due: client.answer(d, played.letters[A], None), "part in the sum is over")
    others = {name: letter for name, letter in played.letters.items() if name != A}
    played.letters = others
    for later in list(MaskingStep)[step:]:
        played.answers(later)
        if later < MaskingStep.UNMASK:
            played.letters = played.server.advance()
    there = [name for name in played.party.plan.clients if name != A or step > MaskingStep.MASK]
    assert played.server.finish().total.tolist() == played.party.plain(there).tolist()


# ---------------------------------------------------------------- the whole protocol


@pytest.mark.parametrize("bound", [2**49, 1000], ids=["64 bits", "32 bits"])
@pytest.mark.parametrize("drop", [{}, *({"client-03": step} for step in MaskingStep)])
def test_a_sum_of_clients_without_memory(
    party: Any, game: Any, tmp_path: Path, drop: dict[str, int], bound: int
) -> None:
    five = party(5, bound=bound)
    result = restarted(game, five, tmp_path, drop).play()
    there = tuple(name for name in five.plan.clients if drop.get(name, 9) > MaskingStep.MASK)
    assert result.survivors == there
    assert result.total.tolist() == five.plain(there).tolist()
    kept = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*/*")}
    dropped = {f"{name}/sum" for name, step in drop.items() if step}
    assert kept == dropped | {f"{name}/sum.spent" for name in there}


def test_only_its_owner_reads_it(three: Any, game: Any, tmp_path: Path) -> None:
    played = restarted(game, three, tmp_path)
    for step in list(MaskingStep)[:-1]:
        played.answers(step)
        played.letters = played.server.advance()
        for client in played.clients.values():
            assert stat.S_IMODE(client.path.stat().st_mode) == 0o600


def test_what_was_used_is_gone_from_the_disk(three: Any, game: Any, tmp_path: Path) -> None:
    """Seed, root and vector after MASK; everything after UNMASK."""
    played = restarted(game, three, tmp_path)
    for step in (MaskingStep.ADVERTISE, MaskingStep.SHARE):
        played.answers(step)
        played.letters = played.server.advance()
    client, vector = played.clients[A], three.inputs[A].tobytes()
    data = client.path.read_bytes()
    state = Vault(client.path)._read(data, three.plan, A, three.identities[A])[0]._state
    secrets = (state.seed, state.root, vector)
    assert all(secret in data for secret in secrets)
    for step in (MaskingStep.MASK, MaskingStep.CONFIRM, MaskingStep.UNMASK):
        played.answers(step)
        if step < MaskingStep.UNMASK:
            played.letters = played.server.advance()
        for path in client.path.parent.iterdir():
            assert not any(secret in path.read_bytes() for secret in secrets), step
    assert [path.name for path in client.path.parent.iterdir()] == ["sum.spent"]


# ---------------------------------------------------------------- crashes


@pytest.mark.parametrize("step", list(MaskingStep)[1:])
def test_killed_within_a_step(
    party: Any, game: Any, tmp_path: Path, step: MaskingStep, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After the file was taken and before the answer: silence, and the others' sum."""
    played = restarted(game, party(4), tmp_path).until(step)

    class Killed(BaseException):
        """Nothing catches a kill."""

    def kill(*_: object) -> bytes:
        raise Killed

    with monkeypatch.context() as patched:
        patched.setattr(MaskingClient, "answer", kill)
        with pytest.raises(Killed):
            played.clients[A].answer(step, played.letters[A], None)
    over(played, step)


@pytest.mark.parametrize("step", list(MaskingStep)[1:-1])
def test_killed_while_it_is_kept(
    party: Any, game: Any, tmp_path: Path, step: MaskingStep, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The answer never left; half a file is swept with the next look."""
    played = restarted(game, party(4), tmp_path).until(step)
    client = played.clients[A]

    def half(path: Path, data: bytes, *, mode: int) -> None:
        if not data:
            return write(path, data, mode=mode)
        path.with_name(f".{path.name}.abcdefgh").write_bytes(data[:50])
        raise SystemExit

    write = vault.write_atomic
    with monkeypatch.context() as patched:
        patched.setattr(vault, "write_atomic", half)
        with pytest.raises(SystemExit):
            client.answer(step, played.letters[A], None)
    assert (client.path.parent / ".sum.abcdefgh").exists()
    over(played, step)
    assert {path.name for path in client.path.parent.iterdir()} <= {"sum.spent"}


def test_killed_by_the_system(party: Any, game: Any, tmp_path: Path) -> None:
    """The same with a process and a signal: what it took does not come back."""
    four = party(4)
    played = restarted(game, four, tmp_path).until(MaskingStep.SHARE)
    client = played.clients[A]
    script = (
        "import os, signal, sys; from pathlib import Path\n"
        "from fedvtc_edge.masking import vault\n"
        "vault.Vault._read = lambda *_: os.kill(os.getpid(), signal.SIGKILL)\n"
        "vault.Vault(Path(sys.argv[1])).take(None, 'client-00', None)\n"
    )
    done = subprocess.run([sys.executable, "-c", script, client.path], check=False, timeout=60)
    assert done.returncode == -9
    over(played, MaskingStep.SHARE)


def test_killed_between_moving_and_reading(three: Any, game: Any, tmp_path: Path) -> None:
    played = restarted(game, three, tmp_path).until(MaskingStep.SHARE)
    client = played.clients[A]
    os.replace(client.path, client.path.with_name(".sum.taken"))
    refused(lambda: client.answer(MaskingStep.SHARE, played.letters[A], None), "is over")
    assert list(client.path.parent.iterdir()) == []


def test_it_is_gone_for_good_before_anything_is_computed(
    three: Any, game: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The folder is flushed after the file has left it, and the client asked after that."""
    played = restarted(game, three, tmp_path).until(MaskingStep.SHARE)
    client, events, flush = played.clients[A], [], os.fsync

    def fsync(descriptor: int) -> None:
        flush(descriptor)
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            events.append("gone" if not client.path.exists() else "kept")

    def answer(self: MaskingClient, *words: Any) -> bytes:
        events.append("answer")
        return say(self, *words)

    say = MaskingClient.answer
    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(MaskingClient, "answer", answer)
    client.answer(MaskingStep.SHARE, played.letters[A], None)
    assert events == ["gone", "answer", "kept"]


def test_one_of_many_takes_it(three: Any, tmp_path: Path) -> None:
    """Even without the lock: nobody, or one."""
    for _ in range(10):
        keeper = Vault(tmp_path / "sum")
        keeper.keep(three.client(A), three.inputs[A])

        def take(_: int, keeper: Vault = keeper) -> bool:
            try:
                keeper.take(three.plan, A, three.identities[A])
            except MaskingError:
                return False
            return True

        with ThreadPoolExecutor(8) as pool:
            assert sum(pool.map(take, range(8))) <= 1
        refused(lambda k=keeper: k.take(three.plan, A, three.identities[A]), "is over")


# ---------------------------------------------------------------- what is refused


@pytest.mark.parametrize("repeated", list(MaskingStep)[1:])
def test_no_step_twice(three: Any, game: Any, tmp_path: Path, repeated: MaskingStep) -> None:
    played = restarted(game, three, tmp_path).until(repeated)
    letter = played.letters[A]
    played.answers(repeated)
    why = "is over" if repeated is MaskingStep.UNMASK else f"{repeated.name} where"
    refused(lambda: played.clients[A].answer(repeated, letter, None), why)
    assert not played.clients[A].path.exists()


def test_a_refused_message_ends_it(three: Any, game: Any, tmp_path: Path) -> None:
    played = restarted(game, three, tmp_path).until(MaskingStep.SHARE)
    client = played.clients[A]
    refused(lambda: client.answer(MaskingStep.SHARE, played.letters[A][:-1], None), "ROSTER")
    refused(lambda: client.answer(MaskingStep.SHARE, played.letters[A], None), "is over")


def test_damage_anywhere(three: Any, tmp_path: Path) -> None:
    keeper = Vault(tmp_path / "sum")
    keeper.keep(three.client(A), three.inputs[A])
    good = keeper.path.read_bytes()
    flips = [good[:at] + bytes([good[at] ^ 4]) + good[at + 1 :] for at in range(0, len(good), 7)]
    for changed in (*flips, b"", good[:3], good[:35], good[:-1], good + b"\0"):
        keeper.path.write_bytes(changed)
        refused(lambda: keeper.take(three.plan, A, three.identities[A]), "damaged")
        assert list(tmp_path.iterdir()) == []


def test_a_vector_of_another_length(three: Any, tmp_path: Path) -> None:
    """Nothing but a program at fault would write it."""
    for size in (0, 6, 8):
        keeper = Vault(tmp_path / "sum")
        keeper.keep(three.client(A), np.zeros(size, np.int64))
        refused(lambda k=keeper: k.take(three.plan, A, three.identities[A]), "damaged")


def test_another_sum_client_or_key(three: Any, party: Any, tmp_path: Path) -> None:
    other = MaskingPlan(Context("f" * 32, 4, "x", "anchor"), three.trusted, three.size, three.bound)
    for plan, name, key, why in (
        (other, A, three.identities[A], "another run"),
        (three.plan, B, three.identities[B], "sender than client-01"),
        (three.plan, A, generate(), "not the one trusted"),
    ):
        keeper = Vault(tmp_path / "sum")
        keeper.keep(three.client(A), three.inputs[A])
        refused(lambda k=keeper, a=(plan, name, key): k.take(*a), why)
        assert not keeper.path.exists()


def test_vectors_go_with_the_first_step(three: Any, tmp_path: Path) -> None:
    keeper, key = Vault(tmp_path / "sum"), three.identities[A]

    def take(step: MaskingStep, vector: Any) -> bytes:
        return take_step(keeper, three.plan, A, key, step, b"", vector)

    refused(lambda: take(MaskingStep.ADVERTISE, None), "ADVERTISE without a vector")
    refused(lambda: take(MaskingStep.MASK, three.inputs[A]), "MASK with a vector")
    refused(lambda: take(MaskingStep.ADVERTISE, np.zeros(3, np.int64)), "expected int64")
    refused(lambda: take(MaskingStep.ADVERTISE, np.full(7, 2**49 + 1)), "beyond the bound")
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_kept_of_a_client_whose_part_is_over(three: Any, tmp_path: Path) -> None:
    client = three.client(A)
    client.freeze()
    refused(lambda: Vault(tmp_path / "sum").keep(client, three.inputs[A]), "nothing to keep")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_none(three: Any, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for path in (tmp_path / "missing" / "sum", tmp_path / "file" / "sum"):
        keeper = Vault(path)
        refused(lambda k=keeper: k.keep(three.client(A), three.inputs[A]), "cannot keep")
        refused(lambda k=keeper: k.spend(three.plan), "cannot keep")
        refused(lambda k=keeper: k.take(three.plan, A, three.identities[A]), "cannot keep|is over")


def test_dropping_what_is_not_there(tmp_path: Path) -> None:
    (tmp_path / "other").touch()
    keeper = Vault(tmp_path / "sum")
    keeper.drop()
    keeper.drop()
    assert [path.name for path in tmp_path.iterdir()] == ["other"]


# ---------------------------------------------------------------- one vector, one sum


def begin(client: Restarted, plan: MaskingPlan) -> bytes:
    party, name = client.party, client.name
    vector = party.inputs[name]
    key = party.identities[name]
    return take_step(Vault(client.path), plan, name, key, MaskingStep.ADVERTISE, vector=vector)


def test_a_vector_leaves_in_one_sum_only(party: Any, game: Any, tmp_path: Path) -> None:
    """Else all of a first sum minus all but one of a second would be one client's vector."""
    four = party(4)
    played = restarted(game, four, tmp_path).until(MaskingStep.CONFIRM)
    client = played.clients[A]
    fewer = {name: key for name, key in four.trusted.items() if name != "client-03"}
    for plan in (
        four.plan,
        MaskingPlan(four.context, fewer, four.size, four.bound),
        MaskingPlan(four.context, four.trusted, four.size, four.bound - 1),
    ):
        refused(lambda p=plan: begin(client, p), "a vector has left for round 4, anchor already")
    assert client.path.exists(), "the sum under way goes on"
    for context in (
        Context(four.context.run, 5, "x", "anchor"),
        Context(four.context.run, 4, "x", "features"),
        Context("f" * 32, 4, "x", "anchor"),
    ):
        assert begin(client, MaskingPlan(context, four.trusted, four.size, four.bound))


def test_a_sum_that_ended_before_its_vectors_may_begin_again(
    three: Any, game: Any, tmp_path: Path
) -> None:
    for step in (MaskingStep.SHARE, MaskingStep.MASK):
        restarted(game, three, tmp_path).until(step)
    result = restarted(game, three, tmp_path).play()
    assert result.total.tolist() == three.plain(three.inputs).tolist()


def test_what_is_spent_outlives_a_line_cut_short(three: Any, tmp_path: Path) -> None:
    keeper = Vault(tmp_path / "sum")
    (tmp_path / "sum.spent").write_bytes(b"0123")  # a power cut, before anything left
    keeper.spend(three.plan)
    refused(lambda: keeper.check_unspent(three.plan), "already")
    refused(lambda: keeper.spend(three.plan), "already")


def test_it_is_spent_before_the_answer_leaves(
    three: Any, game: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    played = restarted(game, three, tmp_path).until(MaskingStep.MASK)
    client = played.clients[A]

    def full(path: Path, line: bytes) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(vault, "append_line", full)
        refused(lambda: client.answer(MaskingStep.MASK, played.letters[A], None), "No space left")
    assert not client.path.exists()
