"""What is believed of a request: its id, its sender's address and its scheme, and only from a trusted proxy."""

import re
from typing import Any

import pytest
from django.http import HttpRequest, HttpResponse
from django.test import Client, RequestFactory
from hypothesis import given
from hypothesis import strategies as st

from backstagetest1.proxy import ProxyMiddleware, client_address
from tests.support.servers import ROOT

PROXY, STRANGER = "127.0.0.1", "203.0.113.9"


def passed_on(peer: str, **headers: str) -> tuple[HttpRequest, HttpResponse]:
    """The request as the rest of the house sees it, and the response."""
    seen: list[HttpRequest] = []

    def view(request: HttpRequest) -> HttpResponse:
        seen.append(request)
        return HttpResponse()

    meta: dict[str, Any] = {"REMOTE_ADDR": peer} | headers
    response = ProxyMiddleware(view)(RequestFactory().get("/", **meta))
    assert isinstance(response, HttpResponse)
    return seen[0], response


def test_a_trusted_proxys_word_is_taken() -> None:
    request, response = passed_on(
        PROXY, HTTP_X_REQUEST_ID="abcd-1234", HTTP_X_FORWARDED_FOR="198.51.100.7", HTTP_X_FORWARDED_PROTO="https"
    )
    assert response["X-Request-ID"] == request.META["REQUEST_ID"] == "abcd-1234"
    assert request.META["REMOTE_ADDR"] == "198.51.100.7"
    assert request.is_secure()


def test_a_strangers_word_is_not() -> None:
    request, response = passed_on(
        STRANGER, HTTP_X_REQUEST_ID="abcd-1234", HTTP_X_FORWARDED_FOR="198.51.100.7", HTTP_X_FORWARDED_PROTO="https"
    )
    assert response["X-Request-ID"] == request.META["REQUEST_ID"] != "abcd-1234"
    assert request.META["REMOTE_ADDR"] == STRANGER
    assert not request.is_secure()


@pytest.mark.parametrize(("peer", "believed"), [(PROXY, True), (STRANGER, False)])
def test_a_trace_goes_on_only_from_a_trusted_proxy(peer: str, believed: bool) -> None:
    request, _ = passed_on(peer, HTTP_TRACEPARENT="00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01")
    assert ("HTTP_TRACEPARENT" in request.META) is believed


def test_nginx_passes_on_a_trace_of_its_load_balancers_and_of_nobody_else() -> None:
    text = (ROOT / "nginx.conf").read_text()
    for header, variable in (("traceparent", "trace_parent"), ("tracestate", "trace_state")):
        assert f"proxy_set_header {header} ${variable};" in text
        (body,) = re.findall(rf"map \$from_balancer \${variable} {{(.*?)}}", text, re.S)
        assert re.findall(r"\S+ \S+(?=;)", body) == ['default ""', f"1 $http_{header}"]


def test_a_socket_is_a_proxy_only_where_it_is_named(settings: Any) -> None:
    assert passed_on("", HTTP_X_FORWARDED_FOR="198.51.100.7")[0].META["REMOTE_ADDR"] == "198.51.100.7"
    settings.TRUSTED_PROXIES = ["10.0.0.0/8"]
    assert passed_on("", HTTP_X_FORWARDED_FOR="198.51.100.7")[0].META["REMOTE_ADDR"] == ""


@pytest.mark.parametrize(
    ("forwarded_for", "client"),
    [
        ("", PROXY),
        ("198.51.100.7", "198.51.100.7"),
        ("1.2.3.4, 198.51.100.7", "198.51.100.7"),  # the client wrote the first one itself
        ("198.51.100.7, 127.0.0.1", "198.51.100.7"),  # two proxies of ours
        ("junk", PROXY),
        ("198.51.100.7, junk", PROXY),
        ("2001:db8::1", "2001:db8::1"),
        ("203.0.113.7:50007", "203.0.113.7"),
        ("[2001:db8::1]:50007", "2001:db8::1"),
        ("[2001:db8::1]", "2001:db8::1"),
        ("2001:db8::1:443", "2001:db8::1:443"),  # without brackets the last group is no port
        ("2001:DB8:0::1", "2001:db8::1"),
        ("[::ffff:203.0.113.7]:50007", "203.0.113.7"),
        ('"[2001:db8::1]:50007"', "2001:db8::1"),
        ("fe80::1%eth0", "fe80::1"),
        ("[fe80::1%25eth0]:1", "fe80::1"),
        ("203.0.113.7:1, 127.0.0.1:2, [::1]:3", "203.0.113.7"),
        ("198.51.100.7, , ", "198.51.100.7"),
        (" , ,", PROXY),
        ("for=198.51.100.7", PROXY),
        ("unknown", PROXY),
        ("_hidden", PROXY),
        ("203.0.113.7:", PROXY),
        ("203.0.113.7:http", PROXY),
        ("203.0.113.7:500070", PROXY),
        ("[203.0.113.7", PROXY),
        ("2001:db8::1]:1", PROXY),
        ("10.1", PROXY),
    ],
)
def test_the_client_is_the_last_hop_that_is_no_proxy_of_ours(forwarded_for: str, client: str) -> None:
    assert client_address(PROXY, forwarded_for) == client


@pytest.mark.parametrize("address", ["203.0.113.7", "[2001:db8::7]"])
def test_a_client_is_one_whatever_its_port_and_zone(address: str) -> None:
    hops = [f"{address}:{port}" for port in (1, 50007, 65535)]
    assert len({client_address(PROXY, hop) for hop in [address, *hops]}) == 1
    assert len({client_address(PROXY, f"fe80::1%{zone}") for zone in ("1", "eth0", "any.thing")}) == 1


def test_a_peer_with_a_zone_is_its_address_alone() -> None:
    assert passed_on("fe80::1%eth0")[0].META["REMOTE_ADDR"] == "fe80::1"


def test_an_ipv4_client_of_a_dual_stack_socket_is_one() -> None:
    assert passed_on("::ffff:203.0.113.9")[0].META["REMOTE_ADDR"] == STRANGER
    mapped = passed_on("::ffff:127.0.0.1", HTTP_X_FORWARDED_FOR="::ffff:198.51.100.7")[0]
    assert mapped.META["REMOTE_ADDR"] == "198.51.100.7"


@given(st.text(st.characters(codec="latin-1")))
def test_an_id_from_outside_is_sane_or_replaced(identifier: str) -> None:
    request, response = passed_on(PROXY, HTTP_X_REQUEST_ID=identifier)
    kept = request.META["REQUEST_ID"]
    assert re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{7,127}", kept)
    assert response["X-Request-ID"] == kept


@given(st.text(st.characters(codec="latin-1")), st.text(st.characters(codec="latin-1")))
def test_no_header_breaks_the_edge(forwarded_for: str, proto: str) -> None:
    request, _ = passed_on(PROXY, HTTP_X_FORWARDED_FOR=forwarded_for, HTTP_X_FORWARDED_PROTO=proto)
    assert request.scheme in ("http", "https")


@pytest.mark.parametrize(
    "path",
    [
        "/health/",
        "/health/live/",
        "/health/ready/",
        "/metrics",
        "/",
        "/accounts/login/",
        "/api/environments",
        "/nowhere",
    ],
)
@pytest.mark.django_db
def test_every_answer_is_for_this_site_to_embed_and_not_to_be_sniffed(path: str, settings: Any) -> None:
    settings.SECURE_HSTS_SECONDS, settings.SECURE_HSTS_INCLUDE_SUBDOMAINS = 31_536_000, True
    for host in ("testserver", "evil.example"):
        plain = Client(headers={"host": host}).get(path)
        assert plain["X-Content-Type-Options"] == "nosniff"
        assert plain["Cross-Origin-Resource-Policy"] == "same-origin"
        assert "Strict-Transport-Security" not in plain, "it counts over TLS alone (RFC 6797, section 7.2)"
        secure = Client(headers={"host": host}).get(path, secure=True)
        assert secure["Strict-Transport-Security"].startswith("max-age=31536000")


def test_what_nginx_answers_itself_has_the_headers_too() -> None:
    """nginx passes the headers of a level on only where a location has none of its own."""
    site = (ROOT / "nginx.conf").read_text().rpartition("    server {")[2]
    places = [place for place in site.split("\n        location ") if place.count("add_header") > 1]
    assert len(places) >= 3
    for place in places:
        for header in ("X-Content-Type-Options nosniff", "Cross-Origin-Resource-Policy same-origin"):
            assert f"add_header {header} always;" in place, place
