"""What an agreement says under [knowledge]: which exchange, and on which probe set.

A field that does not apply to the chosen kind is refused rather than ignored; one that is left out is None
in the agreement and takes the default of `DEFAULTS`.
"""

from __future__ import annotations

import re
from typing import Any, Literal

import msgspec

__all__ = ["EXCHANGE_FIELDS", "DEFAULTS", "ExchangeOptions", "ProbeOptions", "KnowledgeOptions"]

# The kinds of exchange, and which options each one understands.
EXCHANGE_FIELDS: dict[str, tuple[str, ...]] = {
    "none": (),
    "hub": (
        "share_features",
        "temperature",
        "alpha",
        "coding",
        "most_samples",
        "cache_mb",
        "staleness",
        "asynchronous",
        "tier",
        "combine",
        "sharpen",
        "epochs",
        "deliver",
        "freeze_after",
    ),
    "probe": (
        "temperature",
        "alpha",
        "combine",
        "sharpen",
        "coding",
        "tolerance",
        "whole_every",
        "keep",
        "epochs",
    ),
    "proto": ("strength", "least_count"),
    "proxy": ("temperature", "alpha", "beta"),
}

DEFAULTS: dict[str, Any] = {
    "share_features": False,
    # FedML's own default, and Recipe M's.
    "temperature": 3.0,
    "alpha": 1.0,
    # ProxyFL trains both models with equal parts of labels and of each other.
    "beta": 0.5,
    "coding": "int8",
    # Of one sender in one round, more are not believed to be worth their bytes.
    "most_samples": 10_000,
    # Of one sender; 16 edges fill 4 GiB.
    "cache_mb": 256,
    "staleness": 3,
    "asynchronous": False,
    "tier": "weights",
    "deliver": True,
    "freeze_after": None,
    "combine": "median",
    "sharpen": 1.0,
    "tolerance": 0.0,
    "whole_every": 10,
    "keep": 1.0,
    # One epoch on a probe set gains nothing, four do (Dirichlet .3, 1,000 samples).
    "epochs": 4,
    # FedProto's lambda for MNIST.
    "strength": 1.0,
    "least_count": 2,
}
# A row of a probe set is a prediction from every site in every round.
_MOST_PROBE_SAMPLES = 1_000_000
_DIGEST = re.compile(r"[0-9a-f]{64}")


class ExchangeOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """`[knowledge] exchange`: what travels beside weights, or instead of them.  None takes the default.

    hub: edges send features of their samples, hubs answer with soft labels (FedGKT).
      share_features (false): must be said: hidden features of one layer can be turned back into the samples.
      coding (int8) or float32, of features.   most_samples (10000) of one edge in one round.   cache_mb (256)
      a hub keeps of one edge.   staleness (3): rounds after which features and soft labels are let go.
      asynchronous (false): a hub trains on what is there.   tier (weights): hubs of one model mix their
      weights; `probe`: hubs of any model learn what they believe of the probe set together, by combine,
      sharpen and epochs as below; `none`.
      deliver (true): in the last round a hub gives its edges its model.
      freeze_after (never): the round from which extractors stay as they are, so that features travel once.
    probe: sites exchange predictions on a set that all hold (FedMD).
      combine (median, mean).   sharpen (1): the power p^(1/sharpen) that what is combined is raised to.
      coding (int8) or float16.   tolerance (0): nats by which a prediction must
      have moved to be sent again.   whole_every (10): rounds between packets that stand alone.
      keep (1): the share of its own samples that a site's in-distribution threshold lets pass; 1 is no
      threshold (IDKD).   epochs (4) over the probe set a round.
    proto: sites exchange the mean embedding of each class (FedProto).
      strength (1) of the pull.   least_count (2): samples of a class below which its mean stays at home.
    proxy: a small model travels by gossip and a private one stays (ProxyFL).
      alpha (.5 here), beta (.5): how much the proxy, and the private model, learn from the other.
    hub, probe, proxy: temperature (3), alpha (1): of the distillation, as CE + alpha T^2 KL.
    Raises ValueError, to which msgspec adds the path, on what does not apply or is out of range.
    """

    kind: Literal["none", "hub", "probe", "proto", "proxy"] = "none"
    share_features: bool | None = None
    temperature: float | None = None
    alpha: float | None = None
    beta: float | None = None
    coding: Literal["float32", "float16", "int8"] | None = None
    most_samples: int | None = None
    cache_mb: int | None = None
    staleness: int | None = None
    asynchronous: bool | None = None
    tier: Literal["weights", "probe", "none"] | None = None
    deliver: bool | None = None
    freeze_after: int | None = None
    combine: Literal["median", "mean"] | None = None
    sharpen: float | None = None
    tolerance: float | None = None
    whole_every: int | None = None
    keep: float | None = None
    epochs: int | None = None
    strength: float | None = None
    least_count: int | None = None

    def __post_init__(self) -> None:
        understood = EXCHANGE_FIELDS[self.kind]
        for field in self.given():
            if field not in understood:
                takes = ", ".join(understood) or "no options"
                raise ValueError(
                    f"knowledge.exchange.{field} does not apply to kind {self.kind!r}, which takes {takes}"
                )
        if self.kind == "hub" and not self.share_features:
            raise ValueError(
                "knowledge.exchange.kind = 'hub' sends hidden features, from which samples can be guessed;"
                " say share_features = true if every site agrees to that"
            )
        told = [field for field in ("combine", "sharpen", "epochs") if field in self.given()]
        if told and self.kind == "hub" and self["tier"] != "probe":
            raise ValueError(f"knowledge.exchange.{told[0]} is for hubs with tier = 'probe'; leave it out")
        mixed = self.kind == "proxy"
        checks = (
            ("temperature", 0 < self["temperature"] <= 100, "more than 0 and at most 100"),
            ("alpha", 0 <= self["alpha"] <= (1 if mixed else 100), f"0 to {1 if mixed else 100}"),
            ("beta", 0 <= self["beta"] <= 1, "0 to 1"),
            ("most_samples", 1 <= self["most_samples"] <= 10_000_000, "1 to 10,000,000"),
            ("cache_mb", 1 <= self["cache_mb"] <= 1_048_576, "1 to 1,048,576"),
            ("staleness", 1 <= self["staleness"] <= 10_000, "1 to 10,000"),
            ("freeze_after", (self.freeze_after or 0) >= 0, "0 or more"),
            ("sharpen", 0.01 <= self["sharpen"] <= 1, "0.01 to 1"),
            ("tolerance", 0 <= self["tolerance"] <= 20, "0 to 20"),
            ("whole_every", 1 <= self["whole_every"] <= 10_000, "1 to 10,000"),
            ("keep", 0 < self["keep"] <= 1, "more than 0 and at most 1"),
            ("epochs", 1 <= self["epochs"] <= 1_000, "1 to 1,000"),
            ("strength", 0 <= self["strength"] <= 1e6, "0 to 1,000,000"),
            ("least_count", 1 <= self["least_count"] <= 1_000_000, "1 to 1,000,000"),
            (
                "coding",
                self.coding is None or self.coding != ("float16" if self.kind == "hub" else "float32"),
                "int8 or float32 for a hub, int8 or float16 for a probe",
            ),
        )
        for field, holds, rule in checks:
            if not holds:
                raise ValueError(f"knowledge.exchange.{field} = {self[field]} is not {rule}")

    def __getitem__(self, field: str) -> Any:
        """The value of `field`, its default when it was left out."""
        value = getattr(self, field)
        if value is not None:
            return value
        return 0.5 if field == "alpha" and self.kind == "proxy" else DEFAULTS[field]

    def given(self) -> tuple[str, ...]:
        """The options that are not left to their defaults."""
        return tuple(
            field for field in self.__struct_fields__ if field != "kind" and getattr(self, field) is not None
        )


class ProbeOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """`[knowledge] probe`: samples without labels that every site holds, named by their content.

    source: where each site finds them, as `[learner.data] source` says it.   digest: SHA-256, in hex, of the
    float32 rows in their order.   samples: how many rows.
    """

    source: str
    digest: str
    samples: int

    def __post_init__(self) -> None:
        if not self.source:
            raise ValueError("knowledge.probe.source is empty; name the probe set, such as 'npz:probe.npz'")
        if not _DIGEST.fullmatch(self.digest):
            raise ValueError("knowledge.probe.digest is not 64 lowercase hex digits, the probe set's SHA-256")
        if not 1 <= self.samples <= _MOST_PROBE_SAMPLES:
            raise ValueError(f"knowledge.probe.samples is 1 to {_MOST_PROBE_SAMPLES:,}, not {self.samples}")


class KnowledgeOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """`[knowledge]`: the exchange, and the probe set where one is needed."""

    exchange: ExchangeOptions = msgspec.field(default_factory=ExchangeOptions)
    probe: ProbeOptions | None = None

    def __post_init__(self) -> None:
        kind = self.exchange.kind
        needs = kind == "probe" or (kind == "hub" and self.exchange["tier"] == "probe")
        if needs and self.probe is None:
            what = "kind = 'probe'" if kind == "probe" else "tier = 'probe'"
            raise ValueError(
                f"knowledge.exchange.{what} needs knowledge.probe = {{ source, digest, samples }}"
            )
        if self.probe is not None and not needs:
            raise ValueError(
                f"knowledge.probe is not used by knowledge.exchange.kind = {kind!r}; leave it out"
            )
