from __future__ import annotations

import pytest

from p2pfl.errors import ConfigError, RefusedError
from p2pfl.ids import RunId
from p2pfl.trust.admission import admit, amend, merge, revoke
from p2pfl.trust.amendments import in_force, issue_amendment
from p2pfl.trust.certificates import Certificate, countersign, issue_certificate, issue_revocation
from p2pfl.trust.identity import Identity
from p2pfl.trust.membership import Membership, amended, batches, genesis, passed, standing
from p2pfl.trust.voting import endorse, renew

RUN = RunId("ab" * 32)
DAY = 86_400.0
A, B, C = (Identity(bytes([i]) * 32) for i in (1, 2, 3))
GUEST = Identity(bytes([9]) * 32).peer_id
BEGUN = genesis(RUN, [f.peer_id for f in (A, B, C)], 2)
INVITED = countersign(issue_certificate(A, run=RUN, subject=GUEST, name="guest", now=0.0, nonce=bytes(16)), B)
STATE, _ = admit(BEGUN, INVITED, 0.0)
LONGER = {"run.deadline_s": "60.0"}
SHORTER = {"run.deadline_s": "6.0"}


def renewed(state: Membership, founder: Identity, *, now: float = 80 * DAY, nonce: int = 1) -> Certificate:
    return renew(state, founder, GUEST, now=now, lasts_s=90 * DAY, nonce=bytes([nonce]) * 16)


def heard(state: Membership, of: Membership, now: float = 80 * DAY) -> Membership:
    for batch in batches(of):
        state, _, rejected = merge(state, batch, now)
        assert not rejected
    return state


def test_founders_who_renew_one_after_the_other_sign_one_certificate() -> None:
    here, _ = admit(STATE, renewed(STATE, A), 80 * DAY)
    assert standing(here, GUEST, 91 * DAY) == "expired"
    there = heard(STATE, here)
    there, _ = admit(there, renewed(there, C, nonce=2), 80 * DAY)
    assert standing(there, GUEST, 91 * DAY) == "member"
    assert standing(there, GUEST, 170 * DAY) == "expired"
    assert there.certificates[GUEST].name == "guest"
    assert there.pending == {}


def test_founders_who_renew_at_once_meet_when_either_signs_again() -> None:
    one, _ = admit(STATE, renewed(STATE, A, nonce=1), 80 * DAY)
    two, _ = admit(STATE, renewed(STATE, B, nonce=2), 80 * DAY)
    both = heard(one, two)
    assert len(both.pending) == 2
    assert standing(both, GUEST, 91 * DAY) == "expired"
    after, _ = admit(both, renewed(both, C), 80 * DAY)
    assert standing(after, GUEST, 91 * DAY) == "member"


def test_who_has_expired_is_renewed_like_any_other() -> None:
    late = 100 * DAY
    assert standing(STATE, GUEST, late) == "expired"
    one, _ = admit(STATE, renewed(STATE, A, now=late), late)
    two, _ = admit(one, renewed(one, B, now=late), late)
    assert standing(two, GUEST, late) == "member"


def test_only_founders_renew_and_only_members_are_renewed() -> None:
    with pytest.raises(RefusedError, match="is no founder"):
        renewed(STATE, Identity(bytes([50]) * 32))
    with pytest.raises(RefusedError, match="is a founder"):
        renew(STATE, A, B.peer_id, now=0.0, lasts_s=DAY, nonce=bytes(16))
    with pytest.raises(RefusedError, match="is no member"):
        renewed(BEGUN, A)
    gone = STATE
    for founder in (A, B):
        gone, _ = revoke(gone, issue_revocation(founder, run=RUN, subject=GUEST, reason="", now=0.0))
    with pytest.raises(RefusedError, match="is no member"):
        renewed(gone, A)


def test_a_revoked_founder_signs_nothing_more_here() -> None:
    state = STATE
    for founder in (A, B):
        state, _ = revoke(state, issue_revocation(founder, run=RUN, subject=C.peer_id, reason="", now=0.0))
    with pytest.raises(RefusedError, match="is no founder"):
        renewed(state, C)


def test_founders_who_want_the_same_change_sign_one_amendment() -> None:
    one, _ = amend(STATE, endorse(STATE, A, changes=LONGER, at_round=20, now=0.0))
    assert passed(one) == ()
    two, _ = amend(one, endorse(one, B, changes=LONGER, at_round=33, now=5.0))
    (only,) = passed(two)
    assert (only.epoch, only.at_round) == (1, 20)
    assert amended(two, 19) == ()
    assert amended(two, 20) == (only,)


def test_a_founder_signs_one_amendment_an_epoch_so_two_rivals_never_both_pass() -> None:
    mine, _ = amend(STATE, endorse(STATE, A, changes=LONGER, at_round=20, now=0.0))
    rival, _ = amend(STATE, endorse(STATE, B, changes=SHORTER, at_round=20, now=0.0))
    both = heard(mine, rival)
    # C can make either pass; A, asked for the rival, takes the next number instead of a second vote.
    second = endorse(both, A, changes=SHORTER, at_round=30, now=0.0)
    assert second.epoch == 2
    after, _ = amend(both, endorse(both, C, changes=SHORTER, at_round=20, now=0.0))
    assert [a.changes for a in passed(after)] == [SHORTER]
    # What has an epoch that is taken is not signed any more.
    again = endorse(after, C, changes=LONGER, at_round=50, now=0.0)
    assert again.epoch == 2


def test_a_fence_is_after_every_earlier_one() -> None:
    state = STATE
    for founder in (A, B):
        state, _ = amend(state, endorse(state, founder, changes=LONGER, at_round=20, now=0.0))
    with pytest.raises(ConfigError, match="not after round 20"):
        endorse(state, A, changes=SHORTER, at_round=20, now=0.0)
    assert endorse(state, A, changes=SHORTER, at_round=21, now=0.0).epoch == 2


def test_later_epochs_stand_above_earlier_ones_and_an_overtaken_fence_never_counts() -> None:
    first, second, third = (
        issue_amendment(A, run=RUN, epoch=epoch, at_round=at, changes=LONGER, now=0.0)
        for epoch, at in ((1, 10), (2, 40), (3, 30))
    )
    assert in_force([third, first], 29) == (first,)
    assert in_force([third, first], 30) == (first, third)
    # The fence of the second is not before that of the third.
    assert in_force([first, second, third], 50) == (first, third)


def test_an_amendment_of_another_run_or_of_strangers_changes_nothing() -> None:
    other = issue_amendment(A, run=RunId("cd" * 32), epoch=1, at_round=1, changes=LONGER, now=0.0)
    stranger = issue_amendment(
        Identity(bytes([50]) * 32), run=RUN, epoch=1, at_round=1, changes=LONGER, now=0.0
    )
    for bad, reason in ((other, "of run"), (stranger, "no founder")):
        with pytest.raises(RefusedError, match=reason):
            amend(STATE, bad)
