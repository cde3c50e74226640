"""What callers may take up of the key service."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class CallLimits:
    """What callers may take up. "By address" is as `Places` has it."""

    calls_max: int = 1000
    """At a time of methods that bridges may call, and that are no streams, in all and by address."""
    admin_calls_max: int = 250
    """Likewise of those that admins alone may call: whoever has stolen the bridge token takes none of them."""
    connection_calls_max: int = 100
    """At a time on one connection; a caller's further calls wait at its end. RFC 9113 asks for no less."""
    connections_max: int = 10_000
    """At a time, in all and by address, or fewer where the system allows fewer open files; a bridge has five, and each
    takes 15 KiB."""
    connection_idle_seconds: float = 300.0
    """Without a call, until it is closed; whoever waits for nothing reconnects at its next call. And of a stream of
    StreamValidate without a batch, until that is ended."""
    handshake_seconds: float = 20.0
    """For TLS, and a caller's first frame."""
    holders_max: int = 5000
    """Of leases, in all and by address, and as many streams of Watch. One counts until its lease is over."""
    validate_streams_max: int = 1000
    """At a time, in all and by address; whoever finds no place makes a call for each batch instead."""
    open_calls_max: int = 100
    """At a time of each method that needs no token, in all and by address."""
    refused_calls_max: int = 1000
    """Whose refusal is under way, in all and by address; whoever makes more loses its connection."""
    turns_per_second: float = 50.0
    """Of callers without a token from one address: refusals, and responses of methods that need none. The first
    second's are taken at once, and each further one in its time."""
    turn_seconds_max: float = 1.0
    """To wait for a turn; the connection of one that would wait longer is closed."""
    untaken_seconds: float = 5.0
    """For a caller to read how its call ended, or else it loses its connection."""
    call_seconds: float = 30.0
    """A call that is no stream; the database answers or fails well within this."""
    open_stream_seconds: float = 600.0
    """A stream that needs no token; whoever watches the service's health opens another."""
    keepalive_seconds: float = 30.0
    """Between pings, which find callers that vanished without a word."""
    keepalive_timeout_seconds: float = 10.0
    """For the response to such a ping."""
    ping_seconds_min: float = 10.0
    """A caller that pings more often while nothing is sent is cut off."""
    look_seconds: float = 1.0
    """Between two looks at how many connections there are."""
    drain_seconds: float = 10.0
    """For the calls under way when the service stops."""
    last_responses_seconds: float = 0.5
    """For what is answered then to be sent."""
