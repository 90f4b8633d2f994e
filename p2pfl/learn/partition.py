"""One data set cut into many sites: evenly, by label, by size, by file, by a column; or drawn from by all.

Each function but `drawn` returns one sorted array of row numbers a site; together they hold every row once.
Shapes: `n` rows, `m` sites, `C` classes.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from p2pfl.errors import ConfigError
from p2pfl.learn.options import PartitionOptions
from p2pfl.learn.philox import PARTITION, below, words

__all__ = [
    "Parts",
    "split",
    "iid",
    "dirichlet",
    "shards",
    "quantity",
    "by_file",
    "by_column",
    "drawn",
]

Parts = list[NDArray[np.int64]]

# Draws before a skew is called impossible.  10 classes at alpha .1 over 20 sites: with min_rows = 10 one draw
# in 11 passes, so 100 draws all fail once in 18,000 times; with min_rows = 2 seven draws in 10 pass.
_DRAWS = 100


def split(
    options: PartitionOptions,
    labels: NDArray[Any],
    sites: int,
    rng: np.random.Generator,
    files: NDArray[Any] | None = None,
    groups: NDArray[Any] | None = None,
) -> Parts:
    """The partition `options` asks for.

    labels: (n,).   files, groups: (n,) the number of each row's file, for `by-file`, and of what its column
    says, for `by-column`.
    """
    match options.kind:
        case "iid":
            return iid(len(labels), sites, rng)
        case "dirichlet":
            return dirichlet(labels, sites, options.alpha, rng, options.min_rows)
        case "shards":
            return shards(labels, sites, options.shards, rng)
        case "quantity":
            return quantity(len(labels), sites, options.alpha, rng, options.min_rows)
        case "by-file":
            if files is None:
                raise ConfigError('partition = "by-file" needs a csv source with one file a site')
            return by_file(files, sites)
        case "drawn":
            seed = int(rng.integers(2**63))
            return list(drawn(labels, np.arange(sites), options.rows, options.classes, seed))
        case "by-column":
            if groups is None:
                raise ConfigError('partition = "by-column" needs a csv source that has the column')
            return by_column(groups, sites, options.column)


def iid(rows: int, sites: int, rng: np.random.Generator) -> Parts:
    """Rows dealt at random, site sizes equal to within one."""
    _check_enough(rows, sites, 1)
    return [np.sort(part) for part in np.array_split(rng.permutation(rows), sites)]


def dirichlet(
    labels: NDArray[Any], sites: int, alpha: float, rng: np.random.Generator, min_rows: int = 2
) -> Parts:
    """Label skew: each class is spread over the sites in proportions drawn from Dirichlet(alpha, ..., alpha).

    labels: (n,).   alpha: towards 0 each class lies at one site, towards infinity it is even.
    The whole draw is repeated until every site has `min_rows`; raises ConfigError after 100 draws.
    Source: Li et al. 2022, arXiv:2102.02079, section IV-A (distribution-based label imbalance).
    """
    _check_enough(len(labels), sites, min_rows)
    of_class = [np.flatnonzero(labels == c) for c in np.unique(labels)]
    for _ in range(_DRAWS):
        pieces: list[list[NDArray[np.int64]]] = [[] for _ in range(sites)]
        for rows in of_class:
            share = rng.dirichlet(np.full(sites, alpha))
            cuts = np.rint(np.cumsum(share)[:-1] * len(rows)).astype(np.int64)
            for site, piece in enumerate(np.split(rng.permutation(rows), cuts)):
                pieces[site].append(piece)
        parts = [np.sort(np.concatenate(piece)) for piece in pieces]
        if min(map(len, parts)) >= min_rows:
            return parts
    raise _too_skewed("dirichlet", sites, alpha, min_rows)


def shards(labels: NDArray[Any], sites: int, per_site: int, rng: np.random.Generator) -> Parts:
    """Rows sorted by label, cut into sites x per_site shards of equal size, `per_site` dealt to each site.

    labels: (n,).   Most sites see at most `per_site` classes, one more for each shard across a class border.
    Source: McMahan et al. 2017, arXiv:1602.05629, section 3 (200 shards of 300 digits, 2 a client).
    """
    _check_enough(len(labels), sites * per_site, 1)
    # Shuffled first, so that which rows of a class lie together is random and the stable sort keeps it.
    shuffled = rng.permutation(len(labels))
    by_label = shuffled[np.argsort(labels[shuffled], kind="stable")]
    pieces = np.array_split(by_label, sites * per_site)
    dealt = rng.permutation(sites * per_site).reshape(sites, per_site)
    return [np.sort(np.concatenate([pieces[shard] for shard in hand])) for hand in dealt]


def quantity(rows: int, sites: int, alpha: float, rng: np.random.Generator, min_rows: int = 2) -> Parts:
    """Size skew: random rows, site sizes in proportions drawn from Dirichlet(alpha, ..., alpha).

    Repeated until every site has `min_rows`; raises ConfigError after 100 draws.
    Source: Li et al. 2022, arXiv:2102.02079, section IV-C (quantity skew).
    """
    _check_enough(rows, sites, min_rows)
    for _ in range(_DRAWS):
        share = rng.dirichlet(np.full(sites, alpha))
        cuts = np.rint(np.cumsum(share)[:-1] * rows).astype(np.int64)
        parts = [np.sort(part) for part in np.split(rng.permutation(rows), cuts)]
        if min(map(len, parts)) >= min_rows:
            return parts
    raise _too_skewed("quantity", sites, alpha, min_rows)


def by_file(files: NDArray[Any], sites: int) -> Parts:
    """One site a file.   files: (n,) file number of each row, 0..sites-1."""
    return _one_each(files, sites, "by-file", "files")


def by_column(groups: NDArray[Any], sites: int, column: str) -> Parts:
    """One site for each value of a column, in their order.   groups: (n,) the number of each row's value."""
    return _one_each(groups, sites, "by-column", f"values of {column!r} among the training rows")


def _one_each(numbers: NDArray[Any], sites: int, kind: str, what: str) -> Parts:
    found = np.unique(numbers)
    if len(found) != sites:
        raise ConfigError(
            f'partition = "{kind}" finds {len(found)} {what} for {sites} sites; ask for {len(found)} sites'
        )
    return [np.flatnonzero(numbers == number).astype(np.int64) for number in found]


def drawn(
    labels: NDArray[Any], sites: NDArray[np.int64], rows: int, classes: int, seed: int
) -> NDArray[np.int64]:
    """`rows` different rows of `classes` classes for each site, (m, rows), each site's sorted.

    labels: (n,).   sites: (m,) their numbers: a site's rows follow from its number and the seed alone, so a
    million sites can share 1,437 rows, and those of a few can be asked for.   Classes are drawn evenly among
    those there are, and give equally many rows (the first ones one more where it does not come out even).
    Raises ConfigError when there are too few classes, or too few rows in one.
    """
    by_class = [np.flatnonzero(labels == c) for c in np.unique(labels)]
    sizes = np.array([len(members) for members in by_class])
    quotas = [rows // classes + (c < rows % classes) for c in range(classes)]
    if classes > len(by_class) or quotas[0] > sizes.min() or quotas[-1] == 0:
        raise ConfigError(
            f'partition "drawn" asks for {rows} rows of {classes} classes, and the data have {len(by_class)}'
            f" classes of at least {sizes.min()} rows; lower rows or classes"
        )
    table = np.zeros((len(by_class), sizes.max()), np.int64)
    for c, members in enumerate(by_class):
        table[c, : len(members)] = members
    word = words(seed, PARTITION, 0, sites, classes + rows)
    found, taken = np.empty((len(sites), rows), np.int64), 0
    # One draw without repetition after the other, as Floyd has it: the last number there is stands in for
    # one that was drawn before.  Source: Bentley, Floyd 1987, "A sample of brilliance".
    picked = _distinct(word[:, :classes], np.full(len(sites), len(by_class)))
    for c, quota in enumerate(quotas):
        which = picked[:, c]
        at = classes + taken
        places = _distinct(word[:, at : at + quota], sizes[which])
        found[:, taken : taken + quota] = table[which[:, None], places]
        taken += quota
    found.sort(axis=1)
    return found


def _distinct(word: NDArray[np.uint32], bounds: NDArray[np.int64]) -> NDArray[np.int64]:
    """Different numbers below each site's bound from its words.   word: (m, k).   returns: (m, k)."""
    m, k = word.shape
    chosen = np.empty((m, k), np.int64)
    for i in range(k):
        last = bounds - k + i
        one = below(word[:, i], last + 1)
        repeats = (chosen[:, :i] == one[:, None]).any(axis=1)
        chosen[:, i] = np.where(repeats, last, one)
    return chosen


def _check_enough(rows: int, sites: int, min_rows: int) -> None:
    if sites < 1 or rows < sites * min_rows:
        raise ConfigError(
            f"{rows} rows cannot give {sites} parts at least {min_rows} rows each;"
            " ask for fewer sites or more data"
        )


def _too_skewed(kind: str, sites: int, alpha: float, min_rows: int) -> ConfigError:
    return ConfigError(
        f"partition {kind} with alpha {alpha:g} left one of {sites} sites under {min_rows} rows in each of"
        f" {_DRAWS} draws; raise alpha, lower min_rows, or ask for fewer sites"
    )
