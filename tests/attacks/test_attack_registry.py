"""Attacks by name, and attacks of one's own."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fedvtc_edge.attacks import register
from fedvtc_edge.attacks.adversary.view import Case, CaseAttack, Guess, View
from fedvtc_edge.attacks.registry import ATTACKS, parse_attacks
from fedvtc_edge.errors import UsageError


class Last(CaseAttack):
    name = "last"

    def answer(self, case: Case) -> Guess | None:
        return Guess(np.arange(len(case.candidates), dtype=np.float64))


def test_an_attack_of_ones_own_by_name_or_as_it_is() -> None:
    own = Last()
    assert parse_attacks([own, "exact"])[0] is own
    with ATTACKS.lent({}):
        register(own)
        try:
            assert parse_attacks(["last"]) == [own]
            assert parse_attacks(None)[-1] is own  # after those of the package
            with pytest.raises(UsageError, match="'last' is registered already"):
                register(own)
        finally:
            del ATTACKS._known["last"]


def test_cases_are_answered_one_by_one() -> None:
    public = torch.zeros(2, 1, 4, 4)
    view = View("server", 0, 1.0, np.zeros(3), None, public, public)
    [guess] = Last().guess([Case(view, torch.zeros(5, 1, 4, 4))], torch.Generator())
    assert guess is not None
    assert guess.scores.tolist() == [0.0, 1.0, 2.0, 3.0, 4.0]
