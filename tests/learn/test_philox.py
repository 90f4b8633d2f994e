"""Random words by counter are the published ones, and depend on nothing but their counter."""

from __future__ import annotations

import numpy as np
import pytest

from p2pfl.learn.philox import BATCHES, PARTITION, below, philox4x32, shuffled, words


# Random123 1.09, kat_vectors, philox4x32 10.
@pytest.mark.parametrize(
    ("counter", "key", "block"),
    [
        ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        (
            (0xFFFFFFFF,) * 4,
            (0xFFFFFFFF,) * 2,
            (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD),
        ),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xA4093822, 0x299F31D0),
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        ),
    ],
)
def test_blocks_are_those_of_the_published_known_answers(
    counter: tuple[int, ...], key: tuple[int, int], block: tuple[int, ...]
) -> None:
    assert tuple(philox4x32(np.array(counter, np.uint32), key).tolist()) == block


def test_a_peer_s_words_do_not_depend_on_who_else_draws_or_how_many_it_takes() -> None:
    many = words(5, BATCHES, 3, np.arange(100), 10)
    few = words(5, BATCHES, 3, np.array([77, 4]), 6)
    np.testing.assert_array_equal(few, many[[77, 4], :6])


@pytest.mark.parametrize("other", [(6, BATCHES, 3), (5, PARTITION, 3), (5, BATCHES, 4)])
def test_another_seed_stream_or_round_gives_other_words(other: tuple[int, int, int]) -> None:
    mine, theirs = words(5, BATCHES, 3, np.arange(50), 4), words(*other, np.arange(50), 4)
    assert (mine == theirs).mean() < 0.01
    assert len(np.unique(mine)) == mine.size


def test_both_halves_of_a_seed_count() -> None:
    peers = np.arange(8)
    assert (words(1, 1, 0, peers, 4) != words(1 + 2**32, 1, 0, peers, 4)).all()


def test_numbers_below_a_bound_are_even() -> None:
    drawn = below(words(0, 1, 0, np.arange(10_000), 6), 6)
    assert np.bincount(drawn.ravel(), minlength=6) == pytest.approx(np.full(6, 10_000), rel=0.05)


def test_shuffles_are_permutations_and_every_place_is_as_likely() -> None:
    order = shuffled(words(0, 1, 0, np.arange(6000), 5))
    np.testing.assert_array_equal(np.sort(order, axis=1), np.tile(np.arange(5), (6000, 1)))
    for place in range(5):
        assert np.bincount(order[:, place], minlength=5) == pytest.approx(np.full(5, 1200), rel=0.12)
