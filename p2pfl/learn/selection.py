"""Which rows of a source, and how fine its images: what is done to rows before anything else.

A source may end in `#FIRST-LAST`: the rows numbered FIRST to LAST - 1, from 0, as the source has them.
"""

import re
from typing import Any

import numpy as np
from numpy.typing import NDArray

from p2pfl.errors import ConfigError

__all__ = ["Image", "Span", "pooled", "spanned"]

# Channels, height and width of a row that is an image.
Image = tuple[int, int, int]

_SPAN = re.compile(r"(?P<source>.*)#(?P<first>\d{1,12})-(?P<last>\d{1,12})", re.DOTALL)


class Span:
    """The rows first..last-1 of a source."""

    def __init__(self, source: str, first: int, last: int) -> None:
        self._source, self._first, self._last = source, first, last

    def of(self, rows: Any) -> Any:
        """Those of `rows`, anything that can be sliced.  Raises ConfigError when there are not so many."""
        if self._last > len(rows):
            raise ConfigError(
                f"{self._source} has {len(rows)} rows, and #{self._first}-{self._last} asks for more; rows"
                " count from 0, the last number is not taken"
            )
        return rows[self._first : self._last]


def spanned(source: str) -> tuple[str, Span | None]:
    """A source without its `#FIRST-LAST`, and the span; None where all rows are meant.  Raises ConfigError.

    >>> spanned("idx:mnist")[1] is None, spanned("idx:mnist#2-5")[1].of("abcdefg")
    (True, 'cde')
    """
    match = _SPAN.fullmatch(source)
    if match is None:
        return source, None
    first, last = int(match["first"]), int(match["last"])
    if first >= last:
        raise ConfigError(f"data source {source!r} takes no row; write #FIRST-LAST with LAST above FIRST")
    return match["source"], Span(match["source"], first, last)


def pooled(
    x: NDArray[np.float32], image: Image | None, pool: int
) -> tuple[NDArray[np.float32], Image | None]:
    """Images (n, k) with each `pool` x `pool` square replaced by its mean; what is left at the edges is cut.

    returns: the smaller images, (n, k'), and their shape.   Raises ConfigError for rows that are no images.
    """
    if pool == 1:
        return x, image
    if image is None:
        raise ConfigError("learner.data.pool is for images, and the rows are none; leave it out")
    c, height, width = image
    h, w = height // pool, width // pool
    if not h or not w:
        raise ConfigError(f"learner.data.pool = {pool} is larger than the images, {height} x {width}")
    squares = x.reshape(-1, c, height, width)[:, :, : h * pool, : w * pool].reshape(-1, c, h, pool, w, pool)
    return squares.mean(axis=(3, 5), dtype=np.float32).reshape(len(x), -1), (c, h, w)
