"""What others signed, kept as it travelled: heads of their chains, and proofs that outlive the messages.

It joins the wire (net/), which knows frames, with the statements in them (trust/audit.py).  A node keeps the
last STATEMENT frame of each neighbour.  It is that neighbour's own word on where its chain and its audit log
stood, and any third party can check it: against the neighbour's log, or against another frame.
"""

from __future__ import annotations

from collections.abc import Iterable

from p2pfl.errors import RemoteError
from p2pfl.events import Kind, Statement
from p2pfl.ids import PeerId
from p2pfl.net.bodies import decode_structured
from p2pfl.net.messages import decode_header, split_frame
from p2pfl.trust import audit
from p2pfl.trust.audit import RoundStatement, Signed

__all__ = ["signed_in", "statement_in", "verified", "prove", "check", "equivocations"]


def signed_in(frame: bytes) -> Signed:
    """The three parts of a frame, none of them checked.  Raises RemoteError."""
    header, signature, body = split_frame(frame)
    return Signed(header=header, signature=signature, body=body)


def statement_in(frame: bytes) -> bytes:
    """The content of the statement in a frame that was verified when it came.  Raises RemoteError."""
    return _content_of(split_frame(frame)[2])


def verified(signed: Signed) -> RoundStatement:
    """The statement in `signed`, its signature and digest checked.  Raises RemoteError."""
    return audit.decode_statement(audit.verified(signed, parse=_parse, content_of=_content_of))


def prove(first: bytes, second: bytes) -> bytes:
    """Two frames of one peer as a proof that it equivocated.  Raises RemoteError when they are none."""
    evidence = audit.encode_evidence(signed_in(first), signed_in(second))
    check(evidence)
    return evidence


def check(evidence: bytes) -> PeerId:
    """Who is proved to have equivocated; nobody is asked.  Raises RemoteError when it is no proof."""
    return audit.verify_evidence(evidence, parse=_parse, content_of=_content_of)


def equivocations(messages: Iterable[Signed]) -> dict[PeerId, bytes]:
    """A proof for each peer that contradicts itself among `messages`; bad ones are ignored."""
    seen: dict[tuple[object, ...], tuple[Signed, RoundStatement]] = {}
    proofs: dict[PeerId, bytes] = {}
    for signed in messages:
        try:
            said = verified(signed)
        except RemoteError:
            continue
        place = said.sender, said.run, said.incarnation, said.boot_session, said.number
        other, before = seen.setdefault(place, (signed, said))
        if before != said:
            proofs.setdefault(said.sender, audit.encode_evidence(other, signed))
    return proofs


def _parse(header: bytes) -> tuple[PeerId, int, int, bytes]:
    found = decode_header(header)
    if found.kind is not Kind.STATEMENT:
        raise RemoteError(f"no proof: a {found.kind.name} is no round statement", found.sender)
    return found.sender, found.incarnation, found.boot_session, found.digest


def _content_of(body: bytes) -> bytes:
    statement = decode_structured(Kind.STATEMENT, body)
    assert isinstance(statement, Statement)
    return statement.content
