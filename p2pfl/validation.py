"""Private validation: what a round's models are worth to this site, and which of them it leaves out.

When a round's inputs are in and its fit is done, the learner is asked for the loss of each neighbour's model,
and of the site's own as it stands, on rows of its own training data.  The answer is awaited until the round's
deadline, no longer; where the models lie is measured here in any case.  Both are evidence for
trust/reputation.py, which says whom to doubt.

A doubted model, one of a peer in quarantine or that broke the protocol in this round, and one of a newcomer
whose turn it is not, are not mixed.  A state is passed over; a share is refused, so that its mass goes back
to its sender.  Whom this site doubts gets no shares, either, because they would be lost: two liars of ten,
sent to for three rounds, held half of the mass.  A peer in quarantine is heard all the same.

Nobody is judged before this site has mass, because its own model then says nothing, and no loss is asked for
in opening rounds, before columns are standardised.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from p2pfl.errors import ConfigError
from p2pfl.events import Validate, Validated, Vector
from p2pfl.ids import PeerId, parse_peer_id
from p2pfl.plans import is_state
from p2pfl.state import State
from p2pfl.trust import reputation, screening
from p2pfl.trust.relations import Level
from p2pfl.trust.reputation import Measured

__all__ = [
    "REASONS",
    "cautioned",
    "is_on",
    "is_quarantined",
    "is_validating",
    "judge",
    "objection",
    "take_losses",
]

# Why a share is refused, on the wire and in the audit log.
REASONS = ("doubted", "turn")
# Purpose of the draw of rows (state.seed): no other draw has it.
_ROWS = 2
# Distances below this fraction of the own model's norm are equal, as are those below what a fit moves here:
# models that agree to three digits differ by rounding, and whoever is a round ahead differs by a fit.
_NEAR = 1e-3
# Float32 values converted at a time: 512 KiB of float64, which stays in the second-level cache.
_CHUNK = 64 * 1024

_Body = NDArray[np.uint8]


def is_on(state: State) -> bool:
    """Whether the agreement asks for reputation."""
    return state.spec.trust.reputation.kind != "none"


def is_quarantined(state: State, peer: PeerId) -> bool:
    """Whether this site wants to hear `peer`, and its reputation forbids to mix it."""
    return state.consortium.hears(peer) and not state.consortium.accepts(peer)


def objection(state: State, peer: PeerId) -> str:
    """Why nothing of `peer` is mixed now, one of REASONS; empty when nothing is in the way."""
    return "doubted" if is_quarantined(state, peer) else state.barred.get(peer, "")


def is_validating(state: State) -> bool:
    """Ask the learner for losses if that is still to be done; whether its answer is awaited."""
    assert state.deadline is not None
    if not is_on(state) or state.now >= state.deadline:
        return False
    if state.asked is None and state.schedule.stage(state.round) != "opening":
        _ask(state)
    return state.asked is not None and state.validated is None


def _ask(state: State) -> None:
    """Ask for the losses of the own model and of those that came, if any did."""
    assert state.deadline is not None
    if not (came := _came(state)):
        return
    state.asked = {peer: _bodies(shares) for peer, shares in came.items()}
    state.upto = state.links.reach()
    models = [state.mass.z(), *(state.mass.model_of(shares) for shares in came.values())]
    state.emit(
        Validate(
            round=state.round,
            models=tuple(models),
            seed=state.seed(_ROWS),
            deadline=state.deadline,
            statistics=state.pooled,
        )
    )


def take_losses(state: State, event: Validated) -> None:
    """Take in the losses, unless they are of another round or another number of models."""
    if state.asked is not None and state.validated is None and event.round == state.round:
        if event.losses.shape != (1 + len(state.asked),) or event.losses.dtype != np.float64:
            event = Validated(round=event.round, losses=np.full(1 + len(state.asked), np.nan))
        state.validated = event


def judge(state: State) -> None:
    """Turn what this round showed into evidence, and decide whose models are left out of its step."""
    if not is_on(state):
        return
    came, own = _came(state), state.mass.z()
    places = [_place(state.mass.model_of(shares), own) for shares in came.values()]
    if state.trained is not None and state.trained.parameters is not None and state.fit_from is not None:
        state.stride = _place(state.trained.parameters, state.fit_from)[0]
    floor = max(state.stride, _NEAR * screening.norm(own))
    asked = {} if state.asked is None or state.validated is None else state.asked
    losses = np.full(1, np.nan) if state.validated is None else state.validated.losses
    loss_of = dict(zip(asked, losses[1:].tolist(), strict=True))
    # A state that came after the question was asked has no loss, and is judged by its place; a share waits.
    known = [loss_of.get(p, math.nan) if _is_same(asked.get(p), s) else math.nan for p, s in came.items()]
    seen = Measured(
        peers=tuple(came),
        own_loss=float(losses[0]),
        losses=np.array(known, np.float64),
        distances=np.array([max(distance, floor) for distance, _ in places], np.float64),
        cosines=np.array([cosine for _, cosine in places], np.float64),
    )
    options, consortium = state.spec.trust.reputation, state.consortium
    state.reckon(reputation.observe(consortium.reputation, state.round, seen, options.tolerance))
    pinned = {peer for peer in came if consortium.own_level(peer) is Level.PINNED}
    doubted = {p for p in came if reputation.is_doubted(consortium.reputation, p, state.round)} - pinned
    fit = [peer for peer in came if consortium.accepts(peer) and peer not in doubted]
    newcomers = consortium.inviters(peer for peer in fit if peer not in pinned)
    in_turn = reputation.admitted(consortium.reputation, fit, newcomers, state.round)
    # Who broke the protocol in this round is in it already.
    barred = dict.fromkeys(set(fit) - in_turn, "turn") | dict.fromkeys(doubted, "doubted")
    state.barred = {**barred, **state.barred}


def cautioned(state: State, by: PeerId, about: str) -> None:
    """A neighbour says that it holds `about` in quarantine."""
    try:
        peer = parse_peer_id(about)
    except ConfigError:
        state.fault(by, "notice")
        return
    if peer in state.members() and peer != state.me:
        state.reckon(reputation.report(state.consortium.reputation, peer, by))


def _came(state: State) -> dict[PeerId, list[tuple[tuple[float, ...], _Body]]]:
    """The shares or the state that each peer has here for this round's step, by PeerId."""
    came: dict[PeerId, list[tuple[tuple[float, ...], _Body]]] = {}
    if state.mass.w == 0:
        return came
    for peer, one in state.neighbours.items():
        if not state.consortium.hears(peer):
            continue
        if not is_state(state):
            held = state.links.held(peer, state.upto)
            shares = [(a.header.weights, a.body) for a in held if a.body is not None]
        else:
            is_fresh = one.state is not None and one.state[0] >= state.round
            shares = [((1.0,), one.state[1])] if one.state is not None and is_fresh else []
        if shares:
            came[peer] = shares
    return came


def _bodies(shares: list[tuple[tuple[float, ...], _Body]]) -> tuple[_Body, ...]:
    return tuple(body for _, body in shares)


def _is_same(asked: tuple[_Body, ...] | None, shares: list[tuple[tuple[float, ...], _Body]]) -> bool:
    now = _bodies(shares)
    return (
        asked is not None and len(asked) == len(now) and all(a is b for a, b in zip(asked, now, strict=True))
    )


def _place(model: Vector, own: Vector) -> tuple[float, float]:
    """Distance and cosine of `model` from `own`, (d,) float32 each; a vector of zeros has cosine 0."""
    apart = across = there = here = 0.0
    for start in range(0, own.size, _CHUNK):
        a = model[start : start + _CHUNK].astype(np.float64)
        b = own[start : start + _CHUNK].astype(np.float64)
        c = a - b
        apart, across = apart + float(c @ c), across + float(a @ b)
        there, here = there + float(a @ a), here + float(b @ b)
    norms = math.sqrt(there) * math.sqrt(here)
    return math.sqrt(apart), across / norms if norms else 0.0
