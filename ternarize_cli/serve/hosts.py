"""Which names a server may be called by, so that web pages can't reach one that only this machine should.

A browser lets any page send requests to 127.0.0.1, but keeps the answers from it: the server never sends CORS headers,
whatever a request's Origin is. A page gets around that if the name of its own host begins to mean 127.0.0.1 (DNS
rebinding). Then the Host header has that name, and the server refuses it.
"""

import ipaddress
import re

__all__ = ["is_loopback", "names_of_loopback"]

_USUAL = ("localhost", "127.0.0.1", "::1")


def is_loopback(address: str) -> bool:
    """Returns whether an IP address is reached from this machine only."""
    return ipaddress.ip_address(address).is_loopback


def names_of_loopback(*own: str) -> re.Pattern[bytes]:
    """Makes the pattern of Host headers that a server on a loopback address answers.

    Args:
        own: names and addresses that the server was told to listen on, beside localhost, 127.0.0.1 and ::1.
    """
    names = (re.escape(f"[{name}]" if ":" in name else name) for name in {*_USUAL, *own})
    return re.compile(rf"({'|'.join(sorted(names))})(:[0-9]*)?".encode(), re.IGNORECASE)
