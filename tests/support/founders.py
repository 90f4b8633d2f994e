"""Records that founders and members sign, for tests of the membership."""

from __future__ import annotations

from p2pfl.ids import PeerId, RunId
from p2pfl.trust.amendments import Amendment, issue_amendment
from p2pfl.trust.certificates import (
    Certificate,
    countersign,
    encode_revocation,
    issue_certificate,
    issue_revocation,
)
from p2pfl.trust.identity import Identity
from p2pfl.trust.membership import genesis

RUN = RunId("ab" * 32)
DAY = 86_400
A, B, C = (Identity(bytes([i]) * 32) for i in range(1, 4))
FOUNDERS = (A.peer_id, B.peer_id, C.peer_id)
GUESTS = tuple(Identity(bytes([100 + i]) * 32).peer_id for i in range(8))
GUEST = GUESTS[0]
STATE = genesis(RUN, FOUNDERS, 2)


# A member whose key is replaced, and the key that may do so when it is lost.
OLD, SPARE = Identity(bytes([90]) * 32), Identity(bytes([91]) * 32)
NEW = tuple(Identity(bytes([92 + i]) * 32) for i in range(3))
KEY = OLD.peer_id


def certificate(
    *signers: Identity,
    subject: PeerId = GUEST,
    now: float = 0.0,
    run: RunId = RUN,
    recovery: PeerId | None = None,
) -> Certificate:
    """A certificate under the signatures of `signers`."""
    one = issue_certificate(signers[0], run=run, subject=subject, now=now, nonce=bytes(16), recovery=recovery)
    for signer in signers[1:]:
        one = countersign(one, signer)
    return one


def amendment(signer: Identity, *, epoch: int = 1, value: str = "1", at_round: int = 10) -> Amendment:
    """An amendment with one signature."""
    return issue_amendment(
        signer, run=RUN, epoch=epoch, at_round=at_round, changes={"run.deadline_s": value}, now=0.0
    )


def vote(signer: Identity, subject: PeerId = GUEST, now: float = 0.0, run: RunId = RUN) -> bytes:
    """One vote to revoke `subject`."""
    return encode_revocation(issue_revocation(signer, run=run, subject=subject, reason="why", now=now))
