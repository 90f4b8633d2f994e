"""An agreement in plain words, how its plan mixes, and what it will cost one site."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from p2pfl.errors import ConfigError, LearnerError
from p2pfl.ids import PeerId, short

from .knowledge import knowledge_bytes, knowledge_in_plain_words

if TYPE_CHECKING:
    from p2pfl.learn.options import LearnerOptions
    from p2pfl.release import Release
    from p2pfl.run import RunSpec

__all__ = ["Cost", "check_mixing", "cost_of", "in_plain_words", "mixing_in_plain_words"]

# At most this many shares of one edge are unresolved (gossip/links.py), at either end.
_UNRESOLVED_SHARES = 2
# x, the de-biased model and the fit's result, all in the node's own process.
_WORKING_COPIES = 3
# Below it seven rounds or more halve the distance; the default topology keeps above it up to 4,096 members.
_SMALL_GAP = 0.1


def in_plain_words(spec: RunSpec) -> str:
    """What a site agrees to when it joins: data, length, learner, trust, privacy."""
    from p2pfl.learn.options import at_role

    run, learner, trust = spec.run, spec.learner, spec.trust
    what = "every floating-point parameter of the model"
    if learner.share != ("*",):
        what = f"the parameters named {', '.join(learner.share)}"
    if learner.standardise == "federation":
        what += ", and once the count, sum and sum of squares of each column"
    if spec.gossip.averaging.kind == "none":
        what = "no model"
    knowledge = knowledge_in_plain_words(spec)
    code = _code(learner)
    if learner.roles:
        code = "; ".join(f"{role}: {_code(at_role(learner, role))}" for role in sorted(learner.roles))
    norm = "" if trust.max_norm is None else f", and refuses models of a norm above {trust.max_norm:g}"
    lines = (
        (
            "run",
            f"{run.name}: {run.rounds} rounds of {learner.local_steps} steps, {run.closing_rounds} of mixing",
        ),
        (
            "begins",
            f"when {run.members_at_start} members are there; a round waits {run.deadline_s:g} s at most",
        ),
        ("shared", f"{what}; rows, metrics and logs stay here"),
        *([("knowledge", knowledge)] if knowledge else []),
        ("with whom", f"{spec.gossip.topology.kind} topology, {_mixing(spec)}"),
        ("learner", code),
        (
            "weight",
            "sites weigh by their number of rows"
            if run.weights == "samples"
            else "every site weighs the same",
        ),
        ("trust", f"{trust.quorum} of {len(trust.founders)} founders admit and revoke members{norm}"),
        ("privacy", _privacy(spec)),
    )
    return "\n".join(f"{name:<10} {text}" for name, text in lines)


def _code(learner: LearnerOptions) -> str:
    if learner.model is not None:
        return f"a built-in {learner.model.kind} model"
    return f"runs {learner.module} (code on this machine)"


def _privacy(spec: RunSpec) -> str:
    from p2pfl.trust.privacy import Account, epsilon_of, spend

    privacy = spec.trust.privacy
    if privacy.clip is None or privacy.noise_multiplier is None:
        return "no noise is added: whoever receives a model may learn something of the rows behind it"
    budget = ""
    if privacy.max_epsilon is not None:
        budget = f"; a site that has spent epsilon {privacy.max_epsilon:g}, in any run, trains no more"
    noise = f"cut to norm {privacy.clip:g}, with noise of {privacy.noise_multiplier * privacy.clip:g}"
    if privacy.kind == "dp-sgd":
        return f"every row's gradient is {noise} on each sum; `run check` says what that protects{budget}"
    whole = spend(Account(), sigma=privacy.noise_multiplier, steps=spec.run.rounds)
    epsilon = f"epsilon {epsilon_of(whole, privacy.delta):.3g} at delta {privacy.delta:g}"
    return f"a site's whole step of each round is {noise}: {epsilon} if it is in all rounds{budget}"


def _mixing(spec: RunSpec) -> str:
    rule = spec.trust.aggregator
    if spec.gossip.averaging.kind == "none":
        return "nothing is mixed"
    if rule.kind == "none":
        return f"{spec.gossip.averaging.kind} averaging"
    if rule.kind == "capped-share":
        return "push-sum averaging with capped shares, which no false weight moves"
    bad = f"{rule.f:g}" if rule.f >= 1 else f"{rule.f:.0%}"
    return f"mixed by {rule.kind}, which expects {bad} of the sites that one hears to lie"


def _epsilon_of(spec: RunSpec, release: Release | None) -> float | None:
    """Of a whole run; None without noise.   release: of a fit whose learner adds it."""
    from p2pfl.trust.privacy import Account, epsilon_of, spend

    privacy = spec.trust.privacy
    sigma, q, steps = privacy.noise_multiplier, 1.0, spec.run.rounds
    if privacy.kind == "dp-sgd" and release is not None:
        sigma, q, steps = release.sigma, release.q, release.steps * spec.run.rounds
    return (
        None if sigma is None else epsilon_of(spend(Account(), sigma=sigma, q=q, steps=steps), privacy.delta)
    )


def check_mixing(spec: RunSpec) -> dict[str, Any]:
    """How the plan mixes: members, degrees, rounds, and how fast models come together.

    `spectral_gap`: 1 - |lambda_2| of a round, None when the graph is too large to say.   `rounds_to_halve`:
    after which the models are half as far apart, ln 2 / -ln(1 - gap), for a small gap ln 2 / gap.
    `smallest_weight`: the least weight that a site is left with, on average 1, None when the graph is too
    large; `starved`: who is left too little for push-sum's steps, in words.
    Raises ConfigError when the averaging cannot converge on the plan, or no path joins all members.
    """
    from p2pfl.aggregation import mixer_of
    from p2pfl.gossip import mixing_time, reach, topology
    from p2pfl.gossip.mixing import Kind
    from p2pfl.gossip.push_sum import PUSH_SUM
    from p2pfl.schedule import schedule

    options, n, seed = spec.gossip.topology, spec.run.members_at_start, spec.run.seed
    mixer = mixer_of(spec)
    plans = topology.sweep(options, n, seed)
    for plan in plans:
        topology.check(plan, mixer)
    found = reach.reach(*plans)
    said = reach.in_words(found, _sites_of(spec))
    if not found.is_connected:
        raise ConfigError(
            f"gossip.topology {options.kind!r} of {n} members is not strongly connected: they never agree, "
            f"as {said}; add edges, or use another kind"
        )
    outs = [max((len(plan.out_neighbours(i)) for i in range(n)), default=0) for plan in plans]
    ins = [max((len(plan.in_neighbours(i)) for i in range(n)), default=0) for plan in plans]
    rounds = schedule(spec)
    kind = Kind.DOUBLY if Kind.DOUBLY in mixer.requires else Kind.COLUMN
    gap = mixing_time.gap_per_round(options, n, seed, kind)
    return {
        "members": n,
        "out_neighbours": sum(outs) / len(outs),
        "in_neighbours": max(ins),
        "opening_rounds": rounds.opening,
        "rounds_in_all": rounds.total,
        "spectral_gap": gap,
        "rounds_to_halve": _rounds_to_halve(gap),
        "smallest_weight": found.smallest_weight,
        "starved": said if mixer is PUSH_SUM else "",
    }


def _sites_of(spec: RunSpec) -> list[str]:
    """The members by position in the plan: their ids where all are founders, else their positions."""
    founders, n = sorted(spec.trust.founders), spec.run.members_at_start
    if len(founders) == n:
        return [short(PeerId(founder)) for founder in founders]
    return [f"site {i}" for i in range(n)]


def _rounds_to_halve(gap: float | None) -> float | None:
    if gap is None or gap <= 0:
        return None
    return 0.0 if gap >= 1 else math.log(2) / -math.log1p(-gap)


def mixing_in_plain_words(mixing: dict[str, Any]) -> str:
    """The spectral gap that `check_mixing` found, and what it means when it is small."""
    gap, rounds = mixing["spectral_gap"], mixing["rounds_to_halve"]
    if gap is None:
        return "the graph is too large for its spectral gap"
    if gap >= _SMALL_GAP or rounds is None:
        return f"spectral gap {gap:.2g}"
    return (
        f"spectral gap {gap:.2g}, which is small: it takes {rounds:.0f} rounds until models are half as far "
        "apart; add links, or use the exponential topology"
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """What a round costs one site, `seconds_per_round` measured here on one batch, and a run in privacy."""

    parameters: int
    samples: int
    share_bytes: int
    bytes_sent_per_round: int
    knowledge_bytes_per_round: int
    memory_bytes: int
    inbox_bytes: int
    seconds_per_round: float
    epsilon: float | None
    metrics: dict[str, float]


def cost_of(
    spec: RunSpec, mixing: dict[str, Any], data: str, folder: Path, name: str, role: str = ""
) -> Cost:
    """Build the learner, fit one batch, evaluate, and reckon a round's bytes, memory and time.

    role: of `[learner.roles]`, which this site plays.
    Raises LearnerError and ConfigError: what the learner's code got wrong.
    """
    import sys

    import numpy as np

    from p2pfl.aggregation import mixer_of
    from p2pfl.gossip.push_pull import PUSH_PULL
    from p2pfl.learn import factory
    from p2pfl.learn.learner import Site
    from p2pfl.learn.lessons import Lessons
    from p2pfl.learn.options import at_role
    from p2pfl.mass import body_bytes
    from p2pfl.run import dp_sgd_of, exchange_of

    sys.path.insert(0, str(folder))
    options = at_role(spec.learner, role)
    told = exchange_of(spec)
    site = Site(
        data=data,
        name=name,
        seed=spec.run.seed,
        local_steps=1,
        options=options,
        dp_sgd=dp_sgd_of(spec),
        role=role,
        **told,
    )
    learner = factory.build(factory.resolve(options), site)
    expected = Lessons(learner, site).expected()
    sums = factory.statistics_of(learner)
    if options.standardise == "federation":
        learner.standardise(sums)  # type: ignore[attr-defined]
    start = learner.parameters()
    try:
        # The first fit of a process also loads libraries; the second is like those of a run.
        update = learner.fit(start, np.random.default_rng(spec.run.seed))
        began = time.perf_counter()
        learner.fit(start, np.random.default_rng(spec.run.seed))
        seconds = time.perf_counter() - began
        metrics = dict(learner.evaluate(update.parameters))
    except LearnerError:
        raise
    except Exception as error:
        # The user's code may raise anything.
        raise LearnerError(f"the learner raised {type(error).__name__}: {error}") from error
    if update.parameters.shape != start.shape or update.parameters.dtype != np.float32:
        raise LearnerError(
            f"fit gave {update.parameters.dtype} {update.parameters.shape}, expected float32 {start.shape}"
        )
    if not np.isfinite(update.parameters).all():
        raise LearnerError("one batch made the parameters infinite or NaN; lower the learning rate")
    if getattr(learner, "local_steps", None) == site.local_steps:
        learner.local_steps = options.local_steps  # type: ignore[attr-defined]
    release = factory.release_of(learner)
    is_tracked = mixer_of(spec) is PUSH_PULL
    share = body_bytes(len(start), len(sums), is_tracked=is_tracked)
    if spec.gossip.averaging.kind == "none":
        share = 0
    inbox = _UNRESOLVED_SHARES * mixing["in_neighbours"] * share
    samples = factory.samples_of(learner)
    return Cost(
        parameters=len(start),
        samples=samples,
        share_bytes=share,
        bytes_sent_per_round=round(mixing["out_neighbours"] * share),
        knowledge_bytes_per_round=knowledge_bytes(spec, expected, samples, mixing["out_neighbours"]),
        memory_bytes=inbox + (_WORKING_COPIES + _UNRESOLVED_SHARES) * share,
        inbox_bytes=inbox,
        seconds_per_round=seconds * options.local_steps,
        epsilon=_epsilon_of(spec, release),
        metrics={key: float(value) for key, value in metrics.items()},
    )
