"""The numbers that bound a transport: connections, places, seconds, bytes."""

from dataclasses import dataclass

from p2pfl.errors import ConfigError

__all__ = ["Limits"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What one transport lets others take of it.  Seconds end in `_s`; the defaults suit tens of neighbours.

    Raises ConfigError when a number is not positive (`upload_mbit_s` may be 0: no limit).
    """

    # Two thirds of go-libp2p's high watermark (400 in kubo): neighbours number tens, and the rest is churn.
    max_connections: int = 256
    # A simultaneous dial and a restart overlap for a moment, so one peer may briefly hold more than one.
    connections_per_peer: int = 4
    # Handshakes under way from one address: 260 silent sockets once held every slot of a host.
    unupgraded_per_address: int = 32
    # A handshake takes 8 ms on a LAN; slow links and busy machines get 600 times that.
    inbound_upgrade_s: float = 5.0
    # Control, bodies, ping and identify, twice over.
    streams_per_connection: int = 16
    # All addresses of one peer together; an attempt at the next address starts half a second after the last.
    dial_s: float = 10.0
    # From an open stream to both hellos in.
    hello_s: float = 5.0
    # A frame that cannot be queued or written for so long means the peer no longer reads.
    send_s: float = 10.0
    # 64 frames of 64 KiB: at most 4 MiB queued for one peer.
    backlog_frames: int = 64
    # Events the node has not taken yet: at most 8 MiB of frames.
    incoming_events: int = 128
    # Silence is broken by a ping, and ends the connection after four of them.
    keepalive_s: float = 10.0
    silence_s: float = 40.0
    # Strangers at once, in all and from one address, and how long each may stay.
    lobby_places: int = 8
    lobby_per_address: int = 4
    lobby_s: float = 5.0
    # Bodies kept for one peer: two unresolved shares, a state, one being replaced, and as many of knowledge.
    offers_per_peer: int = 8
    # An offer not fetched within an hour belongs to a round long gone.
    offer_s: float = 3600.0
    # Of all bodies together, in 10^6 bits a second; 0 is unlimited.
    upload_mbit_s: float = 0.0
    # TLS handshakes under way on the bulk port, in all and from one address.
    bulk_half_open: int = 32
    bulk_half_open_per_address: int = 8
    bulk_handshake_s: float = 5.0
    # Reaching one bulk address; a firewall that drops instead of refusing costs this once a connection.
    bulk_dial_s: float = 3.0
    # A body that makes no progress for so long is cut and resumed by another way.
    stall_s: float = 10.0
    # Pauses before a host that crashed is built again: doubling from the first to the last.
    rebuild_first_s: float = 0.1
    rebuild_last_s: float = 5.0

    def __post_init__(self) -> None:
        for name in self.__slots__:
            value = getattr(self, name)
            if not (value > 0 or (value == 0 and name == "upload_mbit_s")):
                raise ConfigError(f"transport limit {name} = {value!r} must be above zero")
