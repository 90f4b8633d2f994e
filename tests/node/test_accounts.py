"""Privacy accounts in the store: with the commit, by data set, over runs."""

from pathlib import Path

import numpy as np
import pytest

from p2pfl.errors import StoreError
from p2pfl.events import Snapshot
from p2pfl.ids import RunId
from p2pfl.node import accounts
from p2pfl.node.store import Store
from p2pfl.trust.privacy import Account, decode, encode, spend

RUNS = [RunId("ab" * 32), RunId("cd" * 32)]


def snapshot(account: bytes) -> Snapshot:
    return Snapshot(arrays={"x": np.zeros(5, np.float32)}, ledger=b"ledger", account=account)


def test_an_account_outlives_its_run_and_is_found_by_its_rows(tmp_path: Path) -> None:
    account = spend(Account(data_set="rows ab"), sigma=1.0, steps=3)
    other = spend(Account(data_set="rows cd"), sigma=2.0, q=0.1, steps=50)
    with Store.open(tmp_path) as store:
        assert decode(store.account("rows ab")) == Account(data_set="rows ab")
        store.put("accounting", b"of something else")
        store.commit(RUNS[0], snapshot(encode(account)), [], at=1.0)
        store.commit(RUNS[1], snapshot(encode(other)), [], at=2.0)
        store.commit(RUNS[1], snapshot(b""), [], at=3.0)
    with Store.open(tmp_path) as store:
        assert store.account("rows ab") == encode(account)
        assert store.accounts() == [account, other]
        store.commit(RUNS[1], snapshot(encode(spend(account, sigma=1.0))), [], at=4.0)
        assert [entry.steps for one in store.accounts() for entry in one.spent] == [4, 50]


def test_a_commit_that_fails_leaves_the_account_as_it_was(tmp_path: Path) -> None:
    before, after = (encode(spend(Account(data_set="rows"), sigma=1.0, steps=n)) for n in (1, 2))
    columns = ("peer", "round", "state", "seen_at", "sent_w", "absorbed_w", "unresolved")
    nobody = dict.fromkeys(columns)
    with Store.open(tmp_path) as store:
        store.commit(RUNS[0], snapshot(before), [], at=1.0)
        with pytest.raises(StoreError):
            # The rows of neighbours come after the account in the transaction, and one needs a name.
            store.commit(RUNS[0], snapshot(after), [], at=2.0, peers=[nobody])
        assert store.account("rows") == before


def test_an_account_is_kept_under_a_key_of_its_own() -> None:
    assert accounts.key("rows ab") == "account:rows ab"
