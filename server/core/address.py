"""Network addresses as text: `host:port`, an IPv6 address in brackets."""

from __future__ import annotations

import re
from ipaddress import IPv6Address, ip_address

_SERVER = re.compile(r"(?:\[(?P<ipv6>[^\[\]]*)\]|[\w.-]+)(?::(?P<port>\d{1,5}))?")
_PORTS = range(1, 65_536)


def address(host: str, port: int) -> str:
    """Write an address."""
    return f"[{host}]:{port}" if _is_ipv6(host) else f"{host}:{port}"


def is_loopback(host: str) -> bool:
    """Whether only this machine itself is reached by this name or address."""
    try:
        return host.lower() == "localhost" or ip_address(host).is_loopback
    except ValueError:
        return False


def server_list(text: str) -> str:
    """Read one or more `host[:port]` with commas between them, and write them without what is superfluous.

    Raises:
        ValueError: it is none; the message does not repeat the text.
    """
    servers = [server.strip() for server in text.split(",") if server.strip()]
    if not servers:
        raise ValueError("must not be empty")
    for server in servers:
        if "://" in server:
            raise ValueError("a protocol before an address is not supported; use security.protocol")
        if not _is_server(server):
            raise ValueError(
                "expected host:port, or several with commas between them; a port is from 1 to 65535, and an IPv6 "
                "address stands in brackets: [::1]:9092"
            )
    return ",".join(servers)


def _is_server(text: str) -> bool:
    found = _SERVER.fullmatch(text)
    if found is None or (found["port"] is not None and int(found["port"]) not in _PORTS):
        return False
    return found["ipv6"] is None or _is_ipv6(found["ipv6"])


def _is_ipv6(text: str) -> bool:
    try:
        IPv6Address(text)
    except ValueError:
        return False
    return True
