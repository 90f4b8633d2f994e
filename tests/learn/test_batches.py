from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pfl.errors import LearnerError
from p2pfl.learn.batches import batches


@given(st.integers(1, 40), st.integers(1, 50), st.integers(1, 30))
def test_no_row_comes_again_before_all_came(rows: Any, batch_size: Any, steps: Any) -> None:
    order = batches(rows, batch_size, steps, np.random.default_rng(0))
    assert order.shape == (steps, min(batch_size, rows))
    counts = np.zeros(rows, int)
    for row in order.ravel():
        counts[row] += 1
        assert counts.max() - counts.min() <= 1


def test_one_epoch_sees_every_row() -> None:
    order = batches(10, 4, None, np.random.default_rng(0))
    assert order.shape == (3, 4)
    assert set(order.ravel()[:10]) == set(range(10))


def test_no_rows_are_refused() -> None:
    with pytest.raises(LearnerError, match="no training rows"):
        batches(0, 4, 1, np.random.default_rng(0))
