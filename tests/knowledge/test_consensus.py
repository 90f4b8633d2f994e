"""One prediction from many: closed forms, liars, and differences that never drift."""

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from poisoners import class_prior, loss_maximising

from p2pfl.errors import AggregationError, RemoteError
from p2pfl.knowledge import bodies
from p2pfl.knowledge.beliefs import Beliefs, agreement, log_softmax
from p2pfl.knowledge.consensus import Held, applied, combine, in_distribution, threshold, written
from p2pfl.knowledge.packets import Coding, probe_bytes

DIGEST = bytes(32)


def held(p: list[list[float]], vouched: list[bool] | None = None) -> Held:
    rows = np.array(p)
    return Held(
        round=0,
        vouched=np.ones(len(rows), np.bool_) if vouched is None else np.array(vouched),
        log_p=np.log(rows).astype(np.float32),
    )


def of(log_p: Beliefs) -> Held:
    return Held(round=0, vouched=np.ones(len(log_p), np.bool_), log_p=log_p.astype(np.float32))


def honest(seed: int, peers: int = 8, n: int = 2000, K: int = 10) -> tuple[Beliefs, np.ndarray]:
    """Predictions of `peers` models that are each right about three times of four, and the truth."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(K, size=n)
    hard = rng.normal(size=(n, K))
    z = 3.2 * np.eye(K)[labels] + hard + 1.2 * rng.normal(size=(peers, n, K))
    return np.stack([log_softmax(one) for one in z]), labels


def test_mean_and_median_of_three_by_hand() -> None:
    three = [held([[0.7, 0.2, 0.1]]), held([[0.5, 0.4, 0.1]]), held([[0.1, 0.6, 0.3]])]
    np.testing.assert_allclose(combine(three, "mean")[0], [[1.3 / 3, 1.2 / 3, 0.5 / 3]], rtol=1e-6)
    # Medians .5, .4, .1 sum to 1 here.
    np.testing.assert_allclose(combine(three, "median")[0], [[0.5, 0.4, 0.1]], rtol=1e-6)
    # Of two, the middle: the mean.
    np.testing.assert_allclose(combine(three[:2], "median")[0], combine(three[:2], "mean")[0], rtol=1e-12)


def test_only_those_who_vouch_for_a_sample_speak_on_it() -> None:
    two = [held([[0.9, 0.1]] * 3, [True, False, False]), held([[0.2, 0.8]] * 3, [True, True, False])]
    for rule in ("mean", "median"):
        p, is_used = combine(two, rule)
        assert is_used.tolist() == [True, True, False]
        np.testing.assert_allclose(p, [[0.55, 0.45], [0.2, 0.8], [0.5, 0.5]], rtol=1e-6)


@pytest.mark.parametrize("sharpen", [1.0, 0.5, 0.01])
def test_a_sharpened_prediction_is_a_power_of_it_and_keeps_its_order(sharpen: float) -> None:
    log_p = np.log(np.array([[0.5, 0.3, 0.2], [1 - 2e-8, 1e-8, 1e-8]])).astype(np.float32)
    held = Held(round=0, vouched=np.ones(2, bool), log_p=log_p)
    p, _ = combine([held], "mean", sharpen)
    assert p.sum(axis=1) == pytest.approx(1)
    assert p[0, 1] / p[0, 0] == pytest.approx(0.6 ** (1 / sharpen))
    assert np.array_equal(np.argsort(-p[0]), [0, 1, 2])


def test_nothing_to_combine_is_an_error() -> None:
    with pytest.raises(AggregationError, match="no prediction"):
        combine([], "mean")


@given(st.integers(1, 7), st.integers(0, 2**32 - 1), st.sampled_from(["mean", "median"]))
def test_what_comes_out_is_a_distribution_and_the_order_of_peers_does_not_matter(
    peers: int, seed: int, rule: str
) -> None:
    rng = np.random.default_rng(seed)
    many = [
        Held(
            round=0,
            vouched=rng.random(6) < 0.7,
            log_p=log_softmax(9 * rng.normal(size=(6, 4))).astype(np.float32),
        )
        for _ in range(peers)
    ]
    p, is_used = combine(many, rule)
    np.testing.assert_allclose(p.sum(axis=1), 1, rtol=1e-12)
    assert (p > 0).all()
    np.testing.assert_array_equal(is_used, np.any([one.vouched for one in many], axis=0))
    np.testing.assert_allclose(combine(many[::-1], rule)[0], p, rtol=1e-12)


@given(st.integers(0, 2**32 - 1), st.integers(0, 3))
def test_the_median_stays_between_the_honest_while_liars_are_the_fewer(seed: int, liars: int) -> None:
    rng = np.random.default_rng(seed)
    good = log_softmax(rng.normal(size=(5, 4, 3)).reshape(20, 3)).reshape(5, 4, 3)
    bad = log_softmax(30 * rng.normal(size=(liars * 4, 3))).reshape(liars, 4, 3)
    everyone = [of(one) for one in (*good, *bad)]
    p = combine(everyone, "median")[0]
    # Before it is renormalised each value lies between two honest ones, and so do ratios of the bounds.
    low, high = np.exp(good).min(axis=0), np.exp(good).max(axis=0)
    total = high.sum(axis=1, keepdims=True)
    assert (p * total >= low * (1 - 1e-5)).all()
    assert (p * low.sum(axis=1, keepdims=True) <= high * (1 + 1e-5)).all()


@pytest.mark.parametrize("attack", [loss_maximising, class_prior])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_of_eight_two_liars_cost_the_mean_much_and_the_median_little_and_four_cost_all(
    attack: Callable[[Beliefs], Beliefs], seed: int
) -> None:
    good, labels = honest(seed)

    def under(liars: int, rule: str) -> float:
        lies = [attack(good)] * liars
        return agreement(combine([of(one) for one in (*good[liars:], *lies)], rule)[0], labels)

    best = under(0, "mean")
    assert under(0, "median") > best - 0.01
    assert under(2, "median") > best - 0.05
    assert under(2, "median") - under(2, "mean") > 0.08
    assert under(4, "median") < 0.1


def test_a_threshold_keeps_the_share_of_own_samples_that_was_asked_for() -> None:
    own = np.linspace(0.01, 1, 100)
    assert threshold(own, 1.0) == 0
    assert threshold(np.zeros(0), 0.5) == 0
    for keep in (0.9, 0.5):
        least = threshold(own, keep)
        assert (own >= least).mean() == pytest.approx(keep, abs=0.011)


def test_samples_of_another_distribution_are_not_vouched_for() -> None:
    rng = np.random.default_rng(0)
    own, other = log_softmax(8 * np.eye(4)[rng.integers(4, size=500)]), log_softmax(rng.normal(size=(500, 4)))
    least = threshold(np.exp(own.max(axis=1)), 0.95)
    assert in_distribution(own, least).mean() >= 0.95
    assert in_distribution(other, least).mean() < 0.01


@given(
    st.integers(0, 2**32 - 1),
    st.floats(0, 2),
    st.sampled_from([Coding.INT8, Coding.FLOAT16]),
    st.integers(1, 6),
)
def test_differences_never_drift_and_both_ends_hold_the_same(
    seed: int, tolerance: float, coding: Coding, rounds: int
) -> None:
    rng = np.random.default_rng(seed)
    mine: Held | None = None
    theirs: Held | None = None
    z = rng.normal(size=(9, 3))
    for round_ in range(rounds):
        z = z + 0.5 * rng.normal(size=z.shape)
        log_p, vouched = log_softmax(z), rng.random(9) < 0.8
        packet, mine = written(
            log_p, vouched, digest=DIGEST, coding=coding, round_=round_, before=mine, tolerance=tolerance
        )
        body = bodies.encode(packet)
        rows = int(packet.sent.sum())
        assert body.size == probe_bytes(9, rows=rows, classes=3, coding=coding, is_delta=round_ > 0)
        read = bodies.decode_probe(body, digest=DIGEST, classes=3, samples=9, coding=coding)
        theirs = applied(theirs, read, round_)
        np.testing.assert_array_equal(theirs.vouched, mine.vouched)
        np.testing.assert_array_equal(theirs.log_p[vouched], mine.log_p[vouched])
        # Half a step of either coding is below .04.
        assert np.abs(mine.log_p - log_p)[vouched].max(initial=0) <= max(tolerance, 0.04) + 1e-6


def test_what_has_not_moved_does_not_travel() -> None:
    log_p = log_softmax(np.random.default_rng(1).normal(size=(1000, 10)))
    everything = np.ones(1000, np.bool_)
    _, held_by_all = written(log_p, everything, digest=DIGEST, coding=Coding.INT8, round_=0, before=None)
    log_p[:100] = log_softmax(np.random.default_rng(2).normal(size=(100, 10)))
    packet, _ = written(
        log_p, everything, digest=DIGEST, coding=Coding.INT8, round_=1, before=held_by_all, tolerance=0.1
    )
    assert bodies.encode(packet).size < 0.15 * probe_bytes(1000, rows=1000, classes=10, coding=Coding.INT8)


def test_a_difference_to_what_is_not_held_is_refused() -> None:
    log_p, vouched = np.full((2, 2), -0.5), np.array([True, False])
    whole, first = written(log_p, vouched, digest=DIGEST, coding=Coding.INT8, round_=0, before=None)
    packet, _ = written(log_p, vouched, digest=DIGEST, coding=Coding.INT8, round_=1, before=first)
    for before in (None, applied(None, whole, 5)):
        with pytest.raises(RemoteError, match="follow those of round 0"):
            applied(before, packet, 1)
    unsaid = Held(round=0, vouched=~vouched, log_p=first.log_p)
    with pytest.raises(RemoteError, match="never sent"):
        applied(unsaid, packet, 1)
