"""Plain values: what JSON can hold, for logs, tables and answers."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

__all__ = ["plain"]


def plain(value: Any) -> Any:
    """`value` as what JSON can hold: bytes in hex, NaN and infinity as null, numpy numbers as numbers.

    An array becomes its description, never its content, so that no parameter reaches a log or a table.
    """
    match value:
        case None | bool() | int() | str():
            return value
        case float():
            return value if math.isfinite(value) else None
        case np.generic():
            return plain(value.item())
        case np.ndarray():
            return f"{value.shape} {value.dtype}"
        case bytes() | bytearray() | memoryview():
            return bytes(value).hex() if len(value) <= 64 else f"{len(value)} bytes"
        case Mapping():
            return {str(key): plain(item) for key, item in value.items()}
        case list() | tuple() | set() | frozenset():
            return [plain(item) for item in value]
        case _:
            return str(value)
