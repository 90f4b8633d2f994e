from __future__ import annotations

from dataclasses import replace

import pytest
from founders import FOUNDERS, KEY, NEW, OLD, RUN, SPARE, STATE, A, B, certificate, vote
from hypothesis import given, settings
from hypothesis import strategies as st

from p2pfl.errors import ConfigError, RefusedError, RemoteError
from p2pfl.ids import RunId
from p2pfl.trust.admission import admit, merge, petition, succeed
from p2pfl.trust.certificates import MAX_CERTIFICATE_BYTES
from p2pfl.trust.identity import Identity
from p2pfl.trust.membership import (
    Membership,
    Records,
    batches,
    certificate_of,
    from_bytes,
    is_replaced,
    members,
    predecessors,
    standing,
    successor_of,
    to_bytes,
)
from p2pfl.trust.successions import (
    MAX_CHAIN,
    MAX_PETITION_BYTES,
    MAX_SUCCESSION_BYTES,
    Petition,
    Succession,
    decode_petition,
    decode_succession,
    encode_petition,
    encode_succession,
    is_signed,
    issue_succession,
)

CERTIFICATE = certificate(A, B, subject=KEY, recovery=SPARE.peer_id)
BEGUN, _ = admit(STATE, CERTIFICATE, 0.0)
FIRST, SECOND, THIRD = NEW


def made(signer: Identity = OLD, new: Identity = FIRST, *, old: str = KEY, now: float = 1.0) -> Succession:
    return issue_succession(signer, new, run=RUN, old=old, now=now)  # type: ignore[arg-type]


def after(*successions: Succession, begun: Membership = BEGUN) -> Membership:
    for one in successions:
        begun, _ = succeed(begun, one)
    return begun


def test_a_new_key_is_the_member_that_the_old_one_was_and_the_old_one_is_refused() -> None:
    state = after(made())
    assert standing(state, FIRST.peer_id, 0.0) == "member"
    assert standing(state, KEY, 0.0) == "revoked"
    assert members(state, 0.0) == tuple(sorted((*FOUNDERS, FIRST.peer_id)))
    assert certificate_of(state, FIRST.peer_id) == CERTIFICATE
    assert standing(state, FIRST.peer_id, CERTIFICATE.expires_at) == "expired"
    assert (successor_of(state, KEY), predecessors(state, FIRST.peer_id)) == (FIRST.peer_id, (KEY,))


def test_both_keys_have_to_sign() -> None:
    one = made()
    assert is_signed(one)
    for half in (replace(one, signature=bytes(64)), replace(one, consent=bytes(64))):
        assert not is_signed(half)
        with pytest.raises(RefusedError, match="false signature"):
            succeed(BEGUN, half)
    with pytest.raises(RefusedError, match="may not"):
        succeed(BEGUN, made(signer=THIRD))


def test_the_recovery_key_stands_above_the_key_that_was_stolen() -> None:
    # The thief is quicker, and claims to have been; the safe has the last word.
    state = after(made(new=SECOND, now=0.0))
    assert standing(state, SECOND.peer_id, 0.0) == "member"
    state = after(made(signer=SPARE, now=9.0), begun=state)
    assert standing(state, FIRST.peer_id, 0.0) == "member"
    assert standing(state, SECOND.peer_id, 0.0) == "stranger"
    assert standing(state, KEY, 0.0) == "revoked"


def test_a_key_in_two_hands_names_nobody_until_the_recovery_key_or_the_founders_do() -> None:
    state = after(made(), made(new=SECOND))
    assert [standing(state, k.peer_id, 0.0) for k in (FIRST, SECOND, OLD)] == [
        "stranger",
        "stranger",
        "revoked",
    ]
    decided, _ = admit(state, certificate(A, B, subject=FIRST.peer_id), 0.0)
    assert standing(decided, FIRST.peer_id, 0.0) == "member"
    recovered = after(made(signer=SPARE, new=THIRD), begun=state)
    assert members(recovered, 0.0) == tuple(sorted((*FOUNDERS, THIRD.peer_id)))
    # However many more are made, two say as much as all of them.
    assert len(after(made(new=THIRD), begun=state).successions[KEY]) == 2


def test_keys_may_follow_each_other_up_to_a_limit_that_a_renewal_lifts() -> None:
    state, last = BEGUN, OLD
    chain = [Identity(bytes([120 + i]) * 32) for i in range(MAX_CHAIN + 1)]
    for new in chain[:-1]:
        state = after(made(signer=last, new=new, old=last.peer_id), begun=state)
        last = new
    assert standing(state, last.peer_id, 0.0) == "member"
    assert predecessors(state, last.peer_id) == (*(k.peer_id for k in reversed(chain[:-2])), KEY)
    one_more = made(signer=last, new=chain[-1], old=last.peer_id)
    with pytest.raises(RefusedError, match="renew"):
        succeed(state, one_more)


def test_the_recovery_key_serves_every_key_that_followed() -> None:
    state = after(made(), made(signer=SPARE, new=SECOND, old=FIRST.peer_id))
    assert standing(state, SECOND.peer_id, 0.0) == "member"
    assert standing(state, FIRST.peer_id, 0.0) == "revoked"


def test_whom_the_founders_revoke_takes_the_keys_that_followed_along() -> None:
    state = after(made(), made(signer=FIRST, new=SECOND, old=FIRST.peer_id))
    gone, _, _ = merge(state, Records(revocations=(vote(A, KEY), vote(B, KEY))), 0.0)
    assert [standing(gone, k.peer_id, 0.0) for k in (OLD, FIRST, SECOND)] == [
        "revoked",
        "stranger",
        "stranger",
    ]
    assert gone.successions == {}
    with pytest.raises(RefusedError, match="no member"):
        succeed(gone, made())


def test_nobody_succeeds_a_founder_or_becomes_one() -> None:
    for one in (made(signer=A, old=A.peer_id), made(new=A)):
        with pytest.raises(RefusedError, match="founder"):
            succeed(BEGUN, one)
    with pytest.raises(RefusedError, match="of run"):
        succeed(BEGUN, issue_succession(OLD, FIRST, run=RunId("cd" * 32), old=KEY, now=0.0))
    with pytest.raises(ConfigError, match="itself"):
        made(new=OLD)


def test_a_stranger_shows_the_chain_and_only_its_last_key_opens_the_door() -> None:
    chain = (made(), made(signer=FIRST, new=SECOND, old=FIRST.peer_id))
    frame = encode_petition(Petition(certificate=CERTIFICATE, successions=chain))
    state, changed = petition(STATE, SECOND.peer_id, frame, 0.0)
    assert changed
    assert standing(state, SECOND.peer_id, 0.0) == "member"
    for other in (KEY, FIRST.peer_id):
        with pytest.raises(RefusedError, match="another key"):
            petition(STATE, other, frame, 0.0)
    broken = encode_petition(Petition(certificate=CERTIFICATE, successions=chain[1:]))
    with pytest.raises(RefusedError, match="follow each other"):
        petition(STATE, SECOND.peer_id, broken, 0.0)


def test_the_replaced_key_gets_nowhere_with_the_certificate_it_still_has() -> None:
    state = after(made())
    again, _ = petition(state, KEY, encode_petition(Petition(certificate=CERTIFICATE)), 0.0)
    assert standing(again, KEY, 0.0) == "revoked"
    assert is_replaced(again, KEY)


def test_a_longest_petition_fits_what_a_lobby_reads_and_any_bytes_are_read_or_refused() -> None:
    one = made()
    assert len(encode_succession(one)) <= MAX_SUCCESSION_BYTES
    assert decode_succession(encode_succession(one)) == one
    assert MAX_CERTIFICATE_BYTES + MAX_CHAIN * (MAX_SUCCESSION_BYTES + 3) + 8 <= MAX_PETITION_BYTES


@settings(deadline=None, max_examples=100)
@given(st.integers(0, 900), st.binary(max_size=4), st.integers(0, 4))
def test_a_damaged_petition_is_read_or_refused(at: int, new: bytes, cut: int) -> None:
    data = encode_petition(Petition(certificate=CERTIFICATE, successions=(made(),)))
    try:
        petition_read = decode_petition(data[:at] + new + data[at + cut :])
    except RemoteError:
        return
    assert encode_petition(petition_read) == data[:at] + new + data[at + cut :]


def test_successions_travel_and_come_back_from_the_disk() -> None:
    state = after(made(), made(signer=FIRST, new=SECOND, old=FIRST.peer_id))
    copy = STATE
    for batch in batches(state, max_bytes=600, max_records=2):
        copy, _, rejected = merge(copy, batch, 0.0)
        assert not rejected
    assert copy == state == from_bytes(to_bytes(state))
