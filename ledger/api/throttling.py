"""How often one may ask the API: requests in a minute, counted in the cache."""

import ipaddress
from time import time

from django.core.cache import cache

from ledger.api.problems import Problem

WINDOW = 60  # seconds in which requests are counted


def network(address: str) -> str:
    """Whom `address` stands for: itself, and of IPv6 its /64, which is what one subscriber has."""
    try:
        ip = ipaddress.ip_address(address)
    except ValueError:
        return ""
    return str(ipaddress.ip_network((ip, 64), strict=False)) if ip.version == 6 else address


def limit(kind: str, who: str, most: int) -> None:
    """Counts a request of `who`. Raises Problem (429) beyond `most` in a minute.

    While Redis is down, each process counts for itself (backstagetest1.cache).
    """
    now = time()
    key = f"api-limit:{kind}:{who.replace('/', '-')}:{int(now // WINDOW)}"
    cache.add(key, 0, 2 * WINDOW)
    try:
        count = cache.incr(key)
    except ValueError:  # lost since, or never taken
        return
    if count > most:
        wait = WINDOW - int(now % WINDOW)
        detail = f"More than {most} requests in a minute from this {kind}. Go on in {wait} s."
        raise Problem(429, "rate-limited", detail, headers={"Retry-After": str(wait)})
