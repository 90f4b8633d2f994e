"""Plain values: what a log line, a table or an answer may hold."""

import json
import math

import numpy as np

from p2pfl.node.plain import plain


def test_plain_holds_nothing_that_json_does_not() -> None:
    value = {
        "a": np.float32(0.5),
        "b": [math.inf, np.int64(3), b"\x01\x02"],
        "c": {"d": np.zeros((2, 2)), "e": object},
        4: (None, True, bytes(100)),
    }
    text = json.loads(json.dumps(plain(value), allow_nan=False))
    assert text["a"] == 0.5
    assert text["b"] == [None, 3, "0102"]
    assert text["c"]["d"] == "(2, 2) float64"
    assert text["4"] == [None, True, "100 bytes"]
