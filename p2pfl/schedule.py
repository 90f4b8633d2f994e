"""The rounds of a run: opening (pool statistics), training, closing (mix only).

Rounds are numbered from 0 over all three; people are shown the training round.
"""

from __future__ import annotations

from dataclasses import dataclass

from p2pfl.gossip import mixing_time
from p2pfl.run import RunSpec

__all__ = ["Schedule", "schedule"]

# Pooled sums are good enough when every site's agree to this: below float32's rounding of the data.
POOLING_TOLERANCE = 1e-9


@dataclass(frozen=True, slots=True, kw_only=True)
class Schedule:
    """How many rounds of each kind."""

    opening: int
    training: int
    closing: int

    @property
    def total(self) -> int:
        """All rounds; a peer whose round reaches it drains."""
        return self.opening + self.training + self.closing

    def stage(self, number: int) -> str:
        """`opening`, `training`, `closing` or `over`."""
        if number < self.opening:
            return "opening"
        if number < self.opening + self.training:
            return "training"
        return "closing" if number < self.total else "over"

    def is_last_call(self, number: int) -> bool:
        """Whether round `number` is the first that closes: it waits for members that are away, once."""
        return number == self.opening + self.training and self.closing > 0

    def progress(self, number: int) -> float:
        """The share of training rounds done before round `number`, 0..1."""
        return min(1.0, max(0.0, (number - self.opening) / max(1, self.training)))


def schedule(spec: RunSpec) -> Schedule:
    """The rounds that an agreement asks for.

    Opening rounds are as many as the topology over `members_at_start` peers needs to bring pooled sums within
    POOLING_TOLERANCE everywhere; none unless the learner standardises over the federation.
    Raises ConfigError when that graph cannot reach consensus.
    """
    opening = 0
    if spec.learner.standardise == "federation":
        opening = mixing_time.mixing_rounds(
            spec.gossip.topology, spec.run.members_at_start, spec.run.seed, POOLING_TOLERANCE
        )
    return Schedule(opening=opening, training=spec.run.rounds, closing=spec.run.closing_rounds)
