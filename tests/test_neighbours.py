"""Where a peer goes on that comes back, or was left behind."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pfl.ids import PeerId
from p2pfl.neighbours import SKIP_AFTER_ROUNDS, Neighbours


def at(*rounds: int) -> Neighbours:
    known = Neighbours()
    for i, number in enumerate(rounds):
        one = known[PeerId(f"peer-{i}")]
        one.connected = one.up = one.begun = True
        one.round = number
    return known


def test_nobody_is_passed_over_that_waits_in_the_round_before() -> None:
    assert at(722, 723, 723).round_of_others(2) == 722


@pytest.mark.parametrize("lie", [10**9, 0])
def test_one_liar_moves_nobody(lie: int) -> None:
    assert at(40, 41, lie).round_of_others(2) in (40, 41)


def test_one_voice_is_not_believed_where_two_are_needed() -> None:
    assert at(2**40).round_of_others(voices=2) == 0
    assert at(2**40).next_round(7, voices=2) == 8
    assert at(40).next_round(7, voices=1) == 40


def test_without_neighbours_a_peer_goes_on_by_itself() -> None:
    assert at().round_of_others(2) == 0
    assert at().next_round(7, 2) == 8


@given(st.lists(st.integers(0, 1000), min_size=1, max_size=9), st.integers(0, 1000))
def test_a_peer_never_goes_back_and_skips_only_when_left_behind(rounds: list[int], mine: int) -> None:
    known = at(*rounds)
    following = known.next_round(mine, 2)
    assert following > mine
    if max(rounds) <= mine + 1 + SKIP_AFTER_ROUNDS:
        assert following == mine + 1
