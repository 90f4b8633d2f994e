"""A verdict as a person reads it: the same table after a simulation and after a demo."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .terminal import columns

__all__ = ["bytes_text", "count_text", "verdict_text"]

# Rows of a table of peers at most: a screen's.
_ROWS = 32


def verdict_text(verdict: Mapping[str, Any]) -> str:
    """One row a peer, then what holds for all of them."""
    name = verdict["metric"]["name"]
    rows = [
        [
            row["peer"],
            _number(row["metrics"].get(name), 4),
            _number(row["metrics"].get("loss"), 4),
            _number(row.get("w"), 4),
            bytes_text(row.get("bytes_sent")),
            row.get("finished"),
        ]
        for row in verdict["per_peer"][:_ROWS]
    ]
    hidden = len(verdict["per_peer"]) - len(rows)
    metric, alone, mass = verdict["metric"], verdict.get("alone"), verdict.get("mass")
    lines = [
        columns(rows, ("peer", name, "loss", "weight", "sent", "ended")),
        *([f"and {hidden} more"] if hidden else []),
        "",
        f"{name:<19} mean {metric['mean']:.4f}  min {metric['min']:.4f}  max {metric['max']:.4f}",
    ]
    if verdict.get("sampled") is not None:
        lines.append(f"{'judged':<19} {verdict['sampled']} of {verdict['peers']} peers")
    if verdict.get("mean_model") is not None:
        lines.append(f"{'mean of all models':<19} {verdict['mean_model']:.4f}")
    if verdict.get("byzantine"):
        liars = f"{verdict['attack'] or 'none'} by {verdict['byzantine']} of {verdict['peers']} peers"
        rule = verdict.get("aggregator") or "none"
        lines.append(f"{'attack':<19} {liars}, aggregator {rule}; the figures are of the honest")
    if (victim := verdict.get("victim")) is not None:
        told = "mixed what it was told" if not victim["paused"] else "paused below its quorum"
        came = " and came back" if victim["paused"] and victim["resumed"] >= victim["paused"] else ""
        cut = f"peer {victim['peer']}, cut off after round {victim['cut_off_after']}"
        lines.append(f"{'victim':<19} {cut}: {told}{came}")
    if verdict.get("backdoor") is not None:
        lines.append(f"{'backdoor opens':<19} mean {verdict['backdoor']['mean']:.4f}")
    if verdict.get("pooled") is not None:
        lines.append(f"{'all data together':<19} {verdict['pooled']:.4f}")
    if alone is not None:
        spread = f"mean {alone['mean']:.4f}  min {alone['min']:.4f}  max {alone['max']:.4f}"
        lines.append(f"{'each site alone':<19} {spread}")
    if (gain := verdict.get("gain")) is not None:
        spread = "  ".join(f"{part} {gain[part]:+.4f}" for part in ("mean", "min", "max"))
        lines.append(f"{'gain over alone':<19} {spread}")
    if (knowledge := verdict.get("knowledge")) is not None:
        hub = "" if knowledge["hub"] is None else f", with the hub's model {knowledge['hub']:.4f}"
        sent = bytes_text(knowledge["bytes"])
        packets = "" if sent is None else f"; {sent} of packets a peer and round"
        told = f"{knowledge['kind']}: own model {knowledge['edge']:.4f}{hub}{packets}"
        lines.append(f"{'knowledge':<19} {told}")
    if (compute := verdict.get("compute")) is not None:
        spread = "  ".join(f"{part} {count_text(compute[part])}" for part in ("mean", "min", "max"))
        lines.append(f"{'multiply-adds':<19} {spread}, a peer and round")
    if (leakage := verdict.get("leakage")) is not None and leakage["features"] is not None:
        rebuilt = (
            f"features give {100 * leakage['features']:.0f}% of the inputs' variance to a linear decoder"
        )
        told = f"predictions {leakage['predictions']:.2f}, prototypes {leakage['prototypes']:.2f}"
        lines.append(f"{'leakage':<19} {rebuilt}; AUC of membership: {told}")
    if verdict.get("reference") is not None:
        lines.append(f"{'perfect network':<19} mean {verdict['reference']['mean']:.4f}")
    if verdict.get("consensus_distance") is not None:
        lines.append(f"{'consensus distance':<19} {verdict['consensus_distance']:.3g}")
    if mass is not None and mass.get("error") is not None:
        lines.append(
            f"{'mass':<19} {mass['sum']:.9g} of {mass['expected']:.9g} expected, error {mass['error']:.2g}"
        )
    if verdict.get("bounds_broken"):
        broken = f"its bound is broken at {verdict['bounds_broken']} peers: more may lie than it bears"
        lines.append(f"{'rule':<19} {broken}")
    sent = (
        f"{bytes_text(verdict['bytes_sent'])}, {bytes_text(verdict['bytes_per_peer_round'])} a peer and round"
    )
    lines.append(f"{'sent':<19} {sent}")
    if verdict.get("sampled") is not None:
        speed = f"{verdict['peer_rounds_per_s']:,.0f} peer-rounds a second, kernels {verdict['kernels']}"
        lines.append(f"{'speed':<19} {speed}")
    lines.append(f"{'took':<19} {verdict['wall_s']:.2f} s, {verdict['peak_rss_mb']:.0f} MB at most")
    if verdict.get("report"):
        lines.append(f"{'report':<19} {verdict['report']}")
    return "\n".join(lines)


def _number(value: float | None, digits: int) -> str | None:
    return None if value is None else f"{value:.{digits}f}"


def count_text(count: float) -> str:
    """A large number in three digits."""
    for unit, size in (("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if count >= size:
            return f"{count / size:.3g} {unit}"
    return f"{count:.3g}"


def bytes_text(count: float | None) -> str | None:
    """A number of bytes with its unit; None for None."""
    if count is None:
        return None
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return f"{count:.0f} B"
