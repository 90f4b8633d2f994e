import hashlib
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from p2pfl import encoding
from p2pfl.errors import LocalError, RemoteError
from p2pfl.events import Header, Kind, Message, Statement
from p2pfl.ids import PeerId, RunId
from p2pfl.net.bodies import decode_structured
from p2pfl.net.messages import decode_header, open_frame, seal, split_frame
from p2pfl.trust import audit
from p2pfl.trust.audit import (
    MAX_COMMITMENTS,
    Head,
    Signed,
    commit,
    decode_statement,
    encode_evidence,
    encode_statement,
    head_of,
    link,
    open_commitment,
    read,
    verify_evidence,
)
from p2pfl.trust.envelope import DOMAIN, signer_of, verify_signed
from p2pfl.trust.identity import Identity

RUN = RunId("ab" * 32)


def check_link(known: Head | None, content: bytes, **whose: Any) -> str:
    return audit.check_link(known, *read(content, **whose))


A, B, C = (Identity(bytes([i]) * 32) for i in range(1, 4))
SALT, OTHER_SALT = b"s" * 32, b"t" * 16
SHARE = {"edge_seq": 4, "digest": b"d" * 32, "weights": (0.5,)}


def stated(
    number: int = 0,
    prev: bytes = b"",
    *,
    who: Identity = A,
    boot: int = 21,
    incarnation: int = 11,
    w: float = 1.0,
) -> bytes:
    return link(
        number=number,
        prev=prev,
        run=RUN,
        sender=who.peer_id,
        incarnation=incarnation,
        boot_session=boot,
        round=number,
        commitments=[
            commit(SALT, B.peer_id, 4, b"d" * 32, (0.5,)),
            commit(OTHER_SALT, C.peer_id, 9, b"e" * 32, ()),
        ],
        weight_before=w,
        weight_after=0.25,
        model_digest=b"m" * 32,
    )


# A wire of the test's own: what matters is that the header names its body's digest.
def parse(header: bytes) -> tuple[PeerId, int, int, bytes]:
    found = encoding.unpack(header, "header", keys=range(1, 5), limit=4096)
    return encoding.peer(found[1], "sender"), found[2], found[3], found[4]


def signed(content: bytes, *, who: Identity = A, header_boot: int | None = None, salt: bytes = b"") -> Signed:
    statement = decode_statement(content)
    body = salt.ljust(32, b"\0") + content
    header = encoding.pack(
        {
            1: who.public_key,
            2: statement.incarnation,
            3: statement.boot_session if header_boot is None else header_boot,
            4: hashlib.sha256(body).digest(),
        }
    )
    return Signed(header=header, signature=who.sign(DOMAIN, header), body=body)


def judged(first: Signed, second: Signed) -> PeerId:
    return verify_evidence(encode_evidence(first, second), parse=parse, content_of=lambda body: body[32:])


def test_a_statement_comes_back_with_its_commitments_sorted() -> None:
    content = stated(3, b"p" * 32)
    statement = decode_statement(content)
    assert encode_statement(statement) == content
    assert statement.commitments == tuple(sorted(statement.commitments))
    assert (statement.number, statement.sender, statement.weight_after) == (3, A.peer_id, 0.25)


def test_a_recipient_opens_its_own_edge_and_nobody_opens_another_story() -> None:
    statement = decode_statement(stated())
    assert open_commitment(statement, salt=SALT, recipient=B.peer_id, **SHARE)  # type: ignore[arg-type]
    for change in (
        {"salt": b"u" * 32},
        {"salt": b""},
        {"recipient": C.peer_id},
        {"recipient": PeerId("nobody")},
        {"edge_seq": 5},
        {"digest": b"x" * 32},
        {"weights": (0.6,)},
    ):
        arguments = {"salt": SALT, "recipient": B.peer_id, **SHARE, **change}
        assert not open_commitment(statement, **arguments)  # type: ignore[arg-type]


def test_a_salt_that_could_be_guessed_is_refused() -> None:
    with pytest.raises(LocalError, match="salt"):
        commit(b"short", B.peer_id, 1, b"d" * 32, ())


def test_a_statement_that_would_be_refused_is_not_made() -> None:
    with pytest.raises(LocalError):
        stated(w=float("nan"))
    with pytest.raises(LocalError):
        stated(prev=b"short")
    with pytest.raises(LocalError):
        stated(boot=2**64)


def test_the_largest_statement_fits_and_one_commitment_more_does_not() -> None:
    arguments = {
        "number": 2**53 - 1, "prev": b"p" * 32, "run": RUN, "sender": A.peer_id, "incarnation": 2**64 - 1,
        "boot_session": 2**64 - 1, "round": 2**53 - 1, "weight_before": 1.0, "weight_after": 1.0,
    }  # fmt: skip
    hashes = [hashlib.sha256(bytes([i % 256, i // 256])).digest() for i in range(MAX_COMMITMENTS + 1)]
    link(commitments=hashes[:-1], **arguments)  # type: ignore[arg-type]
    with pytest.raises(LocalError, match="commitments"):
        link(commitments=hashes, **arguments)  # type: ignore[arg-type]


def test_a_chain_goes_on_and_each_break_has_its_name() -> None:
    first = stated()
    head = head_of(first)
    assert head == Head(incarnation=11, boot_session=21, number=0, hash=hashlib.sha256(first).digest())
    assert check_link(None, first) == "new-chain"
    assert check_link(head, first) == "repeat"
    second = stated(1, head.hash)
    assert check_link(head, second) == "next"
    assert check_link(head, stated(1, head.hash, boot=22)) == "next"
    assert check_link(head, stated(1, b"x" * 32)) == "fork"
    assert check_link(head, stated(2, b"x" * 32)) == "gap"
    assert check_link(head_of(second), first) == "old"
    assert check_link(head, stated(w=2.0)) == "equivocation"
    assert check_link(head, stated(w=2.0, boot=22)) == "fork"
    assert check_link(head, stated(w=2.0, incarnation=12)) == "new-chain"


def test_a_statement_of_somebody_else_is_refused() -> None:
    assert check_link(None, stated(), sender=A.peer_id, run=RUN) == "new-chain"
    for other in ({"sender": B.peer_id}, {"run": RunId("cd" * 32)}):
        with pytest.raises(RemoteError, match="another peer or run"):
            check_link(None, stated(), **other)


def test_two_stories_in_one_boot_session_are_a_proof_that_anybody_verifies() -> None:
    one, two = signed(stated(), salt=SALT), signed(stated(w=2.0))
    assert judged(one, two) == A.peer_id
    assert encode_evidence(one, two) == encode_evidence(two, one)


def test_frames_of_the_real_protocol_are_evidence() -> None:
    def framed(content: bytes, recipient: Identity) -> Signed:
        header = Header(
            run=RUN, sender=A.peer_id, recipient=recipient.peer_id, incarnation=11, boot_session=21,
            kind=Kind.STATEMENT, round=0, issued_at=1.0,
        )  # fmt: skip
        frame = seal(Message(header=header, body=Statement(content=content, salt=SALT)), signer_of(A))
        assert open_frame(frame, verify_signed)[0].sender == A.peer_id
        head, signature, body = split_frame(frame)
        return Signed(header=head, signature=signature, body=body)

    def parse_header(data: bytes) -> tuple[PeerId, int, int, bytes]:
        header = decode_header(data)
        return header.sender, header.incarnation, header.boot_session, header.digest

    def content_of(body: bytes) -> bytes:
        statement = decode_structured(Kind.STATEMENT, body)
        assert isinstance(statement, Statement)
        return statement.content

    evidence = encode_evidence(framed(stated(), B), framed(stated(w=2.0), C))
    assert verify_evidence(evidence, parse=parse_header, content_of=content_of) == A.peer_id
    evidence = encode_evidence(framed(stated(), B), framed(stated(), C))
    with pytest.raises(RemoteError, match="the same"):
        verify_evidence(evidence, parse=parse_header, content_of=content_of)


@pytest.mark.parametrize(
    ("second", "reason"),
    [
        (signed(stated(), salt=OTHER_SALT), "the same"),
        (signed(stated(w=2.0, boot=22)), "boot sessions"),
        (signed(stated(w=2.0, incarnation=12)), "boot sessions"),
        (signed(stated(1, w=2.0)), "different numbers"),
        (signed(stated(w=2.0, who=B), who=B), "different peers"),
        (signed(stated(w=2.0), who=B), "name different"),
        (signed(stated(w=2.0, boot=22), header_boot=21), "name different"),
        (replace(signed(stated(w=2.0)), signature=bytes(64)), "signature"),
        (replace(signed(stated(w=2.0)), body=bytes(32) + stated(w=3.0)), "body"),
    ],
)
def test_anything_less_is_no_proof(second: Signed, reason: str) -> None:
    with pytest.raises(RemoteError, match=reason):
        judged(signed(stated(), salt=SALT), second)


def test_another_peer_cannot_be_framed_with_its_old_statement() -> None:
    mine = signed(stated())
    forged = replace(signed(stated(w=2.0), who=B), signature=mine.signature)
    with pytest.raises(RemoteError):
        judged(mine, forged)


@dataclass
class Disk:
    head: Head | None = None
    persisted: bytes = b""
    incarnation: int = 11


@dataclass
class Site:
    """An honest node on an unreliable machine: commits, then sends; restarts under a new boot session."""

    disk: Disk = field(default_factory=Disk)
    boot: int = 1000
    sent: list[bytes] = field(default_factory=list)
    backups: list[Disk] = field(default_factory=list)

    def live(self, w: float, *, dies_before: str = "") -> None:
        head = self.disk.head
        content = stated(
            head.number + 1 if head else 0,
            head.hash if head else b"",
            boot=self.boot,
            incarnation=self.disk.incarnation,
            w=w,
        )
        if dies_before == "commit":
            return self.restart()
        self.disk = replace(self.disk, head=head_of(content), persisted=content)
        if dies_before != "send":
            self.sent.append(content)
            return None
        return self.restart()

    def restart(self) -> None:
        self.boot += 1
        if self.disk.persisted:
            self.sent.append(self.disk.persisted)


actions = st.lists(
    st.tuples(
        st.sampled_from(["round", "die before commit", "die before send", "resend", "back up", "restore"]),
        st.floats(0, 4, allow_nan=False),
    ),
    max_size=14,
)


@settings(max_examples=60, deadline=None)
@given(actions)
def test_an_honest_crash_or_restored_backup_never_yields_a_proof(script: list[tuple[str, float]]) -> None:
    site = Site()
    for action, w in script:
        match action:
            case "round":
                site.live(w)
            case "die before commit":
                site.live(w, dies_before="commit")
            case "die before send":
                site.live(w, dies_before="send")
            case "resend":
                site.sent.extend(site.sent[-1:])
            case "back up":
                site.backups.append(site.disk)
            case "restore" if site.backups:
                site.disk = site.backups[-1]
                site.restart()
    heads: dict[tuple[int, int], bytes] = {}
    for content in site.sent:
        head = head_of(content)
        assert heads.setdefault((head.boot_session, head.number), content) == content
    for first, second in zip(site.sent, site.sent[1:], strict=False):
        assert check_link(head_of(first), second) != "equivocation"
    if site.sent:
        pairs = [(signed(site.sent[0]), signed(content)) for content in site.sent[-3:]]
        for one, two in pairs:
            with pytest.raises(RemoteError, match="no proof"):
                judged(one, two)


@pytest.mark.slow
@settings(max_examples=60, deadline=None)
@given(actions)
def test_a_neighbour_that_hears_everything_follows_a_chain_without_restores(
    script: list[tuple[str, float]],
) -> None:
    site, head = Site(), None
    for action, w in script:
        if action in ("round", "die before send"):
            site.live(w, dies_before="send" if action == "die before send" else "")
    for content in site.sent:
        assert check_link(head, content) in ("new-chain", "next", "repeat")
        head = head_of(content)


@settings(deadline=None, max_examples=150)
@given(st.binary(max_size=300), st.integers(0, 400), st.integers(0, 3))
def test_any_bytes_give_a_statement_or_a_remote_error(new: bytes, at: int, cut: int) -> None:
    content = stated()
    for data in (new, content[:at] + new[:3] + content[at + cut :]):
        try:
            assert encode_statement(decode_statement(data)) == data
        except RemoteError:
            continue


@settings(deadline=None, max_examples=100)
@given(st.binary(max_size=100), st.integers(0, 900), st.integers(0, 3))
def test_any_bytes_are_evidence_or_a_remote_error(new: bytes, at: int, cut: int) -> None:
    data = encode_evidence(signed(stated()), signed(stated(w=2.0)))
    for changed in (new, data[:at] + new[:3] + data[at + cut :]):
        try:
            found = verify_evidence(changed, parse=parse, content_of=lambda body: body[32:])
        except RemoteError:
            continue
        assert found == A.peer_id
