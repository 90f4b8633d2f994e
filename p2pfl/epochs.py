"""Epochs: a run whose terms founders have changed, and the round from which the change holds.

Theory of operation.  The agreement never changes: its hash is the run's name, and what a newcomer must hold.
Amendments (trust/amendments.py) stand above it, each from a round on, its fence; which are in force follows
from the membership and the round alone, so every member that knows the same and is in the same round works
under the same terms, after a restart, too.  The last one's number is the epoch, and goes into every header.

Members cross a fence at different moments.  A share of the epoch before is still taken, so an amendment loses
nothing; an older one is refused and its mass goes back.  One of an epoch that is not known here yet stays
with its sender until the roster has brought the amendment.  Who hears of one after its fence follows at its
next round.
"""

from __future__ import annotations

import json
from collections.abc import Iterable

from p2pfl.aggregation import mixer_of
from p2pfl.errors import ConfigError
from p2pfl.run import RunSpec, amend, decode
from p2pfl.schedule import schedule
from p2pfl.state import State
from p2pfl.trust import membership
from p2pfl.trust.amendments import Amendment

__all__ = ["begin", "is_known", "is_over", "terms"]


def terms(agreement: bytes, amendments: Iterable[Amendment]) -> RunSpec:
    """The agreement as changed by `amendments`, in their order.

    Raises ConfigError on a key that cannot be amended, a value it cannot have, or another way of mixing.
    """
    first = decode(json.loads(agreement), "the agreement")
    spec = first
    for amendment in amendments:
        spec = amend(spec, amendment.changes)
    if mixer_of(spec) != mixer_of(first):
        # What is under way as shares cannot arrive as states, and books never held to a cap do not fit one.
        raise ConfigError(
            f'trust.aggregator.kind = "{spec.trust.aggregator.kind}" mixes otherwise than this run, in which'
            " there is mass under way; an amendment may change a rule for another, not begin or end with one"
            " or with capped shares"
        )
    return spec


def begin(state: State) -> None:
    """Work under the terms of round `state.round` from now on."""
    in_force = membership.amended(state.consortium.membership, state.round)
    if in_force == state.in_force:
        return
    state.in_force = in_force
    try:
        state.spec = terms(state.agreement, in_force)
    except ConfigError as error:
        # Signed by a quorum whose release knows more than this one.
        state.fact("amendment not understood", "error", epoch=state.epoch, reason=str(error))
        return
    state.schedule = schedule(state.spec)
    changes = {key: value for amendment in in_force for key, value in amendment.changes.items()}
    state.fact("epoch began", epoch=state.epoch, round=state.round, changes=changes)


def is_over(state: State, epoch: int) -> bool:
    """Whether a share of `epoch` comes too late: it is older than the epoch before this one."""
    numbers = [0, *(amendment.epoch for amendment in state.in_force)]
    return epoch < numbers[-2:][0]


def is_known(state: State, epoch: int) -> bool:
    """Whether `epoch` has been heard of here, be it before its fence."""
    return epoch <= max((a.epoch for a in membership.passed(state.consortium.membership)), default=0)
