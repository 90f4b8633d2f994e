"""What a founder signs: its word on an invitation, a renewal, or an amendment, added to what others signed.

Founders act at different times, each at its own node.  Where a record that says the same is open already, a
founder signs that one; a second record beside it would split the votes.
"""

from __future__ import annotations

from collections.abc import Mapping

from p2pfl.errors import ConfigError, RefusedError
from p2pfl.ids import PeerId
from p2pfl.trust.amendments import Amendment, countersign_amendment, issue_amendment
from p2pfl.trust.certificates import Certificate, countersign, issue_certificate, order_of
from p2pfl.trust.identity import Identity
from p2pfl.trust.membership import Membership, certificate_of, is_replaced, is_revoked, passed

__all__ = ["check_founder", "endorse", "renew"]


def check_founder(state: Membership, founder: PeerId) -> None:
    """Raises RefusedError unless `founder` is one, and not revoked."""
    if founder not in state.founders or is_revoked(state, founder):
        raise RefusedError(f"{founder} is no founder of this run; ask one of them")


def renew(
    state: Membership, founder: Identity, subject: PeerId, *, now: float, lasts_s: float, nonce: bytes
) -> Certificate:
    """A certificate that prolongs `subject`'s membership to `now` + `lasts_s`, with `founder`'s vote.

    One that others have begun to sign is countersigned as it is.   nonce: 16 random bytes, for a new one.
    Raises RefusedError when `founder` is none, and when `subject` needs no certificate or can have none.
    """
    check_founder(state, founder.peer_id)
    if subject in state.founders:
        raise RefusedError(f"{subject} is a founder, whose membership does not expire")
    held = certificate_of(state, subject)
    if held is None or is_revoked(state, subject) or is_replaced(state, subject):
        raise RefusedError(f"{subject} is no member of this run; `p2pfl trust invite` asks one in")
    open_ = [c for c in state.pending.values() if c.subject == subject and now < c.expires_at]
    if open_:
        return countersign(max(open_, key=order_of), founder)
    return issue_certificate(
        founder,
        run=state.run,
        subject=subject,
        name=held.name,
        labels=held.labels,
        now=now,
        nonce=nonce,
        recovery=held.recovery,
        use_within_s=lasts_s,
        lasts_s=lasts_s,
    )


def endorse(
    state: Membership, founder: Identity, *, changes: Mapping[str, str], at_round: int, now: float
) -> Amendment:
    """An amendment of `changes` with `founder`'s vote: that which others have begun to sign, or a new one.

    at_round: the fence of a new one; that of one that is open stays as it was signed.   A founder signs one
    amendment an epoch, so of two that contradict each other at most one has a quorum.
    Raises RefusedError when `founder` is none, ConfigError when `at_round` is not after every fence so far.
    """
    check_founder(state, founder.peer_id)
    mine = {a.epoch: a for a in state.amendments.values() if founder.peer_id in a.signatures}
    done = {a.epoch: a for a in passed(state)}
    for amendment in sorted(state.amendments.values(), key=lambda a: (a.epoch, a.content)):
        is_open = amendment.epoch not in done and mine.get(amendment.epoch, amendment) == amendment
        if is_open and amendment.changes == changes:
            return countersign_amendment(amendment, founder)
    known = [*done.values(), *mine.values()]
    latest = max((a.at_round for a in known), default=-1)
    if at_round <= latest:
        raise ConfigError(
            f"round {at_round} is not after round {latest} of an earlier amendment; name a later one"
        )
    epoch = 1 + max((a.epoch for a in known), default=0)
    return issue_amendment(founder, run=state.run, epoch=epoch, at_round=at_round, changes=changes, now=now)
