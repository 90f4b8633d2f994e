import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from p2pfl.errors import ConfigError
from p2pfl.ids import RunId
from p2pfl.trust.certificates import countersign, issue_certificate
from p2pfl.trust.identity import Identity
from p2pfl.trust.tickets import MAX_ADDRESSES, parse_ticket, write_ticket

RUN = RunId("ab" * 32)
A, B, GUEST = (Identity(bytes([i]) * 32) for i in (1, 2, 99))
ADDRESSES = ("/ip4/10.0.0.1/tcp/4911/p2p/" + A.peer_id, "/dns4/st-marys.example/tcp/4911")
CERTIFICATE = issue_certificate(A, run=RUN, subject=GUEST.peer_id, now=0.0, nonce=bytes(16), name="st-marys")
TEXT = write_ticket(CERTIFICATE, ADDRESSES)


def test_a_ticket_is_a_certificate_and_where_to_present_it() -> None:
    ticket = parse_ticket(TEXT)
    assert TEXT.startswith("p2pfl1")
    assert ticket.certificate == CERTIFICATE
    assert ticket.addresses == ADDRESSES
    assert ticket.run == RUN


def test_a_ticket_survives_a_mail_program() -> None:
    wrapped = "\n  ".join(TEXT[i : i + 60] for i in range(0, len(TEXT), 60))
    assert parse_ticket(f"  {wrapped}\r\n") == parse_ticket(TEXT)


def test_a_founder_countersigns_a_ticket_and_writes_it_again() -> None:
    both = countersign(parse_ticket(TEXT).certificate, B)
    assert set(parse_ticket(write_ticket(both)).certificate.signatures) == {A.peer_id, B.peer_id}


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "does not begin"),
        ("hello", "does not begin"),
        ("p2pfl2" + TEXT[6:], "another release"),
        (TEXT[:-5], "damaged"),
        (TEXT[:40] + ("A" if TEXT[40] != "A" else "B") + TEXT[41:], "checksum"),
        (TEXT + "*", "damaged"),
        ("p2pfl1", "damaged"),
        ("p2pfl1" + "A" * 20_000, "characters"),
    ],
)
def test_what_is_wrong_with_a_ticket_is_said(text: str, reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        parse_ticket(text)


def test_a_ticket_holds_a_few_plausible_addresses() -> None:
    for addresses in (["/ip4/1.2.3.4/tcp/1"] * (MAX_ADDRESSES + 1), ["/" + "x" * 128], ["10.0.0.1:4911"]):
        with pytest.raises(ConfigError, match="cannot be written"):
            write_ticket(CERTIFICATE, addresses)


@settings(deadline=None, max_examples=100)
@given(st.one_of(st.text(max_size=100), st.text(alphabet="ABCabc019-_", max_size=100).map("p2pfl1".__add__)))
def test_any_text_is_a_ticket_or_a_config_error(text: str) -> None:
    with pytest.raises(ConfigError):
        parse_ticket(text)


@settings(deadline=None, max_examples=100)
@given(st.integers(0, len(TEXT)), st.text(max_size=3), st.integers(0, 3))
def test_a_changed_ticket_is_refused(at: int, new: str, cut: int) -> None:
    changed = TEXT[:at] + new + TEXT[at + cut :]
    try:
        assert parse_ticket(changed) == parse_ticket(TEXT)
    except ConfigError:
        return
