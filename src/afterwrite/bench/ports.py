"""Ports of loopback for servers that bind theirs only later, and again after each time they were ended.

A port that the kernel hands out (bind to 0, look, close) is of the range that it gives to connections that go out:
the next connection of any process may take it before the server is there, or while it is down.
"""

from __future__ import annotations

import random
import socket

from afterwrite.errors import AfterwriteError

# Below what Linux gives to outgoing connections by default (net.ipv4.ip_local_port_range, 32768 to 60999), and others
# from 49152 on (RFC 6335).
_PORTS = range(20_000, 32_768)
_HOST = "127.0.0.1"


def claim_port() -> socket.socket:
    """A claim on a TCP port of loopback where nobody listens; ``getsockname()[1]`` is its number.

    The claim is the UDP port of that number: while it stands open, nobody else who asks here gets the same one, and a
    server may bind, leave and bind it. Raises AfterwriteError when none is free.
    """
    for port in random.sample(_PORTS, len(_PORTS)):
        claim = socket.socket(type=socket.SOCK_DGRAM)
        try:
            claim.bind((_HOST, port))
            with socket.socket() as tried:
                tried.bind((_HOST, port))
        except OSError:
            claim.close()
        else:
            return claim
    raise AfterwriteError(f"no port from {_PORTS.start} to {_PORTS.stop - 1} is free on {_HOST}")
