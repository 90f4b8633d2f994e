from dataclasses import replace

import pytest
from founders import DAY, FOUNDERS, GUEST, GUESTS, RUN, STATE, A, B, C, certificate, vote

from p2pfl.errors import ConfigError, RefusedError, StoreError
from p2pfl.events import Header, Kind
from p2pfl.ids import PeerId, RunId, short
from p2pfl.trust import admission
from p2pfl.trust.admission import admit, merge, petition, revoke
from p2pfl.trust.certificates import (
    countersign,
    encode_certificate,
    encode_revocation,
    issue_revocation,
)
from p2pfl.trust.identity import Identity
from p2pfl.trust.membership import (
    Membership,
    Records,
    batches,
    check_root,
    digest,
    from_bytes,
    genesis,
    is_revoked,
    members,
    signatures_missing,
    standing,
    to_bytes,
)
from p2pfl.trust.screening import judge_header
from p2pfl.trust.successions import Petition, encode_petition


def banned(state: Membership, subject: PeerId = GUEST) -> Membership:
    merged, changed, rejected = merge(state, Records(revocations=(vote(A, subject), vote(B, subject))), 0.0)
    assert changed
    assert not rejected
    return merged


@pytest.mark.parametrize(("founders", "quorum"), [(1, 1), (2, 2), (3, 2), (3, 3), (29, 15)])
def test_a_quorum_of_more_than_half_the_founders_can_be_a_root(founders: int, quorum: int) -> None:
    check_root([Identity(bytes([i]) * 32).peer_id for i in range(1, founders + 1)], quorum)


@pytest.mark.parametrize(("founders", "quorum"), [(0, 1), (1, 0), (1, 2), (2, 1), (4, 2), (3, 4), (31, 16)])
def test_half_the_founders_or_more_than_all_are_no_quorum(founders: int, quorum: int) -> None:
    with pytest.raises(ConfigError, match=r"trust\."):
        check_root([Identity(bytes([i]) * 32).peer_id for i in range(1, founders + 1)], quorum)


def test_a_founder_named_twice_is_an_error() -> None:
    with pytest.raises(ConfigError, match="twice"):
        genesis(RUN, (A.peer_id, A.peer_id), 2)


def test_founders_are_members_without_a_certificate_and_others_are_strangers() -> None:
    assert members(STATE, 0.0) == tuple(sorted(FOUNDERS))
    assert standing(STATE, A.peer_id, 1e12) == "member"
    assert standing(STATE, GUEST, 0.0) == "stranger"


def test_a_quorum_admits_until_the_certificate_expires() -> None:
    state, changed = admit(STATE, certificate(A, B), 10.0)
    assert changed
    assert standing(state, GUEST, 90 * DAY - 1) == "member"
    assert members(state, 10.0) == tuple(sorted((*FOUNDERS, GUEST)))
    assert standing(state, GUEST, 90 * DAY) == "expired"
    assert members(state, 90 * DAY) == tuple(sorted(FOUNDERS))


def test_one_signature_less_than_a_quorum_admits_nobody() -> None:
    one = certificate(A)
    assert signatures_missing(STATE, one) == 1
    assert signatures_missing(STATE, countersign(one, C)) == 0
    state, changed = admit(STATE, one, 10.0)
    assert changed
    assert standing(state, GUEST, 10.0) == "stranger"


def test_a_partitioned_minority_of_founders_can_neither_admit_nor_revoke() -> None:
    five = [Identity(bytes([i]) * 32) for i in range(1, 6)]
    state = genesis(RUN, [f.peer_id for f in five], 3)
    state, _ = admit(state, certificate(*five[:2]), 0.0)
    assert standing(state, GUEST, 0.0) == "stranger"
    state, _, rejected = merge(
        state, Records(revocations=tuple(vote(f, five[4].peer_id) for f in five[:2])), 0.0
    )
    assert not rejected
    assert standing(state, five[4].peer_id, 0.0) == "member"
    assert admit(state, certificate(*five[2:]), 0.0)[1]


def test_signatures_of_others_than_founders_do_not_count() -> None:
    stranger = Identity(bytes([77]) * 32)
    one = certificate(A, stranger)
    assert signatures_missing(STATE, one) == 1
    with pytest.raises(RefusedError, match="no founder"):
        admit(STATE, one, 0.0)
    with pytest.raises(RefusedError, match="no founder"):
        revoke(STATE, issue_revocation(stranger, run=RUN, subject=A.peer_id, reason="", now=0.0))


def test_a_false_signature_admits_nobody() -> None:
    good = certificate(A, B)
    false = replace(good, signatures={**good.signatures, B.peer_id: bytes(64)})
    with pytest.raises(RefusedError, match="false signature"):
        admit(STATE, false, 0.0)


def test_a_signature_held_for_one_certificate_does_not_carry_another() -> None:
    good = certificate(A, B)
    state, _ = admit(STATE, good, 0.0)
    longer = replace(good, expires_at=good.expires_at + DAY)
    assert merge(state, Records(certificates=(encode_certificate(longer),)), 0.0)[1:] == (
        False,
        (f"the certificate of {short(GUEST)} has a false signature of {short(min(A.peer_id, B.peer_id))}",),
    )


def test_a_false_vote_revokes_nobody() -> None:
    true = issue_revocation(A, run=RUN, subject=GUEST, reason="why", now=0.0)
    false = replace(true, votes={**true.votes, B.peer_id: replace(true.votes[A.peer_id], reason="forged")})
    state, changed, rejected = merge(STATE, Records(revocations=(encode_revocation(false),)), 0.0)
    assert (state, changed) == (STATE, False)
    assert "false signature" in rejected[0]
    with pytest.raises(RefusedError, match="false signature"):
        revoke(STATE, false)


def test_a_certificate_of_another_run_admits_nobody() -> None:
    with pytest.raises(RefusedError, match="of run"):
        admit(STATE, certificate(A, B, run=RunId("cd" * 32)), 0.0)


def test_a_ticket_must_be_used_in_time_but_a_members_roster_carries_it_on() -> None:
    one = certificate(A, B)
    late = 7 * DAY + 1.0
    with pytest.raises(RefusedError, match="not used in time"):
        admit(STATE, one, late)
    state, changed, rejected = merge(STATE, Records(certificates=(encode_certificate(one),)), late)
    assert (changed, rejected) == (True, ())
    assert admit(state, one, late) == (state, False)
    with pytest.raises(RefusedError, match="expired"):
        admit(state, one, 90 * DAY)


def test_a_stranger_in_the_lobby_is_admitted_by_its_own_certificate_only() -> None:
    frame = encode_petition(Petition(certificate=certificate(A, B)))
    state, changed = petition(STATE, GUEST, frame, 0.0)
    assert changed
    assert standing(state, GUEST, 0.0) == "member"
    with pytest.raises(RefusedError, match="another key"):
        petition(STATE, GUESTS[1], frame, 0.0)
    with pytest.raises(RefusedError, match="revoked"):
        petition(banned(STATE), GUEST, frame, 0.0)
    with pytest.raises(RefusedError, match="petition is not") as caught:
        petition(STATE, GUEST, b"junk" * 1024, 0.0)
    assert caught.value.peer == GUEST


def test_a_revoked_peers_payload_is_refused_from_its_header_alone() -> None:
    header = Header(
        run=RUN, sender=GUEST, recipient=A.peer_id, incarnation=1, boot_session=1, kind=Kind.SHARE,
        round=0, edge_seq=1, schema_hash=b"s" * 32, size=4, raw_size=4, weights=(0.5,), issued_at=0.0,
    )  # fmt: skip
    state, _ = admit(STATE, certificate(A, B), 0.0)

    def verdict(now_held: Membership) -> str | None:
        is_member = standing(now_held, header.sender, 0.0) == "member"
        return judge_header(header, schema_hash=b"s" * 32, expected_bytes=4, is_member=is_member)

    assert verdict(state) is None
    assert verdict(banned(state)) == "not-member"


def test_a_renewal_replaces_the_certificate_and_the_old_one_does_not_come_back() -> None:
    old, new = certificate(A, B), certificate(B, C, now=50 * DAY)
    state, _ = admit(STATE, old, 0.0)
    state, changed = admit(state, new, 50 * DAY)
    assert changed
    assert standing(state, GUEST, 100 * DAY) == "member"
    assert merge(state, Records(certificates=(encode_certificate(old),)), 50 * DAY) == (state, False, ())


def test_a_revocation_beats_every_certificate_for_ever() -> None:
    state, _ = admit(STATE, certificate(A, B), 0.0)
    state = banned(state)
    assert standing(state, GUEST, 0.0) == "revoked"
    assert is_revoked(state, GUEST)
    for one in (certificate(A, B), certificate(A, B, C), certificate(A, B, now=5000.0)):
        with pytest.raises(RefusedError, match="revoked"):
            admit(state, one, 5000.0)


def test_a_founder_too_can_be_revoked() -> None:
    state = banned(STATE, C.peer_id)
    assert standing(state, C.peer_id, 0.0) == "revoked"
    assert members(state, 0.0) == tuple(sorted(FOUNDERS[:2]))


def test_votes_short_of_a_quorum_are_kept_and_passed_on_and_add_up_elsewhere() -> None:
    here, changed = revoke(STATE, issue_revocation(A, run=RUN, subject=GUEST, reason="x", now=1.0))
    assert changed
    assert standing(here, GUEST, 1.0) == "stranger"
    there, _, _ = merge(STATE, Records(revocations=(vote(B),)), 1.0)
    for batch in batches(here):
        there, changed, rejected = merge(there, batch, 1.0)
        assert (changed, rejected) == (True, ())
    assert standing(there, GUEST, 1.0) == "revoked"


def test_one_founder_cannot_fill_the_roster_with_open_revocations(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(admission, "MAX_PENDING", 3)
    state, _, rejected = merge(STATE, Records(revocations=tuple(vote(A, g) for g in GUESTS)), 0.0)
    assert len(state.revocations) == 3
    assert rejected == ()
    with pytest.raises(RefusedError, match="one too many"):
        revoke(state, issue_revocation(A, run=RUN, subject=GUESTS[4], reason="", now=0.0))
    # Neither another founder's votes nor a quorum's are kept out by it.
    state, _, rejected = merge(state, Records(revocations=(vote(B, GUESTS[5]), vote(B, GUESTS[0]))), 0.0)
    assert rejected == ()
    assert is_revoked(state, GUESTS[0])


def test_a_full_run_admits_nobody_more_until_somebody_has_expired(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(admission, "MAX_MEMBERS", 2)
    state = STATE
    for age, guest in enumerate(GUESTS[:2]):
        state, _ = admit(state, certificate(A, B, subject=guest, now=float(age)), float(age))
    with pytest.raises(RefusedError, match="one too many"):
        admit(state, certificate(A, B, subject=GUESTS[2], now=5.0), 5.0)
    then = 90.0 * DAY
    state, _ = admit(state, certificate(A, B, subject=GUESTS[2], now=then), then)
    assert sorted(state.certificates) == sorted(GUESTS[1:3])


def test_bad_records_are_rejected_one_by_one_and_good_ones_still_count() -> None:
    good = encode_certificate(certificate(A, B))
    state, changed, rejected = merge(
        STATE, Records((b"junk", good, good[:-1]), (b"\x80", vote(C)), (b"junk",), (b"junk",)), 0.0
    )
    assert changed
    assert len(rejected) == 5
    assert standing(state, GUEST, 0.0) == "member"


def test_a_member_that_has_not_heard_of_a_revocation_yet_did_nothing_wrong() -> None:
    roster = Records(certificates=(encode_certificate(certificate(A, B)),))
    assert merge(banned(STATE), roster, 0.0) == (banned(STATE), False, ())


def test_what_is_held_already_is_not_verified_again(monkeypatch: pytest.MonkeyPatch) -> None:
    records = Records((encode_certificate(certificate(A, B)),), (vote(A, GUESTS[1]),))
    state, _, _ = merge(STATE, records, 0.0)

    def fail(*_: object) -> bool:
        raise AssertionError("verified again")

    monkeypatch.setattr(admission, "has_signed", fail)
    monkeypatch.setattr(admission, "has_voted", fail)
    assert merge(state, records, 0.0) == (state, False, ())


def test_batches_fit_a_message_and_rebuild_the_whole_roster() -> None:
    state = banned(STATE, GUESTS[7])
    for guest in GUESTS[:5]:
        state, _ = admit(state, certificate(A, B, subject=guest), 0.0)
    parts = batches(state, max_bytes=900, max_records=3)
    assert len(parts) > 2
    assert parts[0].revocations  # which must not wait
    copy = STATE
    for batch in parts:
        records = [record for column in batch for record in column]
        assert sum(map(len, records)) <= 900
        assert len(records) <= 3
        copy, _, _ = merge(copy, batch, 0.0)
    assert digest(copy) == digest(state)
    assert batches(STATE) == []


def test_a_membership_comes_back_from_the_disk() -> None:
    state, _ = admit(banned(STATE, GUESTS[1]), certificate(A, B), 0.0)
    assert from_bytes(to_bytes(state)) == state
    with pytest.raises(StoreError, match="damaged"):
        from_bytes(to_bytes(state)[:-1])
