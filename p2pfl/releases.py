"""What a round tells of this site's rows: noise before anything leaves, and the account of what left.

Theory of operation.  The agreement's `[trust] privacy` says who adds the noise.  With `gaussian` it is this
peer: how far a fit moved the model is clipped and noised as one vector, so that what is protected is a
site's whole contribution to a round.  With `dp-sgd` it is the learner, row by row; it has said at the start
what one fit releases (`Started.release`).  A fit is paid for when it is asked for: the account is in every
Commit, and a Commit precedes every Send (in an exchange of knowledge, one of its own).  So it never holds
less than what left, whatever crashes; a fit that fails, or is lost in a crash after a Commit, was paid for
nothing.

An account is of a data set, not of a run: the driver brings back what earlier runs on this disk released.
When the next fit would exceed `max_epsilon` this site fits no more, in this run or any other on these rows.
It goes on mixing what others send, since that tells nothing new of its rows, and ends with their model.
"""

from __future__ import annotations

import hashlib
from dataclasses import replace

import numpy as np

from p2pfl.errors import AggregationError
from p2pfl.events import Started, Trained
from p2pfl.release import Release
from p2pfl.state import State
from p2pfl.trust import privacy
from p2pfl.trust.privacy import Account

__all__ = ["afford", "open_account", "protected", "seed"]


def open_account(state: State, event: Started) -> None:
    """Take over what was released so far.  Raises StoreError when that cannot be read."""
    state.account = privacy.decode(event.account) if event.account else Account()
    state.release = event.release
    options = state.spec.trust.privacy
    if options.kind != "none":
        state.epsilon = privacy.epsilon_of(state.account, options.delta)


def afford(state: State) -> bool:
    """Pay for one fit; False when the budget has no room for it, and then nothing is paid."""
    options = state.spec.trust.privacy
    release = state.release if options.kind == "dp-sgd" else None
    if options.kind == "gaussian":
        assert options.noise_multiplier is not None
        release = Release(sigma=options.noise_multiplier, q=1.0, steps=1)
    if release is None:
        return options.kind == "none"
    after = privacy.spend(state.account, sigma=release.sigma, q=release.q, steps=release.steps)
    epsilon = privacy.epsilon_of(after, options.delta)
    if options.max_epsilon is not None and epsilon > options.max_epsilon:
        state.reason = (
            f"privacy budget spent: another fit would make epsilon {epsilon:.3g}, at most "
            f"{options.max_epsilon:g}; this site only mixes"
        )
        if not state.budget_is_spent:
            state.budget_is_spent = True
            state.fact(
                "privacy budget spent",
                "warning",
                round=state.round,
                epsilon=state.epsilon,
                max_epsilon=options.max_epsilon,
                delta=options.delta,
            )
        return False
    state.account, state.epsilon = after, epsilon
    return True


def protected(state: State) -> Trained | None:
    """The answer of this round's fit as it may leave; a fault in its place when it cannot be cut."""
    trained, start, options = state.trained, state.fit_from, state.spec.trust.privacy
    if options.kind != "gaussian" or trained is None or trained.parameters is None or start is None:
        return trained
    assert options.clip is not None
    assert options.noise_multiplier is not None
    try:
        moved = privacy.noisy(
            trained.parameters - start, options.clip, options.noise_multiplier, _secret(state, b"noise")
        )
    except AggregationError as error:
        return replace(trained, parameters=None, fault=str(error))
    return replace(trained, parameters=start + moved)


def seed(state: State, purpose: int) -> tuple[int, ...]:
    """Seeds for the learner's draws: the run's, which members know, unless they make the noise."""
    if state.spec.trust.privacy.kind != "dp-sgd":
        return state.seed(purpose)
    return tuple(np.frombuffer(_secret(state, b"fit"), "<u4").tolist())


def _secret(state: State, purpose: bytes) -> bytes:
    """32 bytes that only this process knows, other ones in each round it takes."""
    number = 0 if state.head is None else state.head.number + 1
    what = purpose + state.round.to_bytes(8, "big") + number.to_bytes(8, "big")
    return hashlib.sha256(state.entropy + what).digest()
