import importlib
import re
from pathlib import Path

import pytest
from msgspec.structs import fields
from signed_messages import ALICE, header

from p2pfl.events import Header, Hello, Kind, Message, Notice
from p2pfl.net.discovery import ADDRESS_DOMAIN, encode_record, sign_record
from p2pfl.net.messages import DOMAIN, seal, split_frame
from p2pfl.trust.amendments import AMENDMENT_DOMAIN
from p2pfl.trust.certificates import CERTIFICATE_DOMAIN, REVOCATION_DOMAIN
from p2pfl.trust.envelope import signer_of
from p2pfl.trust.successions import SUCCESSION_DOMAIN

PAGE = (Path(__file__).parents[2] / "docs" / "protocol.md").read_text()
MODULES = [
    importlib.import_module(f"p2pfl.{name}")
    for name in (
        "net.transport",
        "encoding",
        "net.bodies",
        "net.messages",
        "net.memory",
        "net.discovery",
        "net.libp2p_wire",
        "trust.audit",
        "trust.certificates",
        "trust.successions",
        "trust.amendments",
        "gossip.links",
    )
]


def rows(section: str) -> list[list[str]]:
    """The cells of every table row between a line that begins with `section` and the next such heading."""
    start = PAGE.index(section)
    end = PAGE.find("\n## ", start + 1)
    found = [line for line in PAGE[start : end if end > 0 else None].splitlines() if line.startswith("| ")]
    return [[cell.strip().strip("`") for cell in line.strip("|").split(" | ")] for line in found]


def test_header_keys_are_those_of_the_code() -> None:
    table = [row for row in rows("## Frames") if row[0].isdecimal()]
    assert [row[1].strip("`") for row in table] == [field.name for field in fields(Header)]
    assert [int(row[0]) for row in table] == list(range(1, 18))


def test_hello_keys_are_those_of_the_code() -> None:
    table = [row for row in rows("## Message bodies") if row[0].isdecimal()]
    assert [row[1] for row in table] == [field.name for field in fields(Hello)]
    assert [int(row[0]) for row in table] == list(range(1, 15))


def test_kinds_have_the_numbers_of_the_code() -> None:
    for kind in Kind:
        assert f"{int(kind)} {kind.name}" in PAGE


@pytest.mark.parametrize("row", rows("## Limits")[1:], ids=lambda row: row[0])
def test_limits_are_those_of_the_code(row: list[str]) -> None:
    stated = int(row[1].replace(",", ""))
    values = {getattr(module, row[0]) for module in MODULES if hasattr(module, row[0])}
    assert values == {stated}


def test_domains_are_those_of_the_code() -> None:
    for domain in (
        DOMAIN,
        ADDRESS_DOMAIN,
        CERTIFICATE_DOMAIN,
        REVOCATION_DOMAIN,
        SUCCESSION_DOMAIN,
        AMENDMENT_DOMAIN,
    ):
        assert domain.decode() in PAGE


def test_every_anchor_leads_somewhere() -> None:
    headings = re.findall(r"^## (.*)$", PAGE, re.MULTILINE)
    anchors = {re.sub(r"[^a-z0-9 -]", "", text.lower()).replace(" ", "-") for text in headings}
    assert set(re.findall(r"\(#([^)]*)\)", PAGE)) <= anchors


def test_the_example_is_what_the_code_makes() -> None:
    blocks = [block.replace("\n", "") for block in re.findall(r"[0-9a-f\n]{17,}", PAGE)]
    message = Message(header=header(Kind.NOTICE, incarnation=5), body=Notice(code="left"))
    frame = seal(message, signer_of(ALICE))
    assert frame.hex() == "00b6" + "".join(part.hex() for part in split_frame(frame))
    record = sign_record(
        ALICE.peer_id, ("/ip4/192.0.2.1/tcp/4911",), 1_790_000_000.0, lambda data: ALICE.sign(b"", data)
    )
    text = "".join(blocks)
    for part in (*split_frame(frame), encode_record(record)):
        assert part.hex() in text
