"""Merging is a join: the order, the grouping and the repetition of records do not matter."""

from __future__ import annotations

from functools import cache

from founders import GUESTS, KEY, NEW, OLD, RUN, SPARE, STATE, A, B, C, amendment, certificate, vote
from hypothesis import given, settings
from hypothesis import strategies as st

from p2pfl.errors import StoreError
from p2pfl.trust.admission import admit, merge
from p2pfl.trust.amendments import encode_amendment
from p2pfl.trust.certificates import encode_certificate
from p2pfl.trust.identity import Identity
from p2pfl.trust.membership import Membership, Records, batches, digest, from_bytes, is_revoked, to_bytes
from p2pfl.trust.successions import encode_succession, issue_succession


@cache
def _records() -> tuple[Records, ...]:
    """Every kind of record that may meet another: renewals, unions, partial and whole ones, rivals, junk."""
    made = [
        Records(certificates=(encode_certificate(one),))
        for guest in GUESTS[:3]
        for one in (
            certificate(A, B, subject=guest),
            certificate(B, C, subject=guest),
            certificate(A, C, subject=guest, now=1000.0),
            certificate(A, subject=guest, now=2000.0),
            certificate(B, subject=guest, now=2000.0),
        )
    ]
    made += [
        Records(revocations=(vote(f, guest, now),))
        for f in (A, B, C)
        for guest in GUESTS[1:3]
        for now in (1.0, 2.0)
    ]
    made += [
        Records(successions=(encode_succession(issue_succession(signer, new, run=RUN, old=KEY, now=1.0)),))
        for signer in (OLD, SPARE)
        for new in NEW
    ]
    # B signs two of one epoch, which only a founder that lies or lost its disk does.
    made += [
        Records(amendments=(encode_amendment(amendment(signer, epoch=epoch, value=value)),))
        for signer, epoch, value in ((A, 1, "1"), (B, 1, "1"), (B, 1, "2"), (C, 1, "2"), (A, 2, "3"))
    ]
    return (*made, Records(certificates=(b"junk",)), Records((), (vote(Identity(bytes([9]) * 32)),)))


@cache
def _begun() -> Membership:
    """A run with a member whose key is replaced, as often as it is."""
    return admit(STATE, certificate(A, B, subject=KEY, recovery=SPARE.peer_id), 0.0)[0]


def _merged(state: Membership, picks: list[int]) -> Membership:
    for pick in picks:
        state, _, _ = merge(state, _records()[pick % len(_records())], 0.0)
    return state


def _joined(left: Membership, right: Membership) -> Membership:
    for batch in batches(right):
        left, _, _ = merge(left, batch, 0.0)
    return left


picks = st.lists(st.integers(0, 40), max_size=8)


@settings(deadline=None, max_examples=60)
@given(picks, picks)
def test_merging_is_commutative_and_idempotent(first: list[int], second: list[int]) -> None:
    one, two = _merged(_begun(), first), _merged(_begun(), second)
    assert _joined(one, two) == _joined(two, one)
    assert digest(_joined(one, two)) == digest(_joined(two, one)) == digest(_merged(_begun(), first + second))
    assert _joined(one, one) is one


@settings(deadline=None, max_examples=60)
@given(picks, picks, picks)
def test_merging_is_associative(first: list[int], second: list[int], third: list[int]) -> None:
    one, two, three = (_merged(_begun(), found) for found in (first, second, third))
    assert _joined(_joined(one, two), three) == _joined(one, _joined(two, three))


@settings(deadline=None, max_examples=60)
@given(picks, st.permutations(range(8)))
def test_the_order_of_arrival_does_not_matter(found: list[int], order: list[int]) -> None:
    shuffled = [found[i] for i in order if i < len(found)]
    assert digest(_merged(_begun(), found)) == digest(_merged(_begun(), shuffled))


@settings(deadline=None, max_examples=60)
@given(picks, picks)
def test_who_is_revoked_stays_revoked(first: list[int], second: list[int]) -> None:
    before = _merged(_begun(), first)
    after = _merged(before, second)
    assert {g for g in GUESTS if is_revoked(before, g)} <= {g for g in GUESTS if is_revoked(after, g)}


@settings(deadline=None, max_examples=100)
@given(*4 * [st.binary(max_size=300)])
def test_any_roster_is_merged_without_raising(one: bytes, two: bytes, three: bytes, four: bytes) -> None:
    state, changed, rejected = merge(STATE, Records((one,), (two,), (three,), (four,)), 0.0)
    assert (state, changed, len(rejected)) == (STATE, False, 4)


@settings(deadline=None, max_examples=100)
@given(st.integers(0, 2000), st.binary(max_size=3), st.integers(0, 3))
def test_a_damaged_store_is_read_or_refused(at: int, new: bytes, cut: int) -> None:
    data = to_bytes(_merged(_begun(), [0, 5, 14, 18]))
    try:
        from_bytes(data[:at] + new + data[at + cut :])
    except StoreError:
        return
