"""Groups of clients, each with a sum of its own."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from fedvtc_edge.config import load_config
from fedvtc_edge.masking import in_groups


@given(clients=st.integers(1, 400), number=st.integers(1, 40))
def test_groups_are_the_clients_in_order_and_of_equal_size(clients: int, number: int) -> None:
    names = list(range(clients))
    groups = in_groups(names, number)
    assert [name for group in groups for name in group] == names
    sizes = [len(group) for group in groups]
    assert len(groups) == number
    assert max(sizes) - min(sizes) <= 1
    assert min(sizes) == clients // number


@given(clients=st.integers(10, 1000), least=st.integers(0, 400))
def test_no_group_is_smaller_than_asked_for(clients: int, least: int) -> None:
    tables = {"clients": {"count": clients}, "transport": {"masking": True, "masking_group": least}}
    config = load_config(tables)
    sizes = [len(group) for group in in_groups(config.client_ids, config.sums)]
    assert min(sizes) == config.smallest_sum
    assert min(sizes) >= min(least, clients)
    assert max(sizes) <= (2 * least if least else clients)
