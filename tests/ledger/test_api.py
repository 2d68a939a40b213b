"""The API as a pipeline uses it, and as somebody does who should not."""

import json
import logging
import re
import threading
import uuid
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from django.core.cache import cache
from django.db import OperationalError, connection, connections
from django.http import HttpResponse
from django.test import Client
from django.utils import timezone
from pytest_django import Settings
from pytest_django.live_server_helper import LiveServer

from deploy.errors import DeployRefused
from deploy.ledger_client import RemoteLedger, Request
from deploy.recorder import Recorder
from ledger import queries, rules, tokens
from ledger.api import auth, throttling
from ledger.api.problems import TYPES
from ledger.models import ApiToken, Deployment, IdempotencyKey
from tests.support.ledgers import START, begun, deployed, release, token
from tests.support.servers import PATIENCE

pytestmark = pytest.mark.django_db

BUILD = {"version": "1.0", "commit": "4f2a9c1", "built_at": "2026-03-01T12:00:00Z"}
WANTED = {"environment": "testing", "release": "1.0", "strategy": "rolling"}


@pytest.fixture(autouse=True)
def own_cache(settings: Settings) -> None:
    settings.CACHES = {"default": {"BACKEND": "metrics.cache.LocMemCache", "LOCATION": uuid.uuid4().hex}}


class Pipeline:
    """Sends JSON with a token."""

    def __init__(self, bearer: str) -> None:
        self.client = Client(raise_request_exception=False, headers={"authorization": f"Bearer {bearer}"})

    def get(self, path: str, **query: Any) -> Any:
        return self.client.get(f"/api/{path}", query)

    def post(self, path: str, body: Any = None, key: str = "") -> Any:
        headers = {"idempotency-key": key} if key else {}
        text = body if isinstance(body, str | bytes) else json.dumps(body or {})
        return self.client.post(f"/api/{path}", text, "application/json", headers=headers)


@pytest.fixture
def pipeline() -> Pipeline:
    return Pipeline(token())


def problem(response: Any, status: int, code: str = "") -> dict[str, Any]:
    """The problem details of `response`, which are as RFC 9457 has them."""
    assert response.status_code == status, response.content
    assert response["Content-Type"] == "application/problem+json"
    found: dict[str, Any] = response.json()
    assert found["status"] == status and found["title"] and found["detail"]
    assert found["type"] == (f"/api/docs/#{code}" if code else "about:blank") and (not code or code in TYPES)
    assert found["request_id"] == response["X-Request-ID"]
    return found


# The way of a release


def test_a_pipeline_reports_a_deployment_from_its_beginning_to_its_end(pipeline: Pipeline) -> None:
    made = pipeline.post("releases", BUILD | {"message": "First", "image": "example.com/app@sha256:00"})
    assert (made.status_code, made["Location"]) == (201, "/api/releases/1.0")
    assert pipeline.get("releases/1.0").json() == made.json()
    created = pipeline.post("deployments", WANTED | {"run_url": "https://ci.example.com/runs/7"})
    assert created.status_code == 201 and created.json()["status"] == "pending"
    assert created.json()["actor"] == "pipeline"  # the token's name, as nobody else is named
    where = created["Location"].removeprefix("/api/")
    assert pipeline.post(f"{where}/start").json()["status"] == "running"
    pipeline.post(f"{where}/steps", {"name": "smoke test", "outcome": "running"})
    steps = pipeline.post(f"{where}/steps", {"name": "smoke test", "outcome": "succeeded", "note": "well"}).json()
    steps = steps["steps"]
    assert [(step["name"], step["outcome"], step["note"]) for step in steps] == [("smoke test", "succeeded", "well")]
    ended = pipeline.post(f"{where}/finish", {"result": "succeeded"}).json()
    assert ended["status"] == "succeeded" and ended["duration_seconds"] >= 0
    assert pipeline.get(where).json() == ended
    testing = pipeline.get("environments/testing").json()
    assert testing["current"]["id"] == ended["id"] and testing["in_flight"] is None
    assert pipeline.get("environments").json()["items"][1] == testing
    problem(pipeline.post(f"{where}/finish", {"result": "failed"}), 409, "wrong-state")


LOCK = {"holder": "alice@laptop", "reason": "The database is being moved", "since": "2026-03-01T12:00:00Z"}


def test_a_lock_is_shown_until_it_is_free_or_a_deployment_proves_that_it_is(pipeline: Pipeline) -> None:
    def put(body: Any, environment: str = "testing", by: Pipeline = pipeline) -> Any:
        return by.client.put(f"/api/environments/{environment}/lock", json.dumps(body), "application/json")

    assert pipeline.get("environments/testing").json()["lock"] is None
    assert put(LOCK).json()["lock"] == LOCK
    again = put(LOCK | {"reason": "It takes longer"}).json()["lock"]
    assert again["reason"] == "It takes longer" == pipeline.get("environments/testing").json()["lock"]["reason"]
    assert [each["lock"] is None for each in pipeline.get("environments").json()["items"]] == [True, False, True, True]
    for _ in range(2):
        assert pipeline.client.delete("/api/environments/testing/lock").json()["lock"] is None
    put(LOCK)
    pipeline.post("releases", BUILD)
    pipeline.post("deployments", WANTED)
    assert pipeline.get("environments/testing").json()["lock"] is None
    for wrong in ({"holder": ""}, {"reason": " "}, {"reason": "a\nb"}, {"since": "2026-03-01T12:00:00"}, {"more": 1}):
        problem(put(LOCK | wrong), 422, "invalid")
    elsewhere = Pipeline(token("staging", name="elsewhere"))
    problem(put(LOCK, by=elsewhere), 403, "out-of-scope")
    problem(elsewhere.client.delete("/api/environments/testing/lock"), 403, "out-of-scope")
    problem(put(LOCK, "moon"), 404)


def test_registering_a_release_again_is_fine_and_another_build_is_not(pipeline: Pipeline) -> None:
    assert [pipeline.post("releases", BUILD).status_code for _ in range(2)] == [201, 200]
    assert (
        "commit" in problem(pipeline.post("releases", BUILD | {"commit": "5f2a9c1"}), 409, "release-differs")["detail"]
    )


def test_what_the_rules_refuse_is_a_conflict_that_names_the_rule(pipeline: Pipeline) -> None:
    problem(pipeline.post("deployments", WANTED), 422, "unknown-release")
    release("1.0")
    problem(pipeline.post("deployments", WANTED | {"environment": "production"}), 409, "not-promotable")
    problem(pipeline.post("deployments", WANTED | {"kind": "rollback"}), 409, "never-live")
    body = WANTED | {"environment": "production", "hotfix": True}
    assert problem(pipeline.post("deployments", body), 422, "invalid")["errors"][0]["pointer"] == "#/reason"
    asked = pipeline.post("deployments", body | {"reason": "down"})
    assert (asked.status_code, asked.json()["status"]) == (201, "waiting")
    assert pipeline.post("deployments", body | {"reason": "down"}).json()["id"] == asked.json()["id"]
    problem(pipeline.post(f"deployments/{asked.json()['id']}/start"), 409, "not-approved")
    problem(pipeline.post("deployments", body | {"reason": "down", "break_glass": True}), 403, "may-not")
    assert pipeline.post("deployments", WANTED).status_code == 201
    assert "Deployment" in problem(pipeline.post("deployments", WANTED), 409, "environment-busy")["detail"]


def test_it_tells_what_may_go_where_and_back_to_what(pipeline: Pipeline) -> None:
    for version in ("1.0", "1.1"):
        deployed("staging", version)
    found = pipeline.get("environments/production/promotable").json()["items"]
    assert [each["release"]["version"] for each in found] == ["1.1", "1.0"] and found[0]["proven"]
    back = pipeline.get("environments/staging/rollback-targets").json()["items"]
    assert [each["release"]["version"] for each in back] == ["1.0"]
    assert pipeline.get("environments/staging/promotable", limit=1).json() == {"items": []}
    problem(pipeline.get("environments/moon/promotable"), 404)


def test_the_list_is_filtered_and_paged(pipeline: Pipeline) -> None:
    for number in range(5):
        deployed("testing", f"1.{number}", "failed" if number == 1 else "succeeded", at=START + timedelta(hours=number))
    deployed("staging", "1.0")
    seen, cursor = [], None
    while True:
        page = pipeline.get(
            "deployments", environment="testing", limit=2, **({"cursor": cursor} if cursor else {})
        ).json()
        seen += [each["release"]["version"] for each in page["items"]]
        if not (cursor := page["next"]):
            break
    assert seen == ["1.4", "1.3", "1.2", "1.1", "1.0"]
    assert [each["release"]["version"] for each in pipeline.get("deployments", status="failed").json()["items"]] == [
        "1.1"
    ]
    assert len(pipeline.get("deployments", since="2026-03-01T15:00:00Z").json()["items"]) == 2
    assert len(pipeline.get("deployments", search="1.0").json()["items"]) == 2
    for wrong in (
        {"cursor": "eA"},
        {"limit": 101},
        {"status": "done"},
        {"since": "yesterday"},
        {"enviroment": "testing"},
        {"since": "0001-01-01T00:00:00+14:00"},
    ):
        assert problem(pipeline.get("deployments", **wrong), 422, "invalid")["errors"][0]["parameter"] == next(
            iter(wrong)
        )


@pytest.mark.parametrize("count", [2, 30])
def test_no_answer_takes_more_queries_when_there_are_more_rows(
    pipeline: Pipeline, count: int, django_assert_num_queries: Any
) -> None:
    for number in range(count):
        deployed("testing", f"1.{number}", at=START + timedelta(hours=number))
    pipeline.get("environments")  # notes that the token was used
    for path, statements in (("deployments", 2), ("environments", 7), ("environments/testing/rollback-targets", 3)):
        with django_assert_num_queries(statements):
            assert pipeline.get(path).status_code == 200


# Tokens


@pytest.mark.parametrize("method", ["get", "post"])
@pytest.mark.parametrize(
    ("authorization", "challenge"),
    [
        (None, "Bearer"),
        ("Basic eDp5", "Bearer"),
        ("Bearer", "Bearer"),
        ("Bearer bst1_wrong", 'Bearer error="invalid_token"'),
        ("Bearer another", 'Bearer error="invalid_token"'),
        ("Bearer bst1_é", 'Bearer error="invalid_token"'),
    ],
)
def test_without_a_valid_token_nobody_gets_in(method: str, authorization: str | None, challenge: str) -> None:
    headers = {"authorization": authorization} if authorization else {}
    response = getattr(Client(), method)("/api/deployments", headers=headers)
    problem(response, 401)
    assert response["WWW-Authenticate"] == challenge


def test_a_token_is_kept_as_a_digest_and_ends_by_date_or_revocation() -> None:
    row, secret = tokens.make("ci", [], timezone.now() + timedelta(hours=1))
    assert secret.startswith("bst1_") and len(secret) == 48
    assert secret not in str(list(ApiToken.objects.values()))
    pipeline = Pipeline(secret)
    assert pipeline.get("environments").status_code == 200
    ApiToken.objects.update(expires=timezone.now())
    problem(pipeline.get("environments"), 401)
    ApiToken.objects.update(expires=None)
    assert pipeline.get("environments").status_code == 200
    assert tokens.revoke("ci") and not tokens.revoke("ci")
    problem(pipeline.get("environments"), 401)


def test_a_tokens_last_use_is_noted_once_a_minute(django_assert_num_queries: Any) -> None:
    pipeline = Pipeline(token())
    assert pipeline.get("releases/1.0").status_code == 404
    noted = ApiToken.objects.get().last_used
    assert noted and timezone.now() - noted < timedelta(minutes=1)
    with django_assert_num_queries(2):
        pipeline.get("releases/1.0")
    ApiToken.objects.update(last_used=noted - timedelta(minutes=2))
    pipeline.get("releases/1.0")
    assert ApiToken.objects.get().last_used > noted  # type: ignore[operator]


def test_a_token_writes_only_where_it_is_for_and_reads_everywhere() -> None:
    row, narrow = begun("production", "1.0", hotfix=True, reason="x"), Pipeline(token("testing"))
    problem(narrow.post("deployments", WANTED | {"environment": "staging"}), 403, "out-of-scope")
    for path, body in (("start", {}), ("steps", {"name": "x", "outcome": "failed"}), ("finish", {"result": "failed"})):
        problem(narrow.post(f"deployments/{row.pk}/{path}", body), 403, "out-of-scope")
    assert Deployment.objects.get().status == "running"
    assert narrow.get(f"deployments/{row.pk}").status_code == 200
    assert narrow.post("deployments", WANTED).status_code == 201


def test_a_token_registers_releases_only_if_that_is_its_right() -> None:
    problem(
        Pipeline(token("development", name="dev", may_register=False)).post("releases", BUILD), 403, "may-not-register"
    )
    builder = Pipeline(tokens.make("build", [], may_register=True)[1])
    made = builder.post("releases", BUILD).json()
    assert made["token"] == "build" and made["registered"]
    problem(builder.post("deployments", WANTED), 403, "out-of-scope")
    other = problem(Pipeline(token()).post("releases", BUILD | {"commit": "5f2a9c1"}), 409, "release-differs")
    assert "by the token build at " in other["detail"] and "withdraw_release 1.0" in other["detail"]


def test_a_token_changes_its_own_deployments_and_another_only_with_the_right_to_take_over() -> None:
    release("1.0")
    mine, thief = Pipeline(token("testing", name="ci")), Pipeline(token("testing", name="thief"))
    key = mine.post("deployments", WANTED | {"actor": "ann@example.com"}).json()["id"]
    calls: tuple[tuple[str, dict[str, str]], ...] = (
        ("start", {}),
        ("steps", {"name": "one", "outcome": "running"}),
        ("finish", {"result": "succeeded"}),
    )
    for path, body in calls[:2]:
        told = problem(thief.post(f"deployments/{key}/{path}", body), 403, "not-its-own")["detail"]
        assert "created by the token ci" in told and "--take-over" in told
        assert mine.post(f"deployments/{key}/{path}", body).status_code == 200
    problem(thief.post(f"deployments/{key}/finish", {"result": "failed"}), 403, "not-its-own")
    elsewhere = Pipeline(token("staging", name="elsewhere", may_take_over=True))
    problem(elsewhere.post(f"deployments/{key}/finish", {"result": "failed"}), 403, "out-of-scope")
    rescue = Pipeline(token("testing", name="rescue", may_take_over=True))
    ended = rescue.post(f"deployments/{key}/finish", {"result": "failed"}).json()
    assert (ended["actor"], ended["token"], ended["finished_token"]) == ("ann@example.com", "ci", "rescue")
    assert [step["token"] for step in ended["steps"]] == ["rescue"]  # it was running, and ended with the deployment


def test_what_a_command_began_is_no_tokens_own() -> None:
    row = begun("testing", "1.0")
    told = problem(Pipeline(token()).post(f"deployments/{row.pk}/finish", {"result": "failed"}), 403, "not-its-own")
    assert "created by a command" in told["detail"]


def test_a_rotated_token_goes_on_with_its_deployment() -> None:
    release("1.0")
    key = Pipeline(token("testing", name="ci")).post("deployments", WANTED).json()["id"]
    assert Pipeline(tokens.rotate("ci")[1]).post(f"deployments/{key}/start").status_code == 200


# Twice


def test_a_retry_gets_the_first_answer_and_makes_no_second_row(pipeline: Pipeline) -> None:
    release("1.0")
    first = pipeline.post("deployments", WANTED, key="a-1")
    again = pipeline.post("deployments", WANTED, key='"a-1"')
    assert (again.status_code, again.content, again["Location"]) == (201, first.content, first["Location"])
    assert again["Idempotency-Replayed"] == "true" and "Idempotency-Replayed" not in first
    pipeline.post(f"deployments/{first.json()['id']}/start", key="a-2")
    assert pipeline.post(f"deployments/{first.json()['id']}/start", key="a-2").json()["status"] == "running"
    assert Deployment.objects.count() == 1


def test_a_key_goes_with_one_request_and_one_token(pipeline: Pipeline) -> None:
    release("1.0")
    assert pipeline.post("deployments", WANTED, key="b").status_code == 201
    problem(pipeline.post("deployments", WANTED | {"strategy": "blue-green"}, key="b"), 422, "key-reused")
    problem(pipeline.post("releases", BUILD, key="b"), 422, "key-reused")
    other = Pipeline(token(name="other"))
    problem(other.post("deployments", WANTED, key="b"), 409, "environment-busy")
    problem(pipeline.post("deployments", WANTED, key="a b"), 422, "invalid")


def test_what_was_refused_may_be_tried_again_with_its_key(pipeline: Pipeline) -> None:
    row = begun("testing", "1.0")
    problem(pipeline.post("deployments", WANTED, key="c"), 409, "environment-busy")
    assert not IdempotencyKey.objects.exists()
    rules.finish(row.pk, "failed")
    assert pipeline.post("deployments", WANTED, key="c").status_code == 201


def test_keys_are_known_for_more_than_a_day_and_not_for_ever(pipeline: Pipeline) -> None:
    for hours, known in ((47, True), (49, False)):
        pipeline.post("releases", BUILD, key=f"d{hours}")
        IdempotencyKey.objects.update(created=timezone.now() - timedelta(hours=hours))
        assert ("Idempotency-Replayed" in pipeline.post("releases", BUILD, key=f"d{hours}")) == known


def at_once(*acts: Callable[[], Any]) -> list[Any]:
    """What `acts` return, all let go at the same moment in threads of their own."""
    gate = threading.Barrier(len(acts))
    results: list[Any] = [None] * len(acts)

    def run(index: int) -> None:
        try:
            connection.ensure_connection()
            gate.wait(PATIENCE)
            results[index] = acts[index]()
        finally:
            connections.close_all()

    threads = [threading.Thread(target=run, args=(index,)) for index in range(len(acts))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
    return results


@pytest.mark.django_db(transaction=True)
def test_of_two_creates_at_once_one_is_made_and_one_is_refused() -> None:
    release("1.0")
    secret = token()
    answers = at_once(*[lambda: Pipeline(secret).post("deployments", WANTED)] * 2)
    assert sorted(each.status_code for each in answers) == [201, 409]
    assert Deployment.objects.count() == 1


@pytest.mark.django_db(transaction=True)
def test_the_same_key_at_once_makes_one_row_and_the_same_answer() -> None:
    release("1.0")
    secret = token()
    answers = at_once(*[lambda: Pipeline(secret).post("deployments", WANTED, key="e")] * 5)
    assert {(each.status_code, each.content) for each in answers} == {(201, answers[0].content)}
    assert sum("Idempotency-Replayed" in each for each in answers) == 4
    assert Deployment.objects.count() == 1


# Limits


def test_a_token_and_an_address_have_so_many_requests_a_minute(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ledger.api.throttling.time", lambda: 1_000_000_060.5)
    settings.API_RATE_PER_TOKEN, settings.API_RATE_PER_ADDRESS = 2, 5
    one, two = Pipeline(token(name="one")), Pipeline(token(name="two"))
    statuses = [one.get("environments").status_code for _ in range(3)]
    assert statuses == [200, 200, 429]
    assert two.get("environments").status_code == 200
    assert Client().get("/api/environments").status_code == 401
    refused = two.get("environments")
    assert "address" in problem(refused, 429, "rate-limited")["detail"] and refused["Retry-After"] == "20"
    monkeypatch.setattr("ledger.api.throttling.time", lambda: 1_000_000_080.0)
    assert two.get("environments").status_code == 200


@pytest.mark.parametrize(
    ("address", "stands_for"),
    [("192.0.2.7", "192.0.2.7"), ("2001:db8::1", "2001:db8::/64"), ("2001:db8::ffff:2", "2001:db8::/64"), ("", "")],
)
def test_an_ipv6_subscriber_is_one_address(address: str, stands_for: str) -> None:
    assert throttling.network(address) == stands_for


def test_without_a_cache_a_process_counts_for_itself(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ledger.api.throttling.time", lambda: 1_000_000_060.5)
    settings.API_RATE_PER_TOKEN, settings.API_RATE_PER_ADDRESS = 3, 5
    settings.CACHES = {
        "default": {
            "BACKEND": "backstagetest1.cache.RedisCache",
            "LOCATION": f"redis://127.0.0.1:1/{uuid.uuid4().int % 1_000_000}",
            "OPTIONS": {"SOCKET_CONNECT_TIMEOUT": 0.1},
        }
    }
    one, two = Pipeline(token(name="one")), Pipeline(token(name="two"))
    assert [one.get("environments").status_code for _ in range(4)] == [200, 200, 200, 429]
    assert [two.get("environments").status_code for _ in range(2)] == [200, 429], "the address has had its five"
    monkeypatch.setattr("ledger.api.throttling.time", lambda: 1_000_000_120.0)
    assert one.get("environments").status_code == 200
    cache.close()


def test_a_body_that_is_too_large_is_not_read(pipeline: Pipeline) -> None:
    problem(pipeline.post("releases", b"[" * (auth.MAX_BODY + 1)), 413, "too-large")
    assert pipeline.post("releases", json.dumps(BUILD).ljust(auth.MAX_BODY)).status_code == 201


# Errors


@pytest.mark.parametrize("body", ["{", "nul", "[1", "\ud800".encode("utf-8", "surrogatepass"), b"\xff", "[" * 60_000])
def test_a_body_that_is_no_json_is_a_bad_request(pipeline: Pipeline, body: str | bytes) -> None:
    response = pipeline.client.post("/api/releases", body, "application/json")
    problem(response, 400)


@pytest.mark.parametrize(
    ("change", "pointer"),
    [
        ({"version": "../x"}, "#/version"),
        ({"version": "x" * 65}, "#/version"),
        ({"commit": "HEAD"}, "#/commit"),
        ({"message": "a\x00b"}, "#/message"),
        ({"message": "\ud800"}, "#/message"),
        ({"built_at": "2026-03-01T12:00:00"}, "#/built_at"),
        ({"built_at": "0001-01-01T00:00:00+14:00"}, "#/built_at"),
        ({"built_at": 1e308}, "#/built_at"),
        ({"built_at": "2099-03-01T12:00:00Z"}, "#/built_at"),
        ({"image": 7}, "#/image"),
        ({"comit": "4f2a9c1"}, "#/comit"),
    ],
)
def test_what_is_invalid_is_reported_by_its_place(pipeline: Pipeline, change: dict[str, Any], pointer: str) -> None:
    found = problem(pipeline.post("releases", BUILD | change), 422, "invalid")
    assert [each["pointer"] for each in found["errors"]] == [pointer]


@pytest.mark.parametrize("body", [[], 7, None, "x"])
def test_a_body_of_another_shape_is_refused(pipeline: Pipeline, body: Any) -> None:
    problem(pipeline.post("releases", json.dumps(body)), 422, "invalid")
    problem(pipeline.client.post("/api/releases", "", "application/json"), 422, "invalid")


@pytest.mark.parametrize(
    "url", ["javascript:alert(1)", "https://", "https://a b", "//example.com", "https://x/<script>"]
)
def test_a_run_is_linked_by_a_plain_web_address(pipeline: Pipeline, url: str) -> None:
    release("1.0")
    problem(pipeline.post("deployments", WANTED | {"run_url": url}), 422, "invalid")


@pytest.mark.parametrize(
    "path",
    [
        "nothing",
        "deployments/0",
        "deployments/9" + "9" * 30,
        "deployments/x",
        "deployments/7",
        "releases/1.0",
        "deployments/7/stop",
    ],
)
def test_what_is_not_there_is_a_problem_too(pipeline: Pipeline, path: str) -> None:
    problem(pipeline.get(path), 404)


def test_another_method_gets_a_list_of_those_allowed(pipeline: Pipeline) -> None:
    response = pipeline.client.delete("/api/deployments")
    problem(response, 405)
    assert set(response["Allow"].split(", ")) == {"GET", "POST"}


def test_a_wrong_host_is_a_problem_here_and_a_page_elsewhere() -> None:
    problem(Client(headers={"host": "evil.example"}).get("/api/deployments"), 400)
    assert Client(headers={"host": "evil.example"}).get("/")["Content-Type"].startswith("text/html")


@pytest.mark.parametrize(("error", "status"), [(ZeroDivisionError("secret"), 500), (OperationalError("secret"), 503)])
def test_a_failure_tells_nothing_of_itself_and_is_logged(
    pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, error: Exception, status: int
) -> None:
    def fail(*_: Any) -> None:
        raise error

    monkeypatch.setattr(queries, "promotable", fail)
    with caplog.at_level(logging.ERROR, "django.request"):
        response = pipeline.get("environments/testing/promotable")
    assert "secret" not in str(problem(response, status))
    assert ("Retry-After" in response) == (status == 503)
    assert "secret" in caplog.text


def test_the_schema_and_its_page_are_for_everybody_and_need_no_other_host() -> None:
    schema = Client().get("/api/openapi.json")
    assert schema.status_code == 200 and schema.json()["openapi"].startswith("3.1")
    page: HttpResponse = Client().get("/api/docs/")  # type: ignore[assignment]
    text = page.content.decode()
    assert page.status_code == 200
    for path, operations in schema.json()["paths"].items():
        for method, operation in operations.items():
            assert f'id="{operation["operationId"]}"' in text and path in text, (method, path)
    assert all(f'id="{code}"' in text for code in TYPES)
    assert not re.search(r'(src|href)="(https?:)?//', text) and " style=" not in text
    assert Client().get("/api/")["Location"] == "/api/docs/"


# What carries deployments out, over this API


@pytest.mark.django_db(transaction=True)
def test_a_deployment_that_its_token_may_not_record_is_refused_before_it_begins(
    live_server: LiveServer, tmp_path: Path
) -> None:
    notes: list[str] = []

    def record(bearer: str, environment: str, kind: str = "deploy") -> Recorder:
        wanted = Request(environment, "1.0", "rolling", "ann", kind=kind)
        return Recorder(RemoteLedger(live_server.url, bearer), wanted, tmp_path, notes.append)

    build = ("4f2a9c1", "2026-03-01T12:00:00Z", "")
    mine, other = token("testing", name="ci"), token("testing", name="other", may_register=False)
    with pytest.raises(DeployRefused, match="ci is not valid for staging"):
        record(mine, "staging").begin(*build)
    first = record(mine, "testing")
    assert first.begin(*build) is None and first.key
    with pytest.raises(DeployRefused, match="created by the token ci"):
        record(other, "testing").begin(*build)
    resumed = record(tokens.rotate("ci")[1], "testing").begin(*build)
    assert resumed and resumed.key == first.key
    rules.finish(first.key, "succeeded")
    later = record(other, "testing")  # it need not register what is registered
    assert later.begin(*build) is None and later.key and not notes
    back = record(other, "staging", "rollback")
    assert back.begin(*build) is None and back.refused, "a rollback is not refused"
    assert "other is not valid for staging" in notes[0]


def test_a_token_over_plain_http_is_refused_and_not_redirected(settings: Settings, client: Client) -> None:
    settings.SECURE_SSL_REDIRECT = True
    headers = {"Authorization": f"Bearer {token()}"}
    answer = client.get("/api/environments", headers=headers)
    assert answer.status_code == 403 and answer["Content-Type"] == "application/problem+json"
    assert answer.json()["type"].endswith("#token-over-http") and "consider it leaked" in answer.json()["detail"]
    assert client.post("/api/nowhere", headers={"Authorization": "bearer x"}).status_code == 403
    assert client.get("/api/environments", headers=headers, secure=True).status_code == 200
    assert client.get("/api/environments").status_code == 301, "there is nothing to lose"
