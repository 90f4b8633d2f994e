"""Event files: what a trial was like on the way, one JSON object a line; recorder.py has what they say."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from p2pfl.errors import StoreError

__all__ = ["is_of", "place", "read", "write"]


def place(verdict: Path) -> Path:
    """The event file beside a verdict's."""
    return verdict.with_suffix(".jsonl")


def write(path: Path, events: Sequence[Mapping[str, Any]], trial: str) -> None:
    """Make `path` hold `events`, whole or not at all, the first of them with `trial`, the key of sweep.py.

    Raises StoreError.
    """
    lines = [{**events[0], "trial": trial}, *events[1:]] if events else []
    fresh = path.with_suffix(".jsonl.tmp")
    try:
        with fresh.open("w", encoding="utf-8") as file:
            file.writelines(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
        fresh.replace(path)
    except OSError as error:
        raise StoreError(f"{path} cannot be written: {error.strerror}; is there room?") from error


def read(path: Path) -> Iterator[dict[str, Any]]:
    """The events in `path`.  Raises StoreError."""
    try:
        with path.open(encoding="utf-8") as file:
            for line in file:
                event = json.loads(line)
                if not isinstance(event, dict):
                    raise StoreError(f"{path} is no event file: {line[:40]!r}; remove it, or give --fresh")
                yield event
    except (OSError, ValueError) as error:
        raise StoreError(f"{path} cannot be read: {error}; remove it, or give --fresh") from error


def is_of(path: Path, trial: str) -> bool:
    """Whether `path` is there and holds the events of the trial with this key.  Raises StoreError."""
    return path.exists() and next(read(path), {}).get("trial") == trial
