"""Hubs and standbys: in proportion, and nobody moves who need not."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pfl import encoding
from p2pfl.errors import LocalError, RemoteError
from p2pfl.ids import PeerId, RunId
from p2pfl.knowledge.ranking import Capability, pack_capability, rank, read_capability, tiers

RUN = RunId("5e" * 32)
EDGES = [PeerId(f"edge-{i}") for i in range(4000)]
CAPACITIES = st.dictionaries(
    st.sampled_from([PeerId(name) for name in "abcdef"]), st.floats(0.1, 100), min_size=2
)


def first(capacities: dict[PeerId, float]) -> list[PeerId]:
    return [rank(edge, RUN, capacities)[0] for edge in EDGES]


def test_a_hub_serves_its_share_of_the_capacity() -> None:
    capacities = {PeerId("a"): 1.0, PeerId("b"): 2.0, PeerId("c"): 5.0}
    names, counts = np.unique(first(capacities), return_counts=True)
    assert names.tolist() == ["a", "b", "c"]
    # Four standard deviations of a binomial count.
    for count, share in zip(counts, (1 / 8, 2 / 8, 5 / 8), strict=True):
        assert abs(count / len(EDGES) - share) < 4 * (share * (1 - share) / len(EDGES)) ** 0.5


@given(CAPACITIES, st.data())
def test_when_a_hub_goes_each_of_its_edges_moves_to_its_standby_and_no_other_moves(
    capacities: dict[PeerId, float], data: st.DataObject
) -> None:
    gone = data.draw(st.sampled_from(sorted(capacities)))
    left = {hub: c for hub, c in capacities.items() if hub != gone}
    for edge in EDGES[:50]:
        before = rank(edge, RUN, capacities)
        assert rank(edge, RUN, left) == tuple(hub for hub in before if hub != gone)


@given(CAPACITIES, st.floats(0.1, 100))
def test_a_hub_that_comes_or_grows_takes_edges_from_others_and_gives_none(
    capacities: dict[PeerId, float], more: float
) -> None:
    new = PeerId("new")
    for edge in EDGES[:50]:
        before = rank(edge, RUN, capacities)[0]
        assert rank(edge, RUN, capacities | {new: more})[0] in (before, new)
        grown = rank(edge, RUN, capacities | {before: capacities[before] + more})[0]
        assert grown == before


def test_the_order_depends_on_the_run_and_not_on_the_order_of_the_hubs() -> None:
    capacities = {PeerId(name): 1.0 for name in "abcdef"}
    backwards = dict(reversed(capacities.items()))
    assert all(rank(edge, RUN, capacities) == rank(edge, RUN, backwards) for edge in EDGES[:50])
    other = RunId("5f" * 32)
    assert any(rank(edge, RUN, capacities) != rank(edge, other, capacities) for edge in EDGES[:50])


def test_who_has_no_capacity_is_no_hub() -> None:
    assert rank(EDGES[0], RUN, {PeerId("a"): 0.0}) == ()


def test_hubs_of_one_model_are_one_tier() -> None:
    def hub(capacity: float, model: int) -> Capability:
        return Capability(capacity=capacity, model=bytes([model]) * 32, split=bytes(32))

    hubs = {PeerId("d"): hub(1, 1), PeerId("a"): hub(1, 2), PeerId("b"): hub(2, 1), PeerId("c"): hub(0, 1)}
    assert tiers(hubs) == (("a",), ("b", "d"))


def test_a_capability_comes_back_as_it_was_announced() -> None:
    capability = Capability(capacity=2.5, model=b"m" * 32, split=b"s" * 32)
    assert read_capability(pack_capability(capability)) == capability


@given(st.binary(max_size=300))
def test_any_bytes_are_a_capability_or_a_remote_error(data: bytes) -> None:
    try:
        capability = read_capability(data)
    except RemoteError:
        return
    assert pack_capability(capability) == data


@pytest.mark.parametrize("capacity", [-1.0, float("inf"), float("nan"), 1e13])
def test_a_capacity_out_of_range_is_refused(capacity: float) -> None:
    document = {1: capacity, 2: bytes(32), 3: bytes(32)}
    with pytest.raises(RemoteError, match="capacity"):
        read_capability(encoding.pack(document))
    with pytest.raises(LocalError, match="refused"):
        pack_capability(Capability(capacity=capacity, model=bytes(32), split=bytes(32)))
