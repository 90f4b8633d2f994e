"""Sample ids: the same in every round, another site's never."""

import hashlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pfl.errors import LocalError, RemoteError
from p2pfl.ids import RunId
from p2pfl.knowledge.samples import SECRET_BYTES, rows_of, sample_ids

RUN = RunId("ab" * 32)
SECRET = bytes(range(32))


def test_an_id_is_the_keyed_hash_of_its_row() -> None:
    expected = hashlib.blake2b(
        (5).to_bytes(8, "little"), digest_size=8, key=SECRET, salt=b"\xab" * 16, person=b"p2pfl sample id"
    )
    assert int(sample_ids(SECRET, RUN, 6)[5]) == int.from_bytes(expected.digest(), "little")


def test_ids_stay_when_rows_are_added_and_change_with_the_secret_and_the_run() -> None:
    ids = sample_ids(SECRET, RUN, 100)
    np.testing.assert_array_equal(sample_ids(SECRET, RUN, 1000)[:100], ids)
    others = (sample_ids(bytes(SECRET_BYTES), RUN, 100), sample_ids(SECRET, RunId("cd" * 32), 100))
    assert all(np.intersect1d(ids, other).size == 0 for other in others)


@given(st.lists(st.integers(0, 199), max_size=50))
def test_every_id_finds_its_row_in_any_order(rows: list[int]) -> None:
    known = sample_ids(SECRET, RUN, 200)
    np.testing.assert_array_equal(rows_of(known, known[rows]), rows)


@pytest.mark.parametrize("known", [0, 10])
def test_an_id_of_no_row_here_is_the_sender_s_error(known: int) -> None:
    with pytest.raises(RemoteError, match="not of this site"):
        rows_of(sample_ids(SECRET, RUN, known), sample_ids(SECRET, RUN, 11)[10:])


def test_a_short_secret_is_refused() -> None:
    with pytest.raises(LocalError, match="32 bytes"):
        sample_ids(b"short", RUN, 1)
