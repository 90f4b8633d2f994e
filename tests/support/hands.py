"""Workers of this process, who do at once what they are told, as Ray's would."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

__all__ = ["OwnHands"]


class OwnHands:
    """See p2pfl.simulations.shards.Hands.   lent: rows that passed between workers, by call."""

    machines = 1

    def __init__(self) -> None:
        self.lent: list[int] = []

    def hire(self, kind: type, *arguments: Any, processors: int) -> Any:
        return kind(*arguments)

    def call(self, worker: Any, method: str, *arguments: Any) -> Any:
        answer = getattr(worker, method)(*arguments)
        if method == "lend":
            self.lent.append(len(answer))
            # What travels is a copy that nobody writes.
            answer = answer.copy()
            answer.setflags(write=False)
        return answer

    def get(self, promises: Sequence[Any]) -> list[Any]:
        return list(promises)
