"""Addresses: which can be listened at, which can be dialled, and where this machine can be found."""

import socket

from multiaddr import Multiaddr
from multiaddr.exceptions import Error as MultiaddrError
from multiaddr.utils import get_network_addrs, get_thin_waist_addresses

from p2pfl.errors import ConfigError
from p2pfl.ids import PeerId

__all__ = ["tcp_multiaddr", "refuse_a_taken_port", "own_addresses", "bulk_addresses", "dialable"]

# More addresses than anyone has; the rest are ignored.
_MOST_ADDRESSES = 16
# A hello has room for so many, and nobody tries more.
_MOST_BULK_ADDRESSES = 8
# What identifies the machine in a multiaddr that TCP can dial.
_HOST_PROTOCOLS = frozenset({"ip4", "ip6", "dns", "dns4", "dns6", "dnsaddr"})
_IP_VERSION_OF_ANY = {"0.0.0.0": 4, "::": 6}  # noqa: S104 - recognised here, not bound


def tcp_multiaddr(text: str) -> Multiaddr:
    """`text` as a multiaddr over TCP, /p2p/ID and all.  Raises ConfigError."""
    try:
        address = Multiaddr(text)
        address.value_for_protocol("tcp")
    except (MultiaddrError, ValueError) as error:
        raise ConfigError(f"{text!r} is not an address such as /ip4/0.0.0.0/tcp/4001: {error}") from error
    return address


def refuse_a_taken_port(address: Multiaddr) -> None:
    """Raise ConfigError when `address` cannot be listened at, or when someone else does already.

    py-libp2p listens with SO_REUSEPORT: a second node on a port would get half of the first one's calls.
    """
    version = 6 if str(address).startswith("/ip6/") else 4
    try:
        host = address.value_for_protocol(f"ip{version}")
        port = int(address.value_for_protocol("tcp") or 0)
    except (MultiaddrError, ValueError) as error:
        raise ConfigError(
            f"cannot listen at {address}; write /ip4/.../tcp/... or /ip6/.../tcp/..."
        ) from error
    with socket.socket(socket.AF_INET6 if version == 6 else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise ConfigError(f"cannot listen at {address}: {error.strerror}; choose another") from error


def own_addresses(
    peer: PeerId, listening: tuple[Multiaddr, ...], announce: tuple[Multiaddr, ...]
) -> tuple[str, ...]:
    """Where `peer`, which is us, can be dialled, ending in /p2p/ID: announced first, loopback last.

    0.0.0.0 and :: become the addresses of the interfaces.
    """
    found = {str(one): one for address in listening for one in get_thin_waist_addresses(address)}
    local = sorted(found, key=lambda one: one.startswith(("/ip4/127.", "/ip6/::1/")))
    texts = [*map(str, announce), *local]
    return tuple(dict.fromkeys(one if "/p2p/" in one else f"{one}/p2p/{peer}" for one in texts))


def bulk_addresses(bound: tuple[tuple[str, int], ...], announce: tuple[Multiaddr, ...]) -> tuple[str, ...]:
    """Where sockets bound to (host, port) can be reached, as "host:port": interfaces, then announced."""
    hosts: list[tuple[str, int]] = []
    for host, port in bound:
        version = _IP_VERSION_OF_ANY.get(host)
        hosts += [(one, port) for one in ((host,) if version is None else get_network_addrs(version) or ())]
        hosts += [(str(one).split("/")[2], port) for one in announce]
    texts = (f"[{host}]:{port}" if ":" in host else f"{host}:{port}" for host, port in hosts)
    return tuple(dict.fromkeys(texts))[:_MOST_BULK_ADDRESSES]


def dialable(peer: PeerId, addresses: tuple[str, ...]) -> tuple[Multiaddr, ...]:
    """The addresses that plain TCP can dial, without /p2p/ID; those of another peer or of no sense left out.

    >>> [str(one) for one in dialable(PeerId("12D3"), ("/ip4/10.0.0.1/tcp/4001", "nonsense"))]
    ['/ip4/10.0.0.1/tcp/4001']
    """
    found: dict[str, Multiaddr] = {}
    for text in addresses[:_MOST_ADDRESSES]:
        try:
            whole = Multiaddr(text)
            protocols = [protocol.name for protocol in whole.protocols()]
            if len(protocols) not in (2, 3) or protocols[0] not in _HOST_PROTOCOLS or protocols[1] != "tcp":
                continue
            if protocols[2:] not in ([], ["p2p"]) or whole.value_for_protocol("tcp") == "0":
                continue
            if protocols[2:] and whole.value_for_protocol("p2p") != peer:
                continue
            address = Multiaddr("/" + "/".join(text.strip("/").split("/")[:4]))
        except (MultiaddrError, ValueError):
            continue
        found[str(address)] = address
    return tuple(found.values())
