from functools import reduce
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from p2pfl.errors import StoreError
from p2pfl.ids import PeerId
from p2pfl.trust import reputation
from p2pfl.trust.identity import Identity
from p2pfl.trust.relations import Level
from p2pfl.trust.reputation import (
    Doubts,
    Measured,
    Record,
    Reputation,
    ceiling,
    doubts,
    lowered,
    observe,
    report,
    score,
)

PEERS = sorted(Identity(bytes([i]) * 32).peer_id for i in range(1, 60))
LIAR, HONEST = PEERS[0], PEERS[1:8]
NONE = Reputation()
NAN = float("nan")


def measured(
    distances: list[float], losses: list[float] | None = None, own: float = NAN, cosines: float = 0.9
) -> Measured:
    k = len(distances)
    return Measured(
        peers=tuple(PEERS[:k]),
        own_loss=own,
        losses=np.array([NAN] * k if losses is None else losses),
        distances=np.array(distances),
        cosines=np.full(k, cosines),
    )


def found(seen: Measured) -> list[str]:
    return list(doubts(seen).words)


def round_of(state: Reputation, number: int, *, far: bool = True) -> Reputation:
    """A round in which the liar is five times as far as the others and does much worse."""
    distances = [5.0 if far else 1.0, *np.linspace(0.8, 1.2, len(HONEST))]
    losses = [9.0 if far else 0.6, *np.linspace(0.4, 0.9, len(HONEST))]
    return observe(state, number, measured(distances, losses, 0.3))


def after(rounds: int, state: Reputation = NONE, *, far: bool = True) -> Reputation:
    return reduce(lambda s, number: round_of(s, number, far=far), range(rounds), state)


def rounds_until(state: Reputation, level: Level, *, far: bool) -> int:
    for number in range(1, 200):
        state = round_of(state, number, far=far)
        if ceiling(state, LIAR) is level:
            return number
    raise AssertionError(f"never {level.name}")


# --- what is doubted --------------------------------------------------------------------------------


def test_a_model_at_more_than_four_times_the_usual_distance_is_doubted_and_one_at_less_is_not() -> None:
    seen = measured([1.0, 1.0, 1.0, 3.99, 4.01], [1.0] * 5, 0.9)
    assert found(seen) == ["", "", "", "", "distance"]
    assert doubts(seen).most_distance == pytest.approx(4.0)
    assert list(doubts(seen, tolerance=2.0).words) == ["", "", "", "distance", "distance"]


def test_a_model_that_points_away_is_doubted_though_it_is_near() -> None:
    flipped = Measured(
        peers=tuple(PEERS[:5]),
        own_loss=2.3,
        losses=np.full(5, 2.3),
        distances=np.ones(5),
        cosines=np.array([0.8, 0.75, 0.7, 0.9, -0.8]),
    )
    assert found(flipped) == ["", "", "", "", "angle"]
    assert doubts(flipped).least_cosine == pytest.approx(-0.25)


def test_where_all_models_point_everywhere_none_points_away() -> None:
    scattered = Measured(
        peers=tuple(PEERS[:4]),
        own_loss=2.3,
        losses=np.full(4, 2.4),
        distances=np.ones(4),
        cosines=np.array([0.2, -0.1, 0.1, -0.7]),
    )
    assert found(scattered) == [""] * 4


def test_every_neighbour_of_skewed_data_may_be_worse_than_ones_own_model() -> None:
    seen = measured([0.7, 0.9, 1.0, 1.1, 1.2, 1.4], [3.0, 8.0, 4.0, 5.0, 2.5, 6.0], 0.05)
    assert found(seen) == [""] * 6


def test_a_model_that_does_better_than_ones_own_is_not_doubted_however_far_it_is() -> None:
    assert found(measured([1.0, 1.0, 1.0, 9.0], [1.0, 1.0, 1.0, 0.94], 1.0)) == [""] * 4
    assert found(measured([1.0, 1.0, 1.0, 9.0], [1.0, 1.0, 1.0, 0.96], 1.0))[3] == "distance"


def test_a_loss_beyond_all_others_is_doubted_though_the_model_is_near() -> None:
    assert found(measured([1.0] * 4, [0.5, 0.6, 0.5, 60.0], 0.4)) == ["", "", "", "loss"]
    # Where the usual loss is a hundred times one's own, another hundred is skew.
    assert found(measured([1.0] * 4, [0.5, 0.4, 0.5, 40.0], 0.004)) == [""] * 4


def test_a_model_without_a_finite_loss_is_doubted_and_one_that_was_not_measured_is_not() -> None:
    seen = measured([1.0] * 5, [0.5, float("inf"), 0.5, 0.6, NAN], 0.4)
    assert found(seen) == ["", "loss", "", "", ""]


def test_without_losses_the_place_of_a_model_speaks_alone() -> None:
    seen = measured([1.0, 1.0, 1.0, 5.0])
    assert found(seen) == ["", "", "", "distance"]
    assert doubts(seen).most_loss is None


def test_of_two_models_neither_is_unusual_and_of_three_one_can_be() -> None:
    assert found(measured([1.0, 99.0])) == ["", ""]
    assert found(measured([1.0, 1.0, 99.0])) == ["", "", "distance"]


def test_a_minority_of_liars_is_found_and_half_of_them_decides_what_is_usual() -> None:
    def caught(liars: int) -> int:
        return sum(word != "" for word in found(measured([1.0] * 5 + [20.0] * liars)))

    assert caught(4) == 4
    assert caught(5) == 5
    assert caught(6) == 0


@given(st.lists(st.floats(1e-3, 1e3), min_size=3, max_size=9), st.sampled_from([0.25, 0.5, 2.0, 1024.0]))
def test_doubts_do_not_depend_on_the_order_or_on_the_unit_of_distance(
    distances: list[float], unit: float
) -> None:
    limit = doubts(measured(distances)).most_distance
    assert limit is not None
    clear = [abs(d / limit - 1) > 1e-9 for d in distances]
    first = found(measured(distances))
    backwards = found(measured(distances[::-1]))[::-1]
    scaled = found(measured([unit * d for d in distances]))
    for again in (backwards, scaled):
        assert [a for a, c in zip(again, clear, strict=True) if c] == [
            a for a, c in zip(first, clear, strict=True) if c
        ]


def test_a_round_in_which_nobody_was_heard_only_fades() -> None:
    silent = observe(after(5), 9, measured([]))
    assert doubts(measured([])) == Doubts(words=(), most_loss=None, most_distance=None, least_cosine=None)
    assert silent.records[LIAR].doubts == pytest.approx(0.95 * after(5).records[LIAR].doubts)
    assert not reputation.is_doubted(silent, LIAR, 9)
    assert reputation.is_doubted(after(5), LIAR, 4)


# --- from evidence to levels ------------------------------------------------------------------------


def test_a_liar_is_limited_then_in_quarantine_within_ten_rounds_and_stays() -> None:
    assert rounds_until(NONE, Level.LIMITED, far=True) == 2
    assert rounds_until(NONE, Level.QUARANTINE, far=True) == 3
    state = after(80)
    assert ceiling(state, LIAR) is Level.QUARANTINE
    assert all(ceiling(state, peer) is Level.NORMAL for peer in HONEST)


def test_a_sleeper_with_the_best_record_lasts_eleven_rounds() -> None:
    assert rounds_until(after(200, far=False), Level.QUARANTINE, far=True) == 11


def test_a_liar_that_stops_returns_by_way_of_limited() -> None:
    state = after(30)
    assert rounds_until(state, Level.LIMITED, far=False) == 21
    assert rounds_until(state, Level.NORMAL, far=False) == 31


def test_scores_at_the_border_do_not_flicker() -> None:
    state = after(3)
    assert ceiling(state, LIAR) is Level.QUARANTINE
    levels = []
    for number in range(60):
        state = round_of(state, number, far=number % 3 == 0)
        levels.append(ceiling(state, LIAR))
    changes = sum(a is not b for a, b in pairwise(levels))
    assert changes <= 3


def test_one_fault_limits_a_newcomer_and_not_a_peer_with_a_record() -> None:
    assert ceiling(reputation.fault(NONE, LIAR, "size"), LIAR) is Level.LIMITED
    twice = reputation.fault(reputation.fault(NONE, LIAR, "size"), LIAR, "not-finite")
    assert ceiling(twice, LIAR) is Level.QUARANTINE
    assert ceiling(reputation.fault(after(20, far=False), LIAR, "size"), LIAR) is Level.NORMAL


def test_a_key_that_takes_anothers_place_takes_its_record() -> None:
    state = reputation.rename(after(10), LIAR, PEERS[40])
    assert ceiling(state, PEERS[40]) is Level.QUARANTINE
    assert ceiling(state, LIAR) is Level.NORMAL
    assert reputation.rename(NONE, LIAR, PEERS[40]) == NONE


def test_a_forgotten_peer_is_a_newcomer_again() -> None:
    assert LIAR not in reputation.forget(after(10), LIAR).records


def test_kinds_of_faults_are_counted_apart_up_to_a_limit() -> None:
    state = reduce(lambda s, i: reputation.fault(s, LIAR, f"kind {i}"), range(100), NONE)
    assert len(state.records[LIAR].faults) == 17
    assert sum(state.records[LIAR].faults.values()) == 100


@given(st.sampled_from(Level), st.sampled_from([Level.QUARANTINE, Level.LIMITED, Level.NORMAL]))
def test_reputation_never_raises_a_level_and_leaves_a_pinned_one(own: Level, most: Level) -> None:
    assert lowered(own, most) <= own
    assert (lowered(own, most) is own) == (own is Level.PINNED or most >= own)


# --- what others say --------------------------------------------------------------------------------


@pytest.mark.slow
@settings(deadline=None)
@given(st.integers(0, 50), st.integers(0, 15))
def test_slander_by_any_number_leaves_an_honest_peer_at_its_level(reporters: int, rounds: int) -> None:
    state = after(rounds, far=False)
    for by in PEERS[8 : 8 + reporters]:
        state = report(state, LIAR, by)
    assert ceiling(state, LIAR) is Level.NORMAL
    assert len(state.records[LIAR].reports if LIAR in state.records else {}) <= 8


def test_a_report_lowers_a_peer_with_doubts_of_its_own_to_limited_and_fades() -> None:
    state = after(8, far=False)
    state = after(2, state)
    assert ceiling(state, LIAR) is Level.NORMAL
    for by in PEERS[8:]:
        state = report(state, LIAR, by)
    assert ceiling(state, LIAR) is Level.LIMITED
    assert ceiling(after(25, state, far=False), LIAR) is Level.NORMAL


def test_whom_this_site_does_not_believe_is_not_listened_to() -> None:
    state = after(10)
    assert report(state, HONEST[0], LIAR) == state
    assert report(NONE, LIAR, LIAR) == NONE


# --- newcomers ---------------------------------------------------------------------------------------


def test_fifty_newcomers_of_one_inviter_weigh_what_one_member_weighs() -> None:
    crowd, founder = PEERS[1:51], PEERS[55]
    inviters = dict.fromkeys(crowd, (founder,))
    seen: set[PeerId] = set()
    for number in range(50):
        chosen = reputation.admitted(NONE, [*crowd, founder], inviters, number)
        assert founder in chosen
        assert len(chosen) == 2
        seen |= chosen
    assert seen == {*crowd, founder}


def test_each_inviter_has_a_budget_of_its_own_and_a_record_ends_it() -> None:
    a, b, c = PEERS[1:4]
    inviters = {a: (PEERS[50],), b: (PEERS[50],), c: (PEERS[51],)}
    assert reputation.admitted(NONE, [a, b, c], inviters, 0) == {a, c}
    known = after(6, far=False)
    assert reputation.has_record(known.records[a])
    assert reputation.admitted(known, [a, b, c], inviters, 0) == {a, b, c}
    assert not reputation.has_record(after(5, far=False).records[a])


# --- what is kept and shown ---------------------------------------------------------------------------


def test_records_come_back_from_disk_as_they_were() -> None:
    state = report(reputation.fault(after(7), HONEST[0], "size"), HONEST[1], HONEST[2])
    assert reputation.from_bytes(reputation.to_bytes(state)) == state
    assert reputation.from_bytes(reputation.to_bytes(NONE)) == NONE


def test_damaged_or_unknown_records_are_refused() -> None:
    data = reputation.to_bytes(after(2))
    for damaged in (b"", data[:-3], b"\x92\x09" + data[2:]):
        with pytest.raises(StoreError):
            reputation.from_bytes(damaged)


def test_every_number_of_a_level_can_be_shown() -> None:
    shown = reputation.explain(after(4).records[LIAR])
    assert shown["level"] == "quarantine"
    assert shown["score"] == score(after(4).records[LIAR])
    assert shown["rule"] == f"score {shown['score']:.3f} is below 0.53"
    assert (shown["rounds"], shown["by_distance"], shown["by_loss"]) == (4, 4, 0)
    assert shown["b"] == pytest.approx(2 + 2 * (1 + 0.95 + 0.95**2 + 0.95**3))
    last = shown["last"]
    assert (last["loss"], last["own_loss"], last["distance"], last["doubt"]) == (9.0, 0.3, 5.0, "distance")
    assert reputation.explain(Record())["score"] == pytest.approx(0.690, abs=1e-3)
