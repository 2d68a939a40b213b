"""Bodies that come without a length: they are read, and held to the same limits as others."""

import http.client
import json
import re
import socket
from collections.abc import Iterable, Iterator
from io import BytesIO
from urllib.parse import urlencode

import pytest
from django.http import HttpRequest, HttpResponse
from django.test import RequestFactory

from accounts.models import User
from backstagetest1.bodies import LIMIT, BodyMiddleware
from ledger.models import Release
from tests.accounts.test_avatars import picture
from tests.support.ledgers import token
from tests.support.servers import Gunicorn

BUILD = {"version": "1.0", "commit": "4f2a9c1", "built_at": "2026-03-01T12:00:00Z"}
PASSWORD = "correct-horse-42"


@pytest.fixture(scope="module")
def server(django_db_setup: None) -> Iterator[Gunicorn]:
    with Gunicorn(WEB_CONCURRENCY="1", EMAIL_VERIFICATION="none") as server:
        yield server


def pieces(body: bytes, size: int = 1000) -> Iterator[bytes]:
    return (body[start : start + size] for start in range(0, len(body), size))


def send(server: Gunicorn, path: str, body: Iterable[bytes], **headers: str) -> tuple[http.client.HTTPResponse, bytes]:
    """POSTs `body` in chunks of its own pieces."""
    link = http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)
    given = {name.replace("_", "-"): value for name, value in headers.items()}
    link.request("POST", path, body, given | {"Transfer-Encoding": "chunked"}, encode_chunked=True)
    response = link.getresponse()
    text = response.read()
    link.close()
    return response, text


def api(server: Gunicorn, body: bytes) -> tuple[http.client.HTTPResponse, bytes]:
    headers = {"Authorization": f"Bearer {token()}", "Content_Type": "application/json"}
    return send(server, "/api/releases", pieces(body), **headers)


@pytest.mark.django_db(transaction=True)
def test_json_in_chunks_is_read_by_the_api(server: Gunicorn) -> None:
    response, text = api(server, json.dumps(BUILD | {"message": "x" * 400}).encode())
    assert response.status == 201, text
    assert Release.objects.get().message == "x" * 400


@pytest.mark.django_db(transaction=True)
def test_the_limit_of_the_api_holds_for_chunks(server: Gunicorn) -> None:
    response, text = api(server, json.dumps(BUILD | {"message": "x" * 200_000}).encode())
    assert (response.status, response.headers["Content-Type"]) == (413, "application/problem+json")
    assert json.loads(text)["type"].endswith("#too-large")
    assert not Release.objects.exists()


class Visitor:
    """A browser with cookies that sends forms in chunks."""

    def __init__(self, server: Gunicorn) -> None:
        self.server, self.cookies = server, dict[str, str]()

    def form(self, path: str) -> str:
        """The token of the form at `path`."""
        link = http.client.HTTPConnection("127.0.0.1", self.server.port, timeout=30)
        link.request("GET", path, headers={"Cookie": self.cookie})
        response = link.getresponse()
        found = re.search(r'csrfmiddlewaretoken" value="(\w+)"', response.read().decode())
        self.keep(response)
        link.close()
        assert found
        return found[1]

    @property
    def cookie(self) -> str:
        return "; ".join(f"{name}={value}" for name, value in self.cookies.items())

    def keep(self, response: http.client.HTTPResponse) -> None:
        for line in response.headers.get_all("Set-Cookie", []):
            name, _, value = line.partition(";")[0].partition("=")
            self.cookies[name] = value

    def post(self, path: str, body: bytes, kind: str) -> tuple[http.client.HTTPResponse, bytes]:
        answer = send(self.server, path, pieces(body, 50_000), Cookie=self.cookie, Content_Type=kind)
        self.keep(answer[0])
        return answer

    def sign_up(self) -> None:
        key = self.form("/accounts/signup/")
        words = {"csrfmiddlewaretoken": key, "email": "chunk@example.com", "password1": PASSWORD, "password2": PASSWORD}
        response, text = self.post("/accounts/signup/", urlencode(words).encode(), "application/x-www-form-urlencoded")
        assert response.status == 302, text

    def send_picture(self, data: bytes) -> tuple[http.client.HTTPResponse, bytes]:
        key = self.form("/accounts/profile/")
        body = (
            f'--b\r\nContent-Disposition: form-data; name="csrfmiddlewaretoken"\r\n\r\n{key}\r\n'
            '--b\r\nContent-Disposition: form-data; name="avatar"; filename="me.png"\r\n'
            "Content-Type: image/png\r\n\r\n"
        ).encode()
        return self.post("/accounts/profile/", body + data + b"\r\n--b--\r\n", "multipart/form-data; boundary=b")


@pytest.mark.django_db(transaction=True)
def test_forms_and_pictures_in_chunks_are_read_and_held_to_their_limits(server: Gunicorn) -> None:
    visitor = Visitor(server)
    visitor.sign_up()
    person = User.objects.get(email="chunk@example.com")
    response, text = visitor.send_picture(picture())
    assert response.status == 302, text
    person.refresh_from_db()
    kept = person.avatar.name
    assert kept
    response, text = visitor.send_picture(bytes(6_000_000))
    assert "This file is too large (6.0 MB)." in text.decode()
    response, text = visitor.send_picture(bytes(LIMIT + 1))
    assert response.status == 413 and b"The upload is too large" in text
    person.refresh_from_db()
    assert person.avatar.name == kept


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("broken", [b"5\r\nabcde\r\nx\r\n", b"fffff\r\nabc", b"5\r\nabcdeXX0\r\n\r\n"])
def test_a_body_that_breaks_off_or_is_malformed_is_a_bad_request(server: Gunicorn, broken: bytes) -> None:
    head = "POST /accounts/login/ HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"
    with socket.create_connection(("127.0.0.1", server.port), timeout=30) as link:
        link.sendall(head.encode() + broken)
        link.shutdown(socket.SHUT_WR)
        assert link.recv(100).split()[1] == b"400"
    assert "Traceback" not in server.log


def test_a_server_that_cannot_tell_where_a_body_ends_asks_for_its_length() -> None:
    request = RequestFactory().generic("POST", "/", b"x", headers={"transfer-encoding": "chunked"})
    response = BodyMiddleware(lambda request: HttpResponse())(request)
    assert response.status_code == 411


def test_a_request_without_a_body_stays_one() -> None:
    seen: list[HttpRequest] = []

    def view(request: HttpRequest) -> HttpResponse:
        seen.append(request)
        return HttpResponse()

    request = RequestFactory().get("/")
    request.META |= {"wsgi.input_terminated": True, "wsgi.input": BytesIO()}
    assert BodyMiddleware(view)(request).status_code == 200
    assert seen[0].body == b"" and not seen[0].META.get("CONTENT_LENGTH")
