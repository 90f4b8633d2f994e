"""An exchange of knowledge in plain words, and the bytes that one site sends for it in a round."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from p2pfl.run import RunSpec
    from p2pfl.work import Expected

__all__ = ["knowledge_bytes", "knowledge_in_plain_words"]

_WORDS = {
    "hub": (
        "hidden features and labels of single rows go to the hubs that this site names, and to nobody else;"
        " hubs send soft labels back"
    ),
    "probe": "predictions on the {samples:,} common rows of the probe set; of this site's own rows none",
    "proto": "the mean embedding of each class that has {least_count} rows or more here",
    "proxy": "nothing but the proxy, the small model; the private model stays here",
}


def knowledge_in_plain_words(spec: RunSpec) -> str:
    """What travels beside weights, or instead of them; empty when nothing does."""
    options = spec.knowledge.exchange
    samples = spec.knowledge.probe.samples if spec.knowledge.probe is not None else 0
    return _WORDS.get(options.kind, "").format(samples=samples, least_count=options["least_count"])


def knowledge_bytes(spec: RunSpec, expected: Expected | None, rows: int, neighbours: float) -> int:
    """At most what a site of `rows` rows sends in a round, without frames.   neighbours: that it tells.

    An edge sends features to one hub.  A hub answers all it may have for edges, of as many rows as are here,
    and sends each its model: to hubs in every round, to edges in the last.
    """
    from p2pfl.knowledge.packets import (
        Coding,
        features_bytes,
        hub_model_bytes,
        probe_bytes,
        prototypes_bytes,
        soft_labels_bytes,
    )

    if expected is None:
        return 0
    options, classes, each = spec.knowledge.exchange, expected.classes, 0
    coding = Coding[options["coding"].upper()]
    match options.kind:
        case "hub":
            told = min(rows, options["most_samples"])
            if expected.capacity <= 0:
                return features_bytes(told, width=expected.width, classes=classes, coding=coding)
            each = soft_labels_bytes(told, classes=classes) + hub_model_bytes(expected.model_values)
        case "probe":
            n = spec.knowledge.probe.samples if spec.knowledge.probe is not None else 0
            each = probe_bytes(n, rows=n, classes=classes, coding=coding)
        case "proto":
            each = prototypes_bytes(classes, width=expected.width)
    return round(neighbours * each)
