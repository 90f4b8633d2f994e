"""One prediction from many: what the sites together believe of each sample of a probe set.

`p` peers, `n` samples, `K` classes.  A peer says for which samples it vouches: those that look to its model
like its own (IDKD).  It sends again only what has moved (CFD).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from p2pfl.errors import AggregationError, RemoteError
from p2pfl.knowledge.beliefs import Beliefs, from_codes, to_codes
from p2pfl.knowledge.packets import Coding, Probe

__all__ = ["Held", "combine", "threshold", "in_distribution", "written", "whole", "applied"]

# Predictions sorted at a time: p of these rows of K float64.
_ROWS = 16 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Held:
    """One peer's predictions as both ends of an edge hold them.

    round: of the packet that made them so.   vouched: (n,) bool.   log_p: (n, K) float32, meaningless where
    not vouched.
    """

    round: int
    vouched: NDArray[np.bool_]
    log_p: NDArray[np.float32]


def combine(held: Sequence[Held], rule: str, sharpen: float = 1.0) -> tuple[Beliefs, NDArray[np.bool_]]:
    """Probabilities (n, K), whose rows sum to 1, and the samples (n,) for which at least one peer vouches.

    held: p of them, in PeerId order.   rule: `mean` of the softmaxes (FedMD), or `median`, each class's
    median over the peers, renormalised.   sharpen: what is combined becomes p^(1/sharpen), renormalised: 1
    leaves it, 0.5 squares it.   A sample for which nobody vouches is uniform, and not to be used.
    The median tolerates fewer than half of a sample's voters.  O(p log p n K).
    Raises AggregationError without a peer.
    Source: Li and Wang 2019, arXiv:1910.03581 (FedMD, mean of scores); the median is ours.  That a mean of
    skewed sites wants to be less uncertain: Itahara et al. 2020, arXiv:2008.06180 (DS-FL, section 3.2); by a
    power: Berthelot et al. 2019, arXiv:1905.02249, equation (7).

    >>> one = Held(round=0, vouched=np.array([True]), log_p=np.log(np.array([[.8, .2]], np.float32)))
    >>> lie = Held(round=0, vouched=np.array([True]), log_p=np.log(np.array([[1e-8, 1.]], np.float32)))
    >>> combine([one, one, lie], "median")[0].round(3).tolist()
    [[0.8, 0.2]]
    >>> combine([one], "mean", sharpen=0.5)[0].round(3).tolist()
    [[0.941, 0.059]]
    """
    if not held:
        raise AggregationError("there is no prediction to combine")
    n, K = held[0].log_p.shape
    result: Beliefs = np.full((n, K), 1.0 / K)
    votes = np.stack([peer.vouched for peer in held])
    for start in range(0, n, _ROWS):
        rows = slice(start, start + _ROWS)
        values = np.stack([np.exp(peer.log_p[rows].astype(np.float64)) for peer in held])
        voted = votes[:, rows, None]
        count = voted.sum(axis=0)
        if rule == "mean":
            middle = np.where(voted, values, 0.0).sum(axis=0) / np.maximum(count, 1)
        else:
            # Those who do not vouch sort behind those who do.
            ordered = np.sort(np.where(voted, values, np.inf), axis=0)
            last = np.maximum(count, 1)
            pair = [np.broadcast_to(at, (1, *values.shape[1:])) for at in ((last - 1) // 2, last // 2)]
            low, high = (np.take_along_axis(ordered, at, axis=0)[0] for at in pair)
            middle = (low + high) / 2
        has_vote = count[:, 0] > 0
        chosen = middle[has_vote]
        # The largest is 1 before the power, so that no small float underflows to a row of zeros.
        chosen = (chosen / chosen.max(axis=1, keepdims=True)) ** (1.0 / sharpen)
        result[rows][has_vote] = chosen / chosen.sum(axis=1, keepdims=True)
    is_used: NDArray[np.bool_] = np.asarray(votes.any(axis=0))
    return result, is_used


def threshold(confidence: NDArray[np.floating], keep: float) -> float:
    """The largest softmax probability below which a sample is not taken for one of the own distribution.

    confidence: (m,) largest probabilities on the site's own held-out samples; none gives 0, which filters
    nothing.   keep: the share of them that passes.
    Source: Ravikumar et al. 2023, arXiv:2304.04326 (IDKD), the maximum-softmax-probability detector; they
    choose its threshold on a second, outside set, of which there is none here: ours is a quantile of
    the site's own.
    """
    if not confidence.size or keep >= 1:
        return 0.0
    return float(np.quantile(np.asarray(confidence, np.float64), 1 - keep, method="lower"))


def in_distribution(log_p: NDArray[np.floating], least: float) -> NDArray[np.bool_]:
    """The samples, (n,) bool, whose largest probability is at least `least`."""
    is_in: NDArray[np.bool_] = np.exp(log_p.max(axis=1)) >= least
    return is_in


def written(
    log_p: NDArray[np.floating],
    vouched: NDArray[np.bool_],
    *,
    digest: bytes,
    coding: Coding,
    round_: int,
    before: Held | None,
    tolerance: float = 0.0,
) -> tuple[Probe, Held]:
    """The packet that brings receivers of `before` up to date, and what they hold then.

    log_p: (n, K) in PROBE_FLOOR..0.   before: what they hold; None writes a packet that stands alone.
    tolerance: nats.  A prediction is off by at most `tolerance`, or half a step of the coding where that is
    more, in any round: each is compared with what receivers hold, not with what was last computed.
    Source: Sattler et al. 2020, arXiv:2012.00632 (CFD), which codes the difference of hard
    predictions; ours are soft.
    """
    wire = _as_sent(log_p, coding)
    sent = vouched.copy()
    held = wire
    if before is not None:
        off = np.abs(np.asarray(log_p, np.float64) - before.log_p).max(axis=1)
        coarse = np.abs(np.asarray(log_p, np.float64) - wire).max(axis=1)
        sent &= ~before.vouched | (off > np.maximum(tolerance, coarse))
        held = np.where(sent[:, None], wire, before.log_p)
    packet = Probe(
        digest=digest,
        vouched=vouched,
        sent=sent,
        log_p=wire[sent].astype(np.float64),
        coding=coding,
        base=0 if before is None else before.round + 1,
    )
    return packet, Held(round=round_, vouched=vouched, log_p=held)


def whole(held: Held, *, digest: bytes, coding: Coding) -> Probe:
    """The packet that gives `held` to one who holds nothing."""
    log_p = held.log_p[held.vouched].astype(np.float64)
    return Probe(digest=digest, vouched=held.vouched, sent=held.vouched, log_p=log_p, coding=coding)


def applied(before: Held | None, packet: Probe, round_: int) -> Held:
    """What is held after `packet` of `round_`.  Raises RemoteError when it does not follow `before`."""
    n, K = packet.vouched.size, packet.log_p.shape[1]
    log_p = np.zeros((n, K), np.float32)
    if packet.base:
        if before is None or before.round != packet.base - 1:
            held = "none" if before is None else f"those of round {before.round}"
            raise RemoteError(f"predictions that follow those of round {packet.base - 1}; {held} are held")
        if (packet.vouched & ~packet.sent & ~before.vouched).any():
            raise RemoteError("predictions are said to stay that were never sent")
        log_p[:] = before.log_p
    log_p[packet.sent] = packet.log_p
    return Held(round=round_, vouched=packet.vouched, log_p=log_p)


def _as_sent(log_p: NDArray[np.floating], coding: Coding) -> NDArray[np.float32]:
    """(n, K) as a receiver reads it."""
    if coding is Coding.INT8:
        return from_codes(to_codes(log_p)).astype(np.float32)
    return log_p.astype(np.float16).astype(np.float32)
