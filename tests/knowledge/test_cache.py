"""A hub's cache: bounded for each sender, whole groups, the newest of each sample."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from p2pfl.ids import PeerId
from p2pfl.knowledge.cache import Cache, Group, fresh, newest, put
from p2pfl.knowledge.packets import Features

A, B = PeerId("a"), PeerId("b")


def features(ids: list[int], value: float = 0.0, version: int = 0) -> Features:
    n = len(ids)
    return Features(
        ids=np.array(ids, np.uint64),
        hidden=np.full((n, 2), value, np.float32),
        z=np.zeros((n, 1), np.float16),
        labels=np.zeros(n, np.uint16),
        version=version,
    )


def group(sender: PeerId, round_: int, size: int = 10, **more: int) -> Group:
    return Group(sender=sender, round=round_, features=features([1], **more), size=size)


def filled(cache: Cache, *groups: Group) -> Cache:
    for one in groups:
        cache = put(cache, one)
    return cache


def held(cache: Cache) -> list[tuple[str, int]]:
    return [(one.sender, one.round) for one in cache.groups]


def test_the_oldest_groups_of_the_sender_that_sent_too_much_make_room() -> None:
    cache = filled(Cache(most_bytes=20), group(A, 0), group(B, 0), group(A, 1), group(A, 2))
    assert held(cache) == [("b", 0), ("a", 1), ("a", 2)]


def test_a_group_larger_than_a_sender_s_budget_is_not_held_and_evicts_only_its_own() -> None:
    cache = filled(Cache(most_bytes=20), group(A, 0), group(B, 0), group(A, 1, size=21))
    assert held(cache) == [("b", 0)]


def test_a_group_sent_again_takes_the_place_of_the_first() -> None:
    cache = filled(Cache(most_bytes=20), group(A, 0), group(A, 0, size=12))
    assert [one.size for one in cache.groups] == [12]


@given(st.lists(st.tuples(st.sampled_from([A, B]), st.integers(0, 9), st.integers(0, 15)), max_size=30))
def test_no_sender_ever_holds_more_than_its_budget(sent: list[tuple[PeerId, int, int]]) -> None:
    cache = Cache(most_bytes=20)
    for sender, round_, size in sent:
        before = cache.bytes_of(B if sender == A else A)
        cache = put(cache, group(sender, round_, size=size))
        assert cache.bytes_of(sender) <= 20
        assert cache.bytes_of(B if sender == A else A) == before
    assert held(cache) == [place for _, place in sorted((r, (s, r)) for s, r in set(held(cache)))]


def test_groups_grow_stale_unless_their_extractor_is_frozen() -> None:
    cache = filled(Cache(most_bytes=99), group(A, 2), group(A, 3), group(B, 2, version=2))
    assert held(fresh(cache, 6, staleness=3)) == [("a", 3)]
    assert held(fresh(cache, 6, staleness=3, frozen_from=2)) == [("b", 2), ("a", 3)]


def test_each_sample_is_used_once_as_it_was_sent_last() -> None:
    cache = Cache(most_bytes=99)
    for round_, ids in ((0, [1, 2, 3]), (1, [2, 5]), (2, [2, 3])):
        one = Group(sender=A, round=round_, features=features(ids, value=round_), size=1)
        cache = put(cache, one)
    parts = newest(cache)[A]
    assert [(part.ids.tolist(), float(part.hidden[0, 0])) for part in parts] == [
        ([2, 3], 2.0),
        ([5], 1.0),
        ([1], 0.0),
    ]
