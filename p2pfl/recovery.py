"""From the disk back to a peer: what the last Commit held becomes its state again."""

from __future__ import annotations

import numpy as np

from p2pfl import ledger as ledgers
from p2pfl.errors import P2PFLError
from p2pfl.events import Snapshot, Started
from p2pfl.gossip.links import Links
from p2pfl.ids import PeerId
from p2pfl.state import State
from p2pfl.trust.audit import head_of
from p2pfl.witness import statement_in

__all__ = ["inherit", "is_own", "restore"]


def is_own(state: State, snapshot: Snapshot) -> bool:
    """Whether `snapshot` is this key's, and not that of one it stands in the place of.  Raises StoreError."""
    return ledgers.decode(snapshot.ledger).me == state.me


def inherit(state: State, snapshot: Snapshot) -> None:
    """Take over what an earlier key of this site left on its disk, but for its mass and its edges.

    Those were handed over, or are the network's to write off.  Membership, levels, the audit log and what the
    learner keeps to itself are the site's, whatever its key.   Raises StoreError.
    """
    ledger = ledgers.decode(snapshot.ledger)
    state.log, state.witnessed = ledger.log, dict(ledger.witnessed)
    state.left = set(ledger.left)
    state.learner_state, state.learner_restored = ledger.learner_state, not ledger.learner_state
    state.consortium.restore(ledger.consortium, state.now)


def restore(state: State, event: Started, k: int) -> None:
    """Put the snapshot of `event` into `state`.   k: the statistics that travel with the model.

    Raises StoreError when the snapshot cannot be read, P2PFLError when it is of another model.
    """
    assert event.snapshot is not None
    ledger, x, model, pool = ledgers.read(event.snapshot)
    mass = state.mass_of(event.parameters if model is None else model, k)
    if len(x) != len(mass.model) or len(ledger.statistics) != k:
        raise P2PFLError(
            f"the saved model has {len(x)} parameters, the learner {len(event.parameters)}; "
            "was the learner changed in mid-run?"
        )
    if mass.is_tracked:
        mass.g, mass.term = np.asarray(event.snapshot.arrays["g"]), ledger.term
    mass.state = type(mass.state)(
        x=np.ascontiguousarray(x[None]), w=np.array([ledger.w]), s=np.array([ledger.statistics])
    )
    state.mass, state.pool = mass, pool
    state.links = Links(
        out=ledger.out, into=ledger.into, entered=ledger.entered, written_off=ledger.written_off
    )
    state.incarnation, state.rebirths = ledger.incarnation, ledger.rebirths
    state.begun, state.round, state.nominal = ledger.begun, ledger.round, ledger.nominal
    state.starters = ledger.starters
    state.pooled = None if ledger.pooled is None else np.array(ledger.pooled)
    state.head, state.statement, state.log = ledger.head, ledger.statement, ledger.log
    for name, frame in ledger.witnessed.items():
        state.witnessed[name] = frame
        state.neighbours[PeerId(name)].head = head_of(statement_in(frame))
    state.left, state.initial_digest = set(ledger.left), ledger.initial_digest
    state.learner_state, state.learner_restored = ledger.learner_state, not ledger.learner_state
    state.finished, state.held, state.leaving = ledger.finished, ledger.held, ledger.leaving
    state.is_restored = True
    state.consortium.restore(ledger.consortium, state.now)
