"""Poisoned knowledge: who is left out, and where that ends."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from poisoners import bad_answer, flipped_labels

from p2pfl.ids import PeerId
from p2pfl.knowledge.beliefs import LOGIT_FLOOR, cross_entropy, log_softmax
from p2pfl.knowledge.guard import capped, is_better, suspects
from p2pfl.knowledge.packets import Features, SoftLabels, hidden_of

PEERS = [PeerId(f"p{i}") for i in range(8)]


def upload(seed: int, n: int = 200, K: int = 5) -> Features:
    """Samples whose hidden values tell the class, with some noise, and an edge head that knows a little."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(K, size=n)
    hidden = (np.eye(K)[labels] + 0.4 * rng.normal(size=(n, K))).astype(np.float32)
    z = log_softmax(2 * hidden + rng.normal(size=(n, K)), LOGIT_FLOOR)
    ids = np.sort(rng.choice(2**62, n, replace=False)).astype(np.uint64)
    return Features(ids=ids, hidden=hidden, z=z.astype(np.float16), labels=labels.astype(np.uint16))


def hub_losses(uploads: list[Features]) -> dict[PeerId, float]:
    """Of a hub whose model is good: it reads the class from the hidden values."""
    return {
        peer: cross_entropy(log_softmax(4 * hidden_of(sent)), sent.labels)
        for peer, sent in zip(PEERS, uploads, strict=True)
    }


@pytest.mark.parametrize("liars", [0, 1, 3])
def test_senders_of_flipped_labels_are_left_out_while_they_are_the_fewer(liars: int) -> None:
    uploads = [upload(seed) for seed in range(8)]
    poisoned = [flipped_labels(sent) if i < liars else sent for i, sent in enumerate(uploads)]
    assert suspects(hub_losses(poisoned)) == set(PEERS[:liars])


def test_when_most_senders_lie_none_of_them_is_found() -> None:
    uploads = [upload(seed) for seed in range(8)]
    poisoned = [flipped_labels(sent) if i < 5 else sent for i, sent in enumerate(uploads)]
    assert not suspects(hub_losses(poisoned)) & set(PEERS[:5])


def test_median_and_deviation_by_hand() -> None:
    losses = dict(zip(PEERS[:5], (1.0, 1.2, 1.4, 1.6, 2.1), strict=True))
    # Median 1.4, deviations .4 .2 0 .2 .7, their median .2: the limit is 2.0.
    assert suspects(losses) == {PEERS[4]}
    assert suspects(losses | {PEERS[4]: 1.99}) == frozenset()


def test_two_senders_have_no_middle_but_a_loss_that_is_no_number_is_one() -> None:
    assert suspects({PEERS[0]: 0.1, PEERS[1]: 9.0}) == frozenset()
    assert suspects({PEERS[0]: 0.1, PEERS[1]: float("nan")}) == {PEERS[1]}


@given(st.dictionaries(st.sampled_from(PEERS), st.floats(allow_nan=True), min_size=3))
def test_at_least_half_of_those_with_a_number_are_always_kept(losses: dict[PeerId, float]) -> None:
    finite = {peer for peer, loss in losses.items() if np.isfinite(loss)}
    assert len(finite - suspects(losses)) * 2 >= len(finite)


def test_a_sender_of_many_samples_counts_as_one_of_the_most_allowed() -> None:
    sent = upload(0, n=50)
    kept = capped(sent, 20)
    np.testing.assert_array_equal(kept.ids, sent.ids[:20])
    assert kept.hidden.shape[0] == kept.z.shape[0] == kept.labels.size == 20
    assert capped(sent, 50) is sent


def test_a_teacher_is_heard_when_it_beats_the_own_head_and_a_shuffled_one_is_not() -> None:
    sent = upload(3)
    soft = SoftLabels(ids=sent.ids, z=log_softmax(4 * hidden_of(sent), LOGIT_FLOOR).astype(np.float16))
    assert is_better(soft.z, sent.z, sent.labels)
    assert not is_better(bad_answer(soft).z, sent.z, sent.labels)
    assert not is_better(soft.z[:0], sent.z[:0], sent.labels[:0])


def test_what_fits_the_labels_better_is_heard_whatever_else_it_says() -> None:
    # The limit of this defence: the labels decide, so a hub that repeats them, wrong about all else, passes.
    sent = upload(4)
    K = sent.z.shape[1]
    other = (sent.labels + 2) % K
    repeated = log_softmax(6 * np.eye(K)[sent.labels] + 5 * np.eye(K)[other], LOGIT_FLOOR)
    assert is_better(repeated, sent.z, sent.labels)
