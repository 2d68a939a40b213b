"""No address takes a method that it is not for: what a view does not ask for would be answered as a GET."""

import re
from collections.abc import Iterator

import pytest
from django.test import Client
from django.urls import URLPattern, URLResolver, get_resolver

from accounts.models import User

pytestmark = pytest.mark.django_db


def addresses(patterns: list[URLPattern | URLResolver], before: str = "") -> Iterator[str]:
    """An address of every route of the site; what varies in it is 1."""
    for each in patterns:
        route = before + re.sub(r"<\w+(:\w+)?>|\(\?P<\w+>[^)]*\)", "1", str(each.pattern)).strip("^$")
        if isinstance(each, URLResolver):
            yield from addresses(each.url_patterns, route)
        else:
            yield "/" + re.sub(r"[\^$?]|\\Z", "", route)


MEANT = {(method, "/api/environments/1/lock") for method in ("PUT", "DELETE")}


def test_no_address_takes_a_method_that_it_is_not_for() -> None:
    stranger, root = Client(), Client()
    root.force_login(User.objects.create_superuser("root@example.com", "x"))
    found = sorted(set(addresses(get_resolver().url_patterns)))
    assert {"/status/feed.atom", "/api/openapi.json", "/accounts/login/", "/admin/statuspage/incident/"} <= set(found)
    taken = []
    for address in found:
        for method in ("OPTIONS", "TRACE", "PUT", "PATCH", "DELETE", "BREW"):
            for client in (stranger, root) if (method, address) not in MEANT else ():
                answer = client.generic(method, address)
                if answer.status_code not in (404, 405) or answer.status_code == 405 and method in answer["Allow"]:
                    taken.append(f"{method} {address}: {answer.status_code}")
    assert not taken, "\n".join(taken)


# The API asks for a token of its own; probes and metrics take no form at all.
WITHOUT_A_FORM = ("/api/", "/health/", "/metrics")


def test_no_address_takes_a_form_without_its_csrf_token() -> None:
    root = Client(enforce_csrf_checks=True)
    root.force_login(User.objects.create_superuser("root@example.com", "x"))
    found = sorted(set(addresses(get_resolver().url_patterns)))
    assert {"/tokens/", "/freezes/", "/members/invite/", "/accounts/login/"} <= set(found)
    taken = {each: root.post(each).status_code for each in found if not each.startswith(WITHOUT_A_FORM)}
    assert {each: code for each, code in taken.items() if code not in (403, 404)} == {}
