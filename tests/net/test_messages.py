import hashlib

import msgpack
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import fields, replace
from signed_messages import ALICE, BOB, header, messages, vector_message

from p2pfl import encoding
from p2pfl.errors import LocalError, RemoteError
from p2pfl.events import Ack, Body, Header, Hello, Kind, Message, Notice, Roster, Statement
from p2pfl.ids import PeerId
from p2pfl.net import bodies
from p2pfl.net.messages import (
    DOMAIN,
    MAX_HEADER_BYTES,
    VECTOR_KINDS,
    decode_body,
    decode_header,
    encode_header,
    open_frame,
    seal,
    split_frame,
)
from p2pfl.net.transport import INLINE_BODY_BYTES, MAX_FRAME_BYTES
from p2pfl.trust.envelope import signer_of, verify_signed
from p2pfl.trust.identity import verify

SIGN = signer_of(ALICE)


def resigned(head: bytes, body: bytes = b"") -> bytes:
    """A frame around any header bytes, signed by Alice."""
    return len(head).to_bytes(2, "big") + head + ALICE.sign(DOMAIN, head) + body


def document(head: Header) -> dict[int, object]:
    return encoding.unpack(encode_header(head), "header", keys=range(1, 18), limit=MAX_HEADER_BYTES)


@pytest.mark.parametrize("message", messages(), ids=lambda message: message.header.kind.name)
def test_a_structured_message_comes_back_as_it_was(message: Message) -> None:
    frame = seal(message, SIGN)
    head, body = open_frame(frame, verify_signed)
    assert decode_body(head, body) == message.body
    assert head == replace(
        message.header, size=len(body), raw_size=len(body), digest=hashlib.sha256(body).digest()
    )
    assert len(frame) <= MAX_FRAME_BYTES


@pytest.mark.parametrize("kind", sorted(VECTOR_KINDS))
def test_a_vector_travels_beside_its_frame_and_is_not_copied(kind: Kind) -> None:
    message = vector_message(kind)
    assert isinstance(message.body, np.ndarray)
    head, nothing = open_frame(seal(message, SIGN), verify_signed)
    assert (head, nothing) == (message.header, b"")
    buffer = bytearray(message.body.tobytes())
    vector = decode_body(head, buffer)
    assert isinstance(vector, np.ndarray)
    assert vector.tobytes() == buffer
    assert np.shares_memory(vector, np.frombuffer(buffer, np.uint8))


def test_every_kind_has_a_message_in_these_tests() -> None:
    assert {message.header.kind for message in messages()} | VECTOR_KINDS == set(Kind)


def test_the_frame_is_laid_out_as_the_protocol_says() -> None:
    frame = seal(messages()[1], SIGN)
    length = int.from_bytes(frame[:2], "big")
    head, signature, body = frame[2 : 2 + length], frame[2 + length : 66 + length], frame[66 + length :]
    assert split_frame(frame) == (head, signature, body)
    assert verify(ALICE.peer_id, b"p2pfl-node/1", head, signature)
    assert msgpack.unpackb(body, strict_map_key=False) == {
        1: 2**64 - 1,
        2: 4,
        3: {3: "norm", 4: "not-accepted"},
    }
    plain = msgpack.unpackb(head, strict_map_key=False)
    assert list(plain) == list(range(1, 18))
    assert plain[4] == ALICE.public_key
    assert plain[5] == BOB.public_key
    assert plain[15] == hashlib.sha256(body).digest()


def test_what_was_taken_of_a_share_is_said_only_where_it_was_a_part() -> None:
    whole, part = Ack(their_incarnation=1, absorbed=2), Ack(their_incarnation=1, absorbed=2, taken={2: 0.25})
    assert msgpack.unpackb(bodies.encode_structured(Kind.ACK, whole), strict_map_key=False).keys() == {
        1,
        2,
        3,
    }
    data = bodies.encode_structured(Kind.ACK, part)
    assert msgpack.unpackb(data, strict_map_key=False)[4] == {2: 0.25}
    assert bodies.decode_structured(Kind.ACK, data) == part
    for odd in ({}, {2: 1}, {2: "a part"}, [0.25]):
        with pytest.raises(RemoteError, match="taken"):
            bodies.decode_structured(Kind.ACK, encoding.pack({1: 1, 2: 2, 3: {}, 4: odd}))


def test_the_same_message_is_always_the_same_bytes() -> None:
    assert seal(messages()[0], SIGN) == seal(messages()[0], SIGN)


def test_header_fields_are_numbered_in_the_order_of_the_dataclass() -> None:
    assert [field.name for field in fields(Header)] == [
        "version", "run", "epoch", "sender", "recipient", "incarnation", "boot_session", "kind", "round",
        "edge_seq", "schema_hash", "codec", "size", "raw_size", "digest", "weights", "issued_at",
    ]  # fmt: skip


def test_the_largest_bodies_fit_into_a_frame() -> None:
    largest: list[tuple[Body, Kind]] = [
        (Statement(content=bytes(bodies.MAX_STATEMENT_BYTES), salt=bytes(32)), Kind.STATEMENT),
        (Roster(certificates=(bytes(4096),) * 13), Kind.ROSTER),
        (
            Hello(
                agreement="x" * bodies.MAX_AGREEMENT_BYTES,
                begun=False,
                phase="waiting",
                initial_digest=b"",
                their_incarnation=0,
                absorbed=0,
                refused=tuple(range(64)),
                sent=0,
                acked=0,
            ),
            Kind.HELLO,
        ),
    ]
    for body, kind in largest:
        frame = seal(Message(header=header(kind), body=body), SIGN)
        assert len(frame) <= MAX_FRAME_BYTES
        assert decode_body(*open_frame(frame, verify_signed)) == body
    longest = vector_message().header
    assert len(encode_header(replace(longest, weights=(1.0,) * 8))) + 66 + INLINE_BODY_BYTES < MAX_FRAME_BYTES


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        (Kind.STATEMENT, Statement(content=bytes(bodies.MAX_STATEMENT_BYTES + 1))),
        (Kind.STATEMENT, Statement(content=b"", salt=bytes(33))),
        (Kind.ROSTER, Roster(certificates=(bytes(4097),))),
        (Kind.ROSTER, Roster(addresses=(b"",) * 257)),
        (Kind.ROSTER, Roster(certificates=(bytes(4096),) * 15)),
        (Kind.NOTICE, Notice(code="two words")),
        (Kind.ACK, Ack(their_incarnation=1, absorbed=-1)),
        (Kind.ACK, Ack(their_incarnation=2**64, absorbed=1)),
        (Kind.ACK, Ack(their_incarnation=1, absorbed=1, refused=dict.fromkeys(range(65), "norm"))),
        (Kind.ACK, Ack(their_incarnation=1, absorbed=1, refused={1: "no reason"})),
        (Kind.ACK, Ack(their_incarnation=1, absorbed=1, taken={1: 0.0})),
        (Kind.ACK, Ack(their_incarnation=1, absorbed=1, taken={1: 1.0})),
        (Kind.ACK, Ack(their_incarnation=1, absorbed=1, taken={1: float("nan")})),
        (Kind.ACK, Ack(their_incarnation=1, absorbed=1, taken={-1: 0.5})),
        (Kind.ACK, Ack(their_incarnation=1, absorbed=1, taken=dict.fromkeys(range(65), 0.5))),
        (Kind.NOTICE, Ack(their_incarnation=1, absorbed=1)),
        (Kind.SHARE, Notice(code="left")),
        (Kind.NOTICE, np.zeros(4, np.uint8)),
    ],
)
def test_what_a_receiver_would_refuse_is_not_sealed(kind: Kind, body: object) -> None:
    with pytest.raises(LocalError):
        seal(Message(header=header(kind), body=body), SIGN)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "changed",
    [
        {"round": -1},
        {"round": 2**53},
        {"edge_seq": 1.5},
        {"incarnation": 2**64},
        {"schema_hash": bytes(33)},
        {"schema_hash": bytes(31)},
        {"codec": "Top K"},
        {"digest": b""},
        {"size": 39, "raw_size": 39},
        {"raw_size": 41},
        {"weights": (1.0,) * 9},
        {"issued_at": float("nan")},
        {"version": 2},
        {"sender": PeerId("12D3")},
        {"run": "5e"},
        {"run": "no run"},
    ],
)
def test_a_header_beyond_its_limits_is_not_sealed(changed: dict[str, object]) -> None:
    message = vector_message()
    with pytest.raises(LocalError):
        seal(replace(message, header=replace(message.header, **changed)), SIGN)


def test_weights_may_be_anything_because_screening_judges_them() -> None:
    message = vector_message()
    odd = (float("nan"), float("-inf"), -0.0, 5e-324, *(1e308,) * 4)
    head, _ = open_frame(
        seal(replace(message, header=replace(message.header, weights=odd)), SIGN), verify_signed
    )
    assert np.array_equal(head.weights, odd, equal_nan=True)


def test_a_signer_that_gives_something_else_is_noticed() -> None:
    with pytest.raises(LocalError, match="64 bytes"):
        seal(messages()[0], lambda data: data)


@pytest.mark.parametrize(
    "message", [*messages(), vector_message()], ids=lambda message: message.header.kind.name
)
def test_no_bit_of_a_frame_can_be_changed_unnoticed(message: Message) -> None:
    frame = bytearray(seal(message, SIGN))
    for position in range(0, len(frame), 3):
        for bit in (1, 128):
            frame[position] ^= bit
            with pytest.raises(RemoteError):
                open_frame(bytes(frame), verify_signed)
            frame[position] ^= bit
    open_frame(bytes(frame), verify_signed)


def test_cut_and_extended_frames_are_refused() -> None:
    for message in (messages()[0], vector_message()):
        frame = seal(message, SIGN)
        for data in (frame[:-1], frame + b"\0", frame[:1], b"", b"\xff\xff", b"\0\0" + bytes(64), frame[:70]):
            with pytest.raises(RemoteError):
                open_frame(data, verify_signed)


def test_another_peers_signature_is_refused_and_the_sender_named() -> None:
    with pytest.raises(RemoteError, match="does not verify") as caught:
        open_frame(seal(messages()[0], signer_of(BOB)), verify_signed)
    assert caught.value.peer == ALICE.peer_id


@pytest.mark.parametrize(
    ("key", "value", "complaint"),
    [
        (1, 2, "protocol version 2"),
        (1, True, "protocol version"),
        (2, bytes(31), "run"),
        (3, -1, "epoch"),
        (4, bytes(38), "sender"),
        (5, bytes(31), "recipient"),
        (6, "7", "incarnation"),
        (7, 1.0, "boot session"),
        (8, 99, "kind 99 is unknown"),
        (8, 2**40, "kind"),
        (9, 2**53, "round"),
        (11, bytes(5), "schema hash"),
        (12, "none\n", "codec"),
        (12, "top-k", "codec"),  # a structured body is never compressed
        (13, 2**41, "size"),
        (14, 1, "raw size"),
        (15, b"", "digest"),
        (16, [1], "weight"),
        (16, [0.0] * 9, "weights"),
        (17, 5, "issued at"),
        (17, float("inf"), "issued at"),
        (17, None, "issued at"),
    ],
)
def test_a_well_signed_header_with_a_bad_field_is_refused(key: int, value: object, complaint: str) -> None:
    head, _, body = split_frame(seal(messages()[3], SIGN))
    good = encoding.unpack(head, "header", keys=range(1, 18), limit=4096)
    with pytest.raises(RemoteError, match=complaint):
        open_frame(resigned(msgpack.packb(good | {key: value}), body), verify_signed)


def test_a_header_of_four_kibibytes_is_the_longest() -> None:
    with pytest.raises(RemoteError, match="limit is 4096"):
        open_frame(resigned(b"\x81" * (MAX_HEADER_BYTES + 1)), verify_signed)


def test_a_share_without_a_body_is_refused() -> None:
    fields = document(vector_message().header) | {13: 0, 14: 0}
    with pytest.raises(RemoteError, match="no body"):
        open_frame(resigned(msgpack.packb(fields)), verify_signed)


def test_a_vector_that_is_not_the_one_announced_is_refused_with_its_sender() -> None:
    message = vector_message()
    for body in (bytes(40), bytes(39), b""):
        with pytest.raises(RemoteError) as caught:
            decode_body(message.header, body)
        assert caught.value.peer == ALICE.peer_id


@pytest.mark.parametrize(
    ("kind", "fields"),
    [
        (Kind.HELLO, {1: "x", 2: 1}),
        (Kind.ACK, {1: 0, 2: 0, 3: []}),
        (Kind.ACK, {1: 0, 2: 0, 3: {1: 5}}),
        (Kind.ACK, {1: 0, 2: 0, 3: {-1: "norm"}}),
        (Kind.STATEMENT, {1: "text", 2: b""}),
        (Kind.NOTICE, {1: "", 2: ""}),
        (Kind.NOTICE, {1: "left", 2: "x" * 1025}),
        (Kind.NOTICE, {1: "left", 2: "\x1b[2J"}),
        (Kind.ROSTER, {1: b"", 2: [], 3: []}),
        (Kind.ROSTER, {1: [[]], 2: [], 3: []}),
        (Kind.SHARE, {1: 1}),
    ],
)
def test_a_body_with_a_bad_field_is_refused(kind: Kind, fields: dict[int, object]) -> None:
    with pytest.raises(RemoteError):
        bodies.decode_structured(kind, msgpack.packb(fields))


@given(st.text(st.characters(), max_size=2000))
def test_a_notice_that_quotes_anything_can_be_sent(text: str) -> None:
    data = bodies.encode_structured(Kind.NOTICE, Notice(code="run-mismatch", text=text))
    notice = bodies.decode_structured(Kind.NOTICE, data)
    assert isinstance(notice, Notice)
    assert len(notice.text.encode()) <= bodies.MAX_TEXT_BYTES
    if text.isprintable() and len(text.encode()) <= bodies.MAX_TEXT_BYTES:
        assert notice.text == text


def test_a_notice_with_half_a_character_can_be_sent() -> None:
    data = bodies.encode_structured(Kind.NOTICE, Notice(code="run-mismatch", text="\ud800" + "é" * 1000))
    assert bodies.decode_structured(Kind.NOTICE, data) == Notice(code="run-mismatch", text="?" + "é" * 511)


def test_sequences_of_a_hello_must_rise() -> None:
    hello = messages()[0].body
    assert isinstance(hello, Hello)
    with pytest.raises(LocalError, match="rise"):
        bodies.encode_structured(Kind.HELLO, replace(hello, refused=(4, 2)))


@given(st.binary(max_size=400))
def test_any_bytes_are_a_frame_or_a_remote_error(data: bytes) -> None:
    with pytest.raises(RemoteError):
        open_frame(data, lambda *_: True)


@given(st.sampled_from([*messages(), vector_message()]), st.data())
@settings(max_examples=200)
def test_a_mutated_frame_is_a_frame_or_a_remote_error(message: Message, data: st.DataObject) -> None:
    frame = bytearray(seal(message, SIGN))
    for _ in range(data.draw(st.integers(1, 4))):
        start = data.draw(st.integers(0, len(frame)))
        end = data.draw(st.integers(start, min(start + 8, len(frame))))
        frame[start:end] = data.draw(st.binary(max_size=8))
    try:
        head, body = open_frame(bytes(frame), lambda *_: True)
        decode_body(head, body)
    except RemoteError:
        return


@given(st.sampled_from([message.header.kind for message in messages()]), st.binary(max_size=200))
def test_any_body_bytes_are_a_body_or_a_remote_error(kind: Kind, data: bytes) -> None:
    try:
        body = bodies.decode_structured(kind, data)
    except RemoteError:
        return
    assert bodies.decode_structured(kind, bodies.encode_structured(kind, body)) == body


_COUNTERS = st.integers(0, 2**53 - 1)


@given(
    st.builds(
        header,
        kind=st.just(Kind.STATE),
        epoch=_COUNTERS,
        incarnation=st.integers(0, 2**64 - 1),
        boot_session=st.integers(0, 2**64 - 1),
        round=_COUNTERS,
        edge_seq=_COUNTERS,
        codec=st.sampled_from(["top-k", "qsgd.8"]),
        size=st.integers(1, 2**40),
        raw_size=st.integers(0, 2**40),
        digest=st.binary(min_size=32, max_size=32),
        weights=st.lists(st.floats(allow_nan=False), max_size=8).map(tuple),
        issued_at=st.floats(allow_nan=False, allow_infinity=False),
    )
)
def test_every_header_within_the_limits_comes_back(head: Header) -> None:
    assert decode_header(encode_header(head)) == head
