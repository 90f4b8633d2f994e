import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pfl.trust import encoding


def test_a_document_comes_back_and_its_keys_are_in_rising_order() -> None:
    data = encoding.pack({2: b"x", 1: 7})
    assert data == bytes.fromhex("820107") + bytes.fromhex("02c40178")
    assert encoding.unpack(data, keys=(1, 2), limit=64) == {1: 7, 2: b"x"}


@pytest.mark.parametrize(
    "data",
    [
        bytes.fromhex("8202c401780107"),  # keys in falling order
        bytes.fromhex("8201070107"),  # a key twice
        bytes.fromhex("8201cc0702c40178"),  # a padded integer
        bytes.fromhex("82c30702c40178"),  # True, which equals 1
        msgpack.packb({1: 7, 2: b"x"}) + b"\0",  # something behind it
        msgpack.packb({1: 7}),  # a key too few
        msgpack.packb({1: 7, 2: msgpack.ExtType(5, b"")}),  # an extension
        msgpack.packb([1, 2]),
        b"\x91" * 5000,  # a nesting bomb
        b"\x82\x01\xdd\xff\xff\xff\xff",  # an array that claims 4 Gi entries
        b"",
    ],
)
def test_a_second_spelling_of_a_document_is_refused(data: bytes) -> None:
    with pytest.raises(ValueError):
        encoding.unpack(data, keys=(1, 2), limit=8192)


@given(st.binary(max_size=200))
def test_any_bytes_give_a_document_or_a_value_error(data: bytes) -> None:
    try:
        document = encoding.unpack(data, keys=(1,), limit=100)
    except ValueError:
        return
    assert encoding.pack(document) == data
