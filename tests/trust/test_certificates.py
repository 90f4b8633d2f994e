from contextlib import suppress
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from p2pfl.errors import ConfigError, RemoteError
from p2pfl.ids import RunId
from p2pfl.trust.certificates import (
    MAX_CERTIFICATE_BYTES,
    MAX_REVOCATION_BYTES,
    MAX_SIGNATURES,
    Certificate,
    countersign,
    decode_certificate,
    decode_revocation,
    encode_certificate,
    encode_revocation,
    has_signed,
    has_voted,
    issue_certificate,
    issue_revocation,
    join_certificates,
    join_revocations,
)
from p2pfl.trust.identity import Identity

RUN = RunId("ab" * 32)
DAY = 86_400
FOUNDERS = [Identity(bytes([i]) * 32) for i in range(1, 21)]
A, B = FOUNDERS[:2]
GUEST = Identity(bytes([99]) * 32)


def invite(founder: Identity = A, **more: object) -> Certificate:
    arguments: dict[str, object] = {"run": RUN, "subject": GUEST.peer_id, "now": 1000.5, "nonce": bytes(16)}
    return issue_certificate(founder, **(arguments | more))  # type: ignore[arg-type]


def test_a_certificate_lasts_ninety_days_and_is_to_be_used_within_seven() -> None:
    one = invite(name="st-marys", labels={"role": "hub", "group": "north"})
    assert (one.issued_at, one.use_by, one.expires_at) == (1000, 1000 + 7 * DAY, 1000 + 90 * DAY)
    assert has_signed(one, A.peer_id)
    assert not has_signed(one, B.peer_id)
    assert decode_certificate(encode_certificate(one)) == one


def test_countersigning_adds_a_signature_over_the_same_content() -> None:
    one = countersign(invite(), B)
    assert has_signed(one, A.peer_id)
    assert has_signed(one, B.peer_id)
    assert one.content == invite().content


@pytest.mark.parametrize(
    "change",
    [
        {"run": RunId("cd" * 32)},
        {"subject": B.peer_id},
        {"name": "other"},
        {"labels": {"role": "hub"}},
        {"expires_at": 10**9},
        {"use_by": 1001},
        {"nonce": bytes([1]) * 16},
    ],
)
def test_no_word_of_a_certificate_can_be_changed(change: dict[str, object]) -> None:
    assert not has_signed(replace(invite(), **change), A.peer_id)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "more",
    [
        {"name": "x" * 65},
        {"name": "two\nlines"},
        {"labels": {"k": "v" * 33}},
        {"labels": {str(i): "v" for i in range(9)}},
        {"nonce": b"short"},
        {"use_within_s": 100 * DAY},
        {"use_within_s": -1.0},
        {"name": "\udcff"},
        {"now": -10.0},
    ],
)
def test_a_certificate_that_would_be_refused_is_not_issued(more: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match="cannot be issued"):
        invite(A, **more)


def test_the_largest_records_fit_their_limits_and_one_signature_more_is_left_out() -> None:
    one = invite(name="n" * 64, labels={f"{i}" * 14: f"{i}" * 32 for i in range(5)})
    vote = issue_revocation(A, run=RUN, subject=GUEST.peer_id, reason="r" * 64, now=2.0**52)
    for founder in FOUNDERS:
        one = countersign(one, founder)
        vote = join_revocations(
            vote, issue_revocation(founder, run=RUN, subject=GUEST.peer_id, reason="r" * 64, now=2.0**52)
        )
    assert len(one.signatures) == len(vote.votes) == MAX_SIGNATURES
    assert len(encode_certificate(one)) <= MAX_CERTIFICATE_BYTES
    assert len(encode_revocation(vote)) <= MAX_REVOCATION_BYTES
    assert decode_certificate(encode_certificate(one)) == one
    assert decode_revocation(encode_revocation(vote)) == vote


def test_of_two_certificates_the_one_that_expires_last_counts() -> None:
    old, new = invite(), invite(now=2000.0)
    assert join_certificates(old, new) == join_certificates(new, old) == new
    twin = invite(nonce=bytes([1]) * 16)
    assert join_certificates(old, twin) == join_certificates(twin, old)
    signed = join_certificates(countersign(old, B), old)
    assert set(signed.signatures) == {A.peer_id, B.peer_id}


def test_votes_of_founders_who_know_nothing_of_each_other_add_up() -> None:
    one = issue_revocation(A, run=RUN, subject=GUEST.peer_id, reason="key stolen", now=5.0)
    two = issue_revocation(B, run=RUN, subject=GUEST.peer_id, reason="left the consortium", now=9.0)
    both = join_revocations(one, two)
    assert both == join_revocations(two, one)
    assert has_voted(both, A.peer_id)
    assert has_voted(both, B.peer_id)
    assert decode_revocation(encode_revocation(both)) == both


def test_no_word_of_a_vote_can_be_changed() -> None:
    one = issue_revocation(A, run=RUN, subject=GUEST.peer_id, reason="key stolen", now=5.0)
    vote = one.votes[A.peer_id]
    for false in (
        replace(one, subject=B.peer_id),
        replace(one, run=RunId("cd" * 32)),
        replace(one, votes={A.peer_id: replace(vote, reason="other")}),
        replace(one, votes={A.peer_id: replace(vote, issued_at=6)}),
        replace(one, votes={B.peer_id: vote}),
    ):
        assert not any(has_voted(false, name) for name in false.votes)


def test_a_reason_too_long_is_refused_before_it_is_signed_away() -> None:
    with pytest.raises(ConfigError, match="reason"):
        issue_revocation(A, run=RUN, subject=GUEST.peer_id, reason="x" * 65, now=5.0)


SAMPLES = [
    encode_certificate(invite(name="st-marys", labels={"role": "hub"})),
    encode_revocation(issue_revocation(A, run=RUN, subject=GUEST.peer_id, reason="why", now=5.0)),
]


def decoded(data: bytes) -> None:
    with suppress(RemoteError):
        assert encode_certificate(decode_certificate(data)) == data
    with suppress(RemoteError):
        assert encode_revocation(decode_revocation(data)) == data


@settings(deadline=None, max_examples=200)
@given(st.binary(max_size=300))
def test_any_bytes_give_a_record_or_a_remote_error(data: bytes) -> None:
    decoded(data)


@settings(deadline=None, max_examples=200)
@given(st.sampled_from(SAMPLES), st.integers(0, 400), st.binary(max_size=4), st.integers(0, 3))
def test_a_changed_record_is_canonical_or_refused(data: bytes, at: int, new: bytes, cut: int) -> None:
    decoded(data[:at] + new + data[at + cut :])
