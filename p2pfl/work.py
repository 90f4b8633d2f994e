"""What a learner is asked for in an exchange of knowledge, and what it answers; nothing here does anything.

An exchange (knowledge/exchange.py) names jobs, the peer hands them on one at a time, the learner
(learn/lessons.py) carries them out.  A sample's `ids` are its name on the side of the exchange, a keyed hash,
and the number of its row on the side of the learner; the peer translates.
`n` samples, `K` classes, `d` hidden values of a sample, `h` values of an embedding.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from p2pfl.ids import PeerId

__all__ = [
    "Expected",
    "Ids",
    "Floats",
    "Samples",
    "Teacher",
    "Pull",
    "Mutual",
    "Fit",
    "Answer",
    "Extract",
    "Summarise",
    "Judge",
    "Learn",
    "Mix",
    "Distill",
    "Job",
    "Fitted",
    "Answered",
    "Extracted",
    "Summarised",
    "Judged",
    "Learned",
    "Mixed",
    "Distilled",
    "Result",
    "Work",
    "Worked",
]

Ids: TypeAlias = NDArray[np.uint64]
Floats: TypeAlias = NDArray[np.floating]


@dataclass(frozen=True, slots=True, kw_only=True)
class Expected:
    """What a learner says of the knowledge it can give.

    classes: K.   width: values of a sample's features (hub), or of an embedding (proto); 0 where none travel.
    labels: SHA-256 of the classes' names in their order.   split: SHA-256 of what the extractor gives (hub):
    its shape, the classes and its first parameters, which all edges of a hub must share.   capacity: how much
    it is worth as a hub, 0 for none.   model: SHA-256 of the hub model's schema.   model_values: how many
    float32 the hub model has, 0 without one.
    """

    classes: int
    width: int = 0
    labels: bytes = b""
    split: bytes = b""
    capacity: float = 0.0
    model: bytes = b""
    model_values: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Samples:
    """Samples of one sender, as a hub learns from them.

    hidden: (n, d) float32, or int8 with `scales`, (n,) float32.   z: (n, K) log-probabilities of the sender's
    own head.   labels: (n,).
    """

    hidden: NDArray[np.float32] | NDArray[np.int8]
    scales: NDArray[np.float32] | None = None
    z: Floats
    labels: NDArray[np.integer]

    def values(self) -> NDArray[np.float32]:
        """The hidden values, (n, d) float32."""
        if self.scales is None:
            return np.asarray(self.hidden, np.float32)
        values: NDArray[np.float32] = self.hidden * self.scales[:, None]
        return values


# --- what the learner is asked for -------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Teacher:
    """Soft labels to learn from: ids (n,), log_p (n, K), and the weight of the distillation against CE."""

    ids: Ids
    log_p: Floats
    alpha: float
    temperature: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Pull:
    """Embeddings are drawn to their class's centre: centres (K, h), is_known (K,), strength the lambda."""

    centres: NDArray[np.float32]
    is_known: NDArray[np.bool_]
    strength: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Mutual:
    """Two models teach each other: the proxy by (1 - alpha) CE + alpha KL, the private one so with beta."""

    alpha: float
    beta: float
    temperature: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Fit:
    """The round's fit on the own samples; answer Fitted.   is_frozen: the extractor stays as it is."""

    teacher: Teacher | None = None
    pull: Pull | None = None
    mutual: Mutual | None = None
    is_frozen: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """Predict on the probe set, with the own model or the hub's on its features; answer Answered."""

    is_of_hub: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Extract:
    """Features and predictions of the own samples, at most `most` of them; answer Extracted.

    Without augmentation, dropout or gradients, and with batch statistics as they stand.
    """

    most: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Summarise:
    """Embeddings of the own training samples; answer Summarised."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Judge:
    """The hub model's cross-entropy on each sender's features, before it learns from them; answer Judged."""

    features: Mapping[PeerId, Samples]


@dataclass(frozen=True, slots=True, kw_only=True)
class Learn:
    """Train the hub model on all samples of all senders, mixed; then predict every one; answer Learned.

    By CE + alpha T^2 KL against each sample's `z`.   only_answer: senders not to be learned from, whose
    samples are predicted all the same.
    """

    features: Mapping[PeerId, Samples]
    only_answer: Mapping[PeerId, Samples]
    alpha: float
    temperature: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Mix:
    """The hub model becomes the mean of itself and `models`, or with `is_adopted` the only one of them.

    models: (m,) float32 each, of the other hubs of the tier; answer Mixed.
    """

    models: Mapping[PeerId, NDArray[np.float32]]
    is_adopted: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Distill:
    """Train on the probe set's rows where `is_used`, towards `p` (n, K); answer Distilled.

    is_of_hub: the hub's model, on the features of these rows.
    """

    p: Floats
    is_used: NDArray[np.bool_]
    alpha: float
    temperature: float
    epochs: int
    is_of_hub: bool = False


Job: TypeAlias = Fit | Answer | Extract | Summarise | Judge | Learn | Mix | Distill


@dataclass(frozen=True, slots=True, kw_only=True)
class Fitted:
    """The fit is done."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Answered:
    """logits: (n, K) on the probe set.   confidence: (m,) largest probabilities on own held-out samples."""

    logits: Floats
    confidence: Floats


@dataclass(frozen=True, slots=True, kw_only=True)
class Extracted:
    """ids (n,), hidden (n, d) float32, logits (n, K), labels (n,), in any order of samples.

    is_held_out: (n,) bool, the samples that the edge does not fit on; by them it judges its teacher.
    """

    ids: Ids
    hidden: NDArray[np.float32]
    logits: Floats
    labels: NDArray[np.integer]
    is_held_out: NDArray[np.bool_]


@dataclass(frozen=True, slots=True, kw_only=True)
class Summarised:
    """embeddings: (n, h).   labels: (n,)."""

    embeddings: Floats
    labels: NDArray[np.integer]


@dataclass(frozen=True, slots=True, kw_only=True)
class Judged:
    """Nats a sender."""

    losses: Mapping[PeerId, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Learned:
    """What the hub model predicts after learning, and what it is.

    logits: (n, K) for the samples of each sender, in the order that they were given.   model: (m,) float32.
    """

    logits: Mapping[PeerId, Floats]
    model: NDArray[np.float32]


@dataclass(frozen=True, slots=True, kw_only=True)
class Mixed:
    """The hub model is mixed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Distilled:
    """The distillation is done."""


Result: TypeAlias = Fitted | Answered | Extracted | Summarised | Judged | Learned | Mixed | Distilled


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """Carry out `job` with the model `parameters`, (d,); answer Worked by `deadline`.

    number: of the job within its round.   The other fields are those of `events.Train`.
    """

    round: int
    number: int
    job: Job
    parameters: NDArray[np.float32]
    seed: tuple[int, ...]
    progress: float
    deadline: float
    statistics: NDArray[np.float64] | None = None
    learner_state: bytes = b""


@dataclass(frozen=True, slots=True, kw_only=True)
class Worked:
    """Job `number` of `round` gave `result`, or `fault` and none.

    parameters: the model after it, None where it is as it was.   learner_state: for after a restart.
    """

    round: int
    number: int
    result: Result | None
    parameters: NDArray[np.float32] | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)
    learner_state: bytes = b""
    fault: str = ""
