"""Rate limits of the API: requests a minute, counted in the cache."""

import ipaddress
from time import time

from django.core.cache import cache

from ledger.api.problems import Problem

WINDOW = 60  # seconds in which requests are counted


def network(address: str) -> str:
    """Returns what is counted for `address`: itself, or the /64 of an IPv6 address, which one subscriber has.

    Empty if it is not an IP address.
    """
    try:
        ip = ipaddress.ip_address(address)
    except ValueError:
        return ""
    return str(ipaddress.ip_network((ip, 64), strict=False)) if ip.version == 6 else address


def limit(kind: str, who: str, most: int) -> None:
    """Counts a request of `who`, an address or a token as `kind` says. Raises Problem (429) beyond `most` in a minute.

    While Redis is down, each process counts for itself (backstagetest1.cache).
    """
    now = time()
    key = f"api-limit:{kind}:{who.replace('/', '-')}:{int(now // WINDOW)}"
    cache.add(key, 0, 2 * WINDOW)
    try:
        count = cache.incr(key)
    except ValueError:  # the key was evicted, or the cache does not answer
        return
    if count > most:
        wait = WINDOW - int(now % WINDOW)
        detail = f"More than {most} requests in a minute from this {kind}. Wait {wait} s."
        raise Problem(429, "rate-limited", detail, headers={"Retry-After": str(wait)})
