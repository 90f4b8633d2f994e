"""Edge lists as text: one pair of positions a line."""

from __future__ import annotations

import re

from p2pfl.errors import ConfigError

__all__ = ["parse_edges"]

# Pairs are apart by a comma, a semicolon, a tab or blanks.
_APART = re.compile(r"\s*[,;\s]\s*")


def parse_edges(text: str, where: str) -> list[tuple[int, int]]:
    r"""The pairs in `text`, "3,5" or "3 5" a line, in its order.

    Lines that are empty or begin with # are skipped, and so is a first line that holds no number, a header.
    What follows a pair, such as a weight, is refused.   Raises ConfigError that names the line.

    >>> parse_edges("source,target\n0,1\n1,2\n", "links.csv")
    [(0, 1), (1, 2)]
    """
    pairs = []
    is_first = True
    for number, line in enumerate(text.splitlines(), start=1):
        cells = _APART.split(line.strip()) if line.strip() else []
        if not cells or line.lstrip().startswith("#"):
            continue
        is_header = is_first and not any(cell.isdecimal() for cell in cells)
        is_first = False
        if is_header:
            continue
        if len(cells) != 2 or not all(cell.isdecimal() and len(cell) < 10 for cell in cells):
            raise ConfigError(
                f"{where} line {number}: {line.strip()[:80]!r} is not a pair of positions from 0, such as 3,5"
            )
        pairs.append((int(cells[0]), int(cells[1])))
    if not pairs:
        raise ConfigError(f"{where} lists no edge; write a pair of positions a line, such as 3,5")
    return pairs
