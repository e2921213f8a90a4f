"""Where a server listens."""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import IPv4Address, ip_address, ip_network
from urllib.parse import urlsplit

from glmd_runtime.errors import UsageError

LOCAL = "127.0.0.1"


@dataclass(frozen=True)
class Address:
    """host, a name or an IP address; port, 0 for any that is free."""

    host: str
    port: int

    @property
    def local(self) -> bool:
        """Only this machine can reach it."""
        return is_local(self.host)

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def parse_address(text: str) -> Address:
    """`PORT` (of 127.0.0.1) or `HOST:PORT`; IPv6 as `[::1]:PORT`. Raises: UsageError for anything else."""
    try:
        parts = urlsplit(f"//{LOCAL}:{text}" if text.isdigit() else f"//{text}")
        host, port = parts.hostname, parts.port
    except ValueError:
        host = port = None
    if not host or port is None or f"//{Address(host, port)}" not in (f"//{text}".lower(), f"//{LOCAL}:{text}"):
        raise UsageError(f"Expected PORT or HOST:PORT, like 8080 or 0.0.0.0:8080; got {text!r}. Correct it.")
    return Address(host, port)


def is_local(host: str) -> bool:
    return host == "localhost" or (is_ip(host) and ip_address(host).is_loopback)


def is_ip(host: str) -> bool:
    try:
        ip_address(host)
    except ValueError:
        return False
    return True


def neighbourhood(host: str) -> str:
    """Who counts as one peer: an IPv4 address, and of IPv6 the 64 bits that one network has."""
    ip = ip_address(host.partition("%")[0])
    if isinstance(ip, IPv4Address) or ip.ipv4_mapped:  # which is how IPv4 comes to a socket of IPv6
        return str(getattr(ip, "ipv4_mapped", None) or ip)
    return str(ip_network((int(ip), 64), strict=False))
