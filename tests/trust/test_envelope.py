import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from p2pfl.errors import LocalError
from p2pfl.events import Header, Kind
from p2pfl.ids import RunId
from p2pfl.trust.envelope import (
    DOMAIN,
    MAX_RETIRED,
    Known,
    greet,
    refusal,
    settle,
    signer_of,
    verify_header,
    verify_signed,
)
from p2pfl.trust.identity import Identity

A, B, C = (Identity(bytes([i]) * 32) for i in range(1, 4))
RUN = RunId("ab" * 32)
HEADER = Header(
    run=RUN,
    epoch=3,
    sender=A.peer_id,
    recipient=B.peer_id,
    incarnation=11,
    boot_session=21,
    kind=Kind.SHARE,
    round=5,
    edge_seq=7,
    issued_at=1000.0,
)
KNOWN = Known(incarnation=11, boot_session=21, last_seq=6)


def why(header: Header, known: Known = KNOWN) -> str | None:
    return refusal(header, me=B.peer_id, peer=A.peer_id, run=RUN, epoch=3, known=known)


def test_a_header_is_signed_under_its_domain() -> None:
    signature = A.sign(DOMAIN, b"header")
    assert verify_header(A.peer_id, b"header", signature)
    assert DOMAIN == b"p2pfl-node/1"
    assert not verify_header(A.peer_id, b"headeR", signature)
    assert not verify_header(B.peer_id, b"header", signature)


def test_the_signer_handed_to_the_network_signs_headers_and_nothing_else() -> None:
    sign = signer_of(A)
    assert sign(DOMAIN + b"header") == A.sign(DOMAIN, b"header")
    assert verify_signed(A.peer_id, DOMAIN + b"header", sign(DOMAIN + b"header"))
    assert not verify_signed(A.peer_id, b"header", A.sign(b"", b"header"))
    with pytest.raises(LocalError):
        sign(b"p2pfl-certificate/1 and so on")


def test_the_next_share_is_fresh() -> None:
    assert why(HEADER) is None


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"sender": C.peer_id}, "sender"),
        ({"recipient": C.peer_id}, "recipient"),
        ({"run": RunId("cd" * 32)}, "run"),
        ({"epoch": 4}, "epoch"),
        ({"epoch": 1}, "epoch"),
        ({"incarnation": 12}, "incarnation"),
        ({"kind": Kind.ACK, "boot_session": 22}, "boot-session"),
        ({"kind": Kind.STATE, "boot_session": 22}, "boot-session"),
        ({"edge_seq": 6}, "duplicate"),
        ({"edge_seq": 0}, "duplicate"),
    ],
)
def test_what_is_not_ours_or_not_new_is_refused_with_the_reason(
    change: dict[str, object], reason: str
) -> None:
    assert why(replace(HEADER, **change)) == reason


def test_the_epoch_before_still_passes_and_a_hello_passes_in_any() -> None:
    assert why(replace(HEADER, epoch=2)) is None
    assert why(replace(HEADER, kind=Kind.HELLO, epoch=0)) is None


def test_nothing_but_a_hello_passes_before_a_hello() -> None:
    assert why(HEADER, Known()) == "incarnation"
    assert why(replace(HEADER, kind=Kind.HELLO), Known()) is None


def test_a_recorded_share_is_refused_after_a_restart_of_either_side() -> None:
    known = settle(KNOWN, 7)
    assert why(HEADER, known) == "duplicate"
    # The receiver restarts from its Commit, the sender says HELLO from a new boot session.
    known = greet(known, replace(HEADER, kind=Kind.HELLO, boot_session=22))
    assert known == Known(incarnation=11, boot_session=22, last_seq=7)
    assert why(HEADER, known) == "duplicate"


def test_a_share_persisted_by_the_boot_session_before_may_be_sent_again() -> None:
    known = greet(KNOWN, replace(HEADER, kind=Kind.HELLO, boot_session=22))
    assert why(HEADER, known) is None
    assert why(replace(HEADER, kind=Kind.ACK), known) == "boot-session"


def test_a_lost_disk_starts_again_and_its_old_incarnation_is_over_for_good() -> None:
    known = greet(KNOWN, replace(HEADER, kind=Kind.HELLO, incarnation=12, boot_session=23))
    assert known == Known(incarnation=12, boot_session=23, last_seq=0, retired=(11,))
    assert why(HEADER, known) == "retired"
    assert why(replace(HEADER, kind=Kind.HELLO), known) == "retired"
    assert why(replace(HEADER, incarnation=12, boot_session=23, edge_seq=1), known) is None


@given(st.lists(st.integers(0, 5), max_size=200))
def test_what_is_remembered_of_a_peer_is_bounded(incarnations: list[int]) -> None:
    known = Known()
    for extra, base in enumerate(incarnations):
        hello = replace(HEADER, kind=Kind.HELLO, incarnation=base + 10 * extra)
        known = greet(known, hello)
        assert known.incarnation == hello.incarnation
    assert len(known.retired) <= MAX_RETIRED


@given(st.lists(st.integers(1, 30), max_size=60))
def test_no_number_on_an_edge_is_fresh_twice(arrivals: list[int]) -> None:
    known, taken = KNOWN, []
    for seq in arrivals:
        if why(replace(HEADER, edge_seq=seq), known) is None:
            taken.append(seq)
            known = settle(known, seq)
    assert taken == sorted(set(taken))


def test_a_clock_that_is_off_refuses_nothing() -> None:
    assert why(replace(HEADER, issued_at=1e9)) is None
