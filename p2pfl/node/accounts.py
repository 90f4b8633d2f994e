"""The privacy accounts in a store: one entry a data set, which outlives every run."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from p2pfl.trust import privacy
from p2pfl.trust.privacy import Account

if TYPE_CHECKING:
    import sqlite3

__all__ = ["key", "read", "write"]

_PREFIX = "account:"


def key(data_set: str) -> str:
    """Under which the account of `data_set` lies among the store's small values."""
    return _PREFIX + data_set


def write(sql: sqlite3.Connection, account: bytes) -> None:
    """Within a commit's transaction: make `account` that of the data set it names, unless it is empty."""
    if account:
        name = key(privacy.decode(account).data_set)
        sql.execute("INSERT OR REPLACE INTO entries (key, value) VALUES (?, ?)", (name, account))


def read(query: Callable[..., list[dict[str, Any]]]) -> list[Account]:
    """The accounts of all data sets, by name.  Raises StoreError."""
    sql = "SELECT value FROM entries WHERE substr(key, 1, length(?1)) = ?1 ORDER BY key"
    return [privacy.decode(row["value"]) for row in query(sql, _PREFIX)]
