"""Settings refuse what is missing, invalid or unsafe, by the variable's name and without its value."""

import ast
import importlib
import os
import re
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from django.contrib.staticfiles.storage import staticfiles_storage
from django.core.exceptions import ImproperlyConfigured
from hypothesis import given
from hypothesis import strategies as st
from whitenoise.storage import CompressedManifestStaticFilesStorage

from settings import env, services
from tests.support.servers import PATIENCE, ROOT

KEY = "kI5x0mVd9sQ2wB7zR4tY8uE1oP6aL3cN-fJhGqXv_SbZrMnTyW"
DATABASE, CACHE = "postgresql://someone:hunter2@db.internal:5432/app", "redis://:hunter2@cache.internal:6379/1"
GOOD = {"SECRET_KEY": KEY, "DATABASE_URL": DATABASE}


def load(module: str, **variables: str) -> Any:
    """settings.`module` as it comes out with only these variables; the suite's own settings stay as they are."""
    names = ("settings.base", f"settings.{module}")
    kept = {name: sys.modules.pop(name) for name in names if name in sys.modules}
    try:
        with mock.patch.dict(os.environ, variables, clear=True):
            return importlib.import_module(f"settings.{module}")
    finally:
        for name in names:
            sys.modules.pop(name, None)
        sys.modules.update(kept)


@pytest.mark.parametrize("module", ["staging", "production"])
@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"SECRET_KEY": ""}, "SECRET_KEY is not set"),
        ({"SECRET_KEY": "hunter2"}, "SECRET_KEY is invalid"),
        ({"SECRET_KEY": "a" * 60}, "SECRET_KEY is invalid"),
        ({"DATABASE_URL": ""}, "DATABASE_URL is not set, nor DB_PASSWORD"),
        ({"DATABASE_URL": "hunter2"}, "DATABASE_URL is invalid"),
        ({"DATABASE_URL": "postgresql://someone:hunter2@host:notaport/name"}, "DATABASE_URL is invalid"),
        ({"DATABASE_URL": "postgresql://someone:hunter2@host"}, "DATABASE_URL is invalid"),
        ({"DATABASE_URL_BLUE": DATABASE}, "DATABASE_URL_GREEN is not set, but DATABASE_URL_BLUE is"),
        ({"DATABASE_URL_GREEN": DATABASE}, "DATABASE_URL_BLUE is not set, but DATABASE_URL_GREEN is"),
        ({"DATABASE_URL_BLUE": DATABASE, "DATABASE_URL_GREEN": DATABASE}, "DATABASE_URL_GREEN is invalid"),
        ({"DATABASE_URL_BLUE": DATABASE, "DATABASE_URL_GREEN": "hunter2"}, "DATABASE_URL_GREEN is invalid"),
        ({"DATABASE_URL_BLUE": "sqlite:///x", "DATABASE_URL_GREEN": DATABASE}, "DATABASE_URL_BLUE is invalid"),
        ({"DATABASE_HOLD_LIMIT": "hunter2"}, "DATABASE_HOLD_LIMIT is invalid"),
        ({"DATABASE_COLOUR": "hunter2"}, "DATABASE_COLOUR is invalid: expected blue or green"),
        ({"DEBUG": "true"}, "DEBUG is true"),
        ({"DEBUG": "hunter2"}, "DEBUG is invalid"),
        ({"ALLOWED_HOSTS": "*"}, "ALLOWED_HOSTS is invalid"),
        ({"HTTPS_ONLY": "hunter2"}, "HTTPS_ONLY is invalid"),
        ({"TRUSTED_PROXIES": "hunter2"}, "TRUSTED_PROXIES is invalid"),
        ({"EMAIL_PORT": "hunter2"}, "EMAIL_PORT is invalid"),
        ({"EMAIL_PORT": "65536"}, "EMAIL_PORT is invalid"),
        ({"DATABASE_URL": "mysql://someone:hunter2@host/name"}, "DATABASE_URL is invalid"),
        ({"REDIS_URL": "http://:hunter2@host"}, "REDIS_URL is invalid"),
        ({"REDIS_URL": "redis://host:hunter2/1"}, "REDIS_URL is invalid"),
        ({"ALLOWED_HOSTS": "https://hunter2.com"}, "ALLOWED_HOSTS is invalid"),
        ({"ALLOWED_HOSTS": "hunter2.com:443"}, "ALLOWED_HOSTS is invalid"),
        ({"CSRF_TRUSTED_ORIGINS": "hunter2.com"}, "CSRF_TRUSTED_ORIGINS is invalid"),
        ({"CSRF_TRUSTED_ORIGINS": "https://hunter2.com/"}, "CSRF_TRUSTED_ORIGINS is invalid"),
        ({"SITE_URL": "hunter2.com"}, "SITE_URL is invalid"),
        ({"SITE_URL": "https://hunter2.com/path"}, "SITE_URL is invalid"),
        ({"LEDGER_URL": "hunter2"}, "LEDGER_URL is invalid"),
        ({"LEDGER_URL": "http://hunter2.example.com"}, "LEDGER_URL is invalid: expected https://"),
        ({"LEDGER_URL": "http://127.0.0.1.hunter2.com"}, "LEDGER_URL is invalid: expected https://"),
        ({"LEDGER_URL": "https://me:hunter2@example.com"}, "LEDGER_URL is invalid"),
        ({"LEDGER_URL": "https://a.example,hunter2"}, "LEDGER_URL is invalid"),
        ({"LEDGER_URL": "https://example.com:hunter2"}, "LEDGER_URL is invalid"),
        ({"PROMETHEUS_URL": "hunter2:9090"}, "PROMETHEUS_URL is invalid: expected an address such as"),
        ({"PROMETHEUS_URL": "http://me:hunter2@prometheus"}, "PROMETHEUS_URL is invalid: expected an address such as"),
        ({"PROMETHEUS_URL": "http://prometheus/?hunter2"}, "PROMETHEUS_URL is invalid: expected an address such as"),
        ({"PROMETHEUS_URL": "http://[hunter2]"}, "PROMETHEUS_URL is invalid: expected an address such as"),
        (
            {"PROMETHEUS_URL": "http://prometheus", "PROMETHEUS_TOKEN": "hunter2"},
            "PROMETHEUS_URL is invalid: expected https",
        ),
        (
            {"OTEL_EXPORTER_OTLP_ENDPOINT": "hunter2:4318"},
            "OTEL_EXPORTER_OTLP_ENDPOINT is invalid: expected an address",
        ),
        (
            {"OTEL_EXPORTER_OTLP_ENDPOINT": "https://hunter2/v1/traces"},
            "OTEL_EXPORTER_OTLP_ENDPOINT is invalid: expected an address without /v1/traces",
        ),
        (
            {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://collector", "OTEL_EXPORTER_OTLP_HEADERS": "authorization=hunter2"},
            "OTEL_EXPORTER_OTLP_ENDPOINT is invalid: expected https://",
        ),
        ({"OTEL_EXPORTER_OTLP_HEADERS": "hunter2"}, "OTEL_EXPORTER_OTLP_HEADERS is invalid: expected headers such as"),
        ({"OTEL_EXPORTER_OTLP_HEADERS": "a=hunter2%0a"}, "OTEL_EXPORTER_OTLP_HEADERS is invalid"),
        ({"OTEL_EXPORTER_OTLP_HEADERS": "a b=hunter2"}, "OTEL_EXPORTER_OTLP_HEADERS is invalid"),
        ({"SENTRY_DSN": "https://hunter2@sentry.example.com"}, "SENTRY_DSN is invalid: expected an address such as"),
        ({"SENTRY_DSN": "hunter2"}, "SENTRY_DSN is invalid"),
        ({"SENTRY_DSN": "https://a@hunter2:x/1"}, "SENTRY_DSN is invalid"),
        ({"OTEL_TRACES_SAMPLER_ARG": "1.5"}, "OTEL_TRACES_SAMPLER_ARG is invalid: expected a share from 0 to 1"),
        ({"COMPARE_URL": "https://me:hunter2@example.com/{old}...{new}"}, "COMPARE_URL is invalid"),
        ({"COMPARE_URL": "https://example.com/{old}...{new}/{hunter2}"}, "COMPARE_URL is invalid"),
        ({"EMAIL_HOST": "smtp://hunter2"}, "EMAIL_HOST is invalid"),
        ({"EMAIL_HOST": "me:hunter2@mail.example.com"}, "EMAIL_HOST is invalid"),
        ({"EMAIL_HOST": "mail.example.com:587"}, "EMAIL_HOST is invalid"),
        ({"DEFAULT_FROM_EMAIL": "hunter2"}, "DEFAULT_FROM_EMAIL is invalid"),
        ({"DB_PASSWORD": "hunter2\r\nhunter2", "DATABASE_URL": ""}, "DB_PASSWORD contains a line break"),
        ({"SECRET_KEY": "hunter2\x0c" + KEY}, "SECRET_KEY contains a line break or control character (U+000C)"),
        ({"ADMIN_URL": "/"}, "ADMIN_URL is invalid"),
        ({"ADMIN_URL": "<hunter2>/"}, "ADMIN_URL is invalid"),
        ({"EMAIL_VERIFICATION": "hunter2"}, "EMAIL_VERIFICATION is invalid"),
        ({"HEALTH_CHECK_TIMEOUT": "nan"}, "HEALTH_CHECK_TIMEOUT is invalid"),
        ({"SECRET_KEY_FILE": "/etc/hostname"}, "SECRET_KEY and SECRET_KEY_FILE are both set"),
        ({"SECRET_KEY": "", "SECRET_KEY_FILE": "/nowhere/key"}, "cannot be read (FileNotFoundError): /nowhere/key"),
    ],
)
def test_what_is_unsafe_stops_the_process_by_name(module: str, change: dict[str, str], says: str) -> None:
    with pytest.raises(ImproperlyConfigured) as caught:
        load(module, **GOOD | change)
    assert says in str(caught.value)
    assert "hunter2" not in str(caught.value), "it repeats a value that may be secret"


@pytest.mark.parametrize(
    "command", [("manage.py", "check"), ("-m", "gunicorn", "--config", "gunicorn.conf.py", "backstagetest1.wsgi")]
)
def test_a_refusal_ends_the_process_with_its_reason_and_nothing_else(command: tuple[str, ...]) -> None:
    done = subprocess.run(
        [sys.executable, *command],
        cwd=ROOT,
        env={"DJANGO_SETTINGS_MODULE": "settings.production", "PATH": os.environ["PATH"], "BIND": "127.0.0.1:0"},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert done.returncode == 1
    *before, reason = done.stderr.splitlines()
    assert all(line.startswith("{") for line in before), "gunicorn's log lines, and no stack trace"
    assert reason.startswith("SECRET_KEY is not set. Expected something like SECRET_KEY=")
    assert reason.endswith("See .env.example.")


def test_two_databases_take_precedence_and_one_imports_nothing_for_them() -> None:
    both = {"DATABASE_URL_BLUE": DATABASE, "DATABASE_URL_GREEN": f"{DATABASE}2?sslmode=require"}
    found = load("production", **GOOD, **both)
    entry = found.DATABASES["default"]
    assert (entry["ENGINE"], entry["HOLD_LIMIT"], entry["NAME"]) == ("backstagetest1.bluegreen", 5, "app")
    assert entry["COLOURS"]["green"]["NAME"] == "app2" and entry["COLOURS"]["green"]["OPTIONS"]["sslmode"] == "require"
    assert found.DATABASE_URLS == {"blue": DATABASE, "green": both["DATABASE_URL_GREEN"]}
    one = load("production", **GOOD)
    assert one.DATABASES["default"]["ENGINE"] == "backstagetest1.postgresql" and one.DATABASE_URLS == {}
    look = (
        "import django, sys; django.setup(); from django.db import connection; connection.vendor; print(*sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", look],
        cwd=ROOT,
        env={"DJANGO_SETTINGS_MODULE": "settings.production", **GOOD},
        capture_output=True,
        text=True,
        check=True,
        timeout=PATIENCE,
    )
    assert "backstagetest1.postgresql.base" in done.stdout.split()
    assert not [name for name in done.stdout.split() if re.match("backstagetest1.bluegreen|deploy.databases", name)]


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("DATABASE_URL", f"{DATABASE}?conn_max_age=600", "has no option conn_max_age; expected one of these options"),
        ("DATABASE_URL", f"{DATABASE}?schema=public", "has no option schema"),
        ("DATABASE_URL", f"{DATABASE}?currentSchema=x", "has no option currentSchema"),
        ("DATABASE_URL", f"{DATABASE}?host=hunter2", "has no option host"),
        ("DATABASE_URL", f"{DATABASE}?sslmode=hunter2", "the option sslmode is not valid"),
        ("DATABASE_URL", f"{DATABASE}?connect_timeout=soon", "the option connect_timeout is not valid"),
        ("DATABASE_URL", f"{DATABASE}?sslmode=require&sslmode=disable", "the option sslmode is repeated"),
        ("DATABASE_URL", f"{DATABASE}#hunter2", "write : as %3A, / as %2F, ? as %3F, # as %23, @ as %40, and % as %25"),
        ("DATABASE_URL", f"{DATABASE}/hunter2", "the database name is missing or contains a slash"),
        ("DATABASE_URL", "postgresql://someone:hun#ter2@db.internal/app", "is not valid"),
        ("DATABASE_URL", "postgresql://someone:hun/ter2@db.internal/app", "is not valid"),
        ("DATABASE_URL", "postgresql://someone:hun?ter2@db.internal/app", "is not valid"),
        ("DATABASE_URL", "postgresql://someone:hun@ter2@db.internal/app", "is not valid"),
        ("DATABASE_URL", "postgresql://someone:hun%ter2@db.internal/app", "is not valid"),
        ("DATABASE_URL", "postgresql://someone:1234/hunter2@db.internal/app", "is not valid"),
        ("DATABASE_URL", "postgresql://someone:1234?hunter2@db.internal/app", "is not valid"),
        ("DATABASE_URL", "postgresql://someone:1234#hunter2@db.internal/app", "is not valid"),
        ("DATABASE_URL", "postgresql://someone:hunter2@one,two/app", "is not valid"),
        ("DATABASE_URL", "postgresql://someone:hunter2@one:1,two:2/app", "is not valid"),
        ("DATABASE_URL", "postgresql://someone:hunter2@db.internal:99999/app", "the port is out of range"),
        ("DATABASE_URL", "postgresql://some one:hunter2@db.internal/app", "is not valid"),
        ("DATABASE_URL", "sqlite:///a?hunter2=1", "starting with postgresql://, postgres://"),
        ("REDIS_URL", f"{CACHE}?ssl_cert_reqs=none", "has no option ssl_cert_reqs"),
        ("REDIS_URL", f"{CACHE.replace('redis', 'rediss')}?ssl_cert_reqs=none", "the option ssl_cert_reqs is not"),
        (
            "REDIS_URL",
            f"{CACHE.replace('redis', 'rediss')}?ssl_check_hostname=false",
            "ssl_check_hostname is not valid",
        ),
        ("REDIS_URL", f"{CACHE}?socket_timeout=60", "has no option socket_timeout"),
        ("REDIS_URL", f"{CACHE}?db=2", "has no option db"),
        ("REDIS_URL", "redis://:hunter2@cache.internal/cache", "the database is not a number"),
        ("REDIS_URL", "redis://:hunter2@cache.internal/1/2", "the database is not a number"),
        ("REDIS_URL", "redis://:hun#ter2@cache.internal/1", "is not valid"),
        ("REDIS_URL", "redis://:hun/ter2@cache.internal/1", "is not valid"),
        ("REDIS_URL", "redis://:hun@ter2@cache.internal/1", "is not valid"),
        ("REDIS_URL", "redis://:hun%ter2@cache.internal/1", "is not valid"),
        ("REDIS_URL", "redis://one,hunter2/1", "is not valid"),
        ("REDIS_URL", "redis://", "the host is missing"),
        ("REDIS_URL", "unix://hunter2/1", "the path of the socket is missing"),
    ],
)
def test_an_address_that_its_driver_would_not_know_is_refused_at_the_start(name: str, value: str, says: str) -> None:
    with pytest.raises(ImproperlyConfigured) as caught:
        load("production", **GOOD | {name: value})
    message = str(caught.value)
    assert message.startswith(f"{name} is invalid: ") and says in message and "expected" in message
    assert not re.search("hun.?ter2", message), "it repeats a value that may be secret"


@pytest.mark.parametrize(
    ("url", "found"),
    [
        ("postgresql://u%3A%2F%3F%23%40%25:p%3A%2F%3F%23%40%25@h/app", {"USER": "u:/?#@%", "PASSWORD": "p:/?#@%"}),
        ("postgresql://u:p!$&'()*+,;=~@h:1/a-b", {"PASSWORD": "p!$&'()*+,;=~", "NAME": "a-b", "PORT": 1}),
        ("postgres://u:p@[2001:db8::1]:5433/app", {"HOST": "2001:db8::1", "PORT": 5433}),
        ("postgresql://u@%2Fvar%2Frun%2Fpostgresql/app", {"HOST": "/var/run/postgresql"}),
    ],
)
def test_what_is_written_as_asked_reads_as_it_was_meant(url: str, found: dict[str, Any]) -> None:
    database = load("production", **GOOD | {"DATABASE_URL": url}).DATABASES["default"]
    assert {name: database[name] for name in found} == found


def test_options_that_the_driver_knows_reach_it_beside_ours() -> None:
    from psycopg2.extensions import make_dsn, parse_dsn

    samples = {
        "sslmode": "verify-full",
        "sslrootcert": "/etc/ssl/ca.pem",
        "target_session_attrs": "read-write",
        "channel_binding": "require",
        "gssencmode": "disable",
        "application_name": "app",
        "options": "-c%20search_path%3Dapp",
    }
    given = {
        name: samples.get(name, "/a" if pattern == services.FILE else "1")
        for name, pattern in services.POSTGRESQL.items()
    }
    query = "&".join(f"{name}={value}" for name, value in given.items())
    options = load("production", **GOOD | {"DATABASE_URL": f"{DATABASE}?{query}"}).DATABASES["default"]["OPTIONS"]
    assert parse_dsn(make_dsn(**options))["sslmode"] == "verify-full"  # libpq's own parser knows each
    assert options["options"].startswith("-c statement_timeout=15s") and options["options"].endswith("search_path=app")


def test_the_options_of_redis_are_those_that_its_driver_knows() -> None:
    samples = {"ssl_check_hostname": "true", "ssl_cert_reqs": "required", "protocol": "3", "client_name": "app"}
    for scheme, known in (("redis", services.REDIS), ("rediss", services.REDIS_TLS)):
        given = {name: samples.get(name, "/a" if pattern == services.FILE else "7") for name, pattern in known.items()}
        url = f"{scheme}://h/1?{'&'.join(f'{name}={value}' for name, value in given.items())}"
        assert load("production", **GOOD, REDIS_URL=url).CACHES["default"]["LOCATION"] == url
    assert load("production", **GOOD, REDIS_URL="unix:///run/redis.sock?db=2")


@pytest.mark.parametrize("before", ["", "\ufeff", " \ufeff"])
@pytest.mark.parametrize("after", ["", "\r", "\r\n", "\n\n", " \t"])
def test_what_editors_and_secret_stores_add_to_a_value_does_not_count(before: str, after: str, tmp_path: Path) -> None:
    path = tmp_path / "password"
    path.write_bytes(f"{before}hunter2{after}".encode())
    for variables in ({"DB_PASSWORD": f"{before}hunter2{after}"}, {"DB_PASSWORD_FILE": f"{path}{after}"}):
        found = load("production", SECRET_KEY=f"{before}{KEY}{after}", **variables)
        assert found.DATABASES["default"]["PASSWORD"] == "hunter2" and found.SECRET_KEY == KEY


@pytest.mark.parametrize("module", ["staging", "production", "testing"])
def test_with_what_is_needed_they_start(module: str) -> None:
    assert load(module, **GOOD, REDIS_URL="redis://cache.internal/1").ENVIRONMENT == module


def test_a_stack_that_runs_the_production_settings_may_have_another_name() -> None:
    assert load("production", **GOOD, ENVIRONMENT="development").ENVIRONMENT == "development"
    with pytest.raises(ImproperlyConfigured, match="ENVIRONMENT"):
        load("production", **GOOD, ENVIRONMENT="Prod!")


def test_the_guides_names_are_the_defaults() -> None:
    password = {"SECRET_KEY": KEY, "DB_PASSWORD": "p@ss/word"}
    production, staging, dev = load("production", **password), load("staging", **password), load("dev")
    database = production.DATABASES["default"]
    assert (database["USER"], database["PASSWORD"]) == ("prod_user", "p@ss/word")
    assert (database["HOST"], database["NAME"]) == ("prod-db.example.com", "backstagetest1_production")
    assert staging.DATABASES["default"]["HOST"] == "staging-db.example.com"
    assert dev.DATABASES["default"]["ENGINE"] == "django.db.backends.sqlite3"
    assert production.ALLOWED_HOSTS == ["backstagetest1.com", "www.backstagetest1.com"]
    assert staging.ALLOWED_HOSTS == ["staging.backstagetest1.com"]
    assert dev.ALLOWED_HOSTS[:2] == ["localhost", "127.0.0.1"]
    assert production.CACHES["default"]["LOCATION"] == "redis://prod-redis.example.com:6379/1"
    assert staging.CACHES["default"]["LOCATION"] == "redis://staging-redis.example.com:6379/1"
    named = load("staging", REDIS_URL="redis://here/2", **password)
    assert named.CACHES["default"]["LOCATION"] == "redis://here/2"


def test_the_guides_security_settings_are_on_in_production() -> None:
    production = load("production", **GOOD)
    assert production.DEBUG is False
    assert production.SECURE_SSL_REDIRECT is True
    assert production.SECURE_HSTS_SECONDS == 31536000
    assert production.SECURE_HSTS_INCLUDE_SUBDOMAINS is True
    assert production.SECURE_HSTS_PRELOAD is True


def test_a_mounted_secret_is_read_from_its_file(tmp_path: Path) -> None:
    secret = tmp_path / "key"
    secret.write_text(f"{KEY}\n")
    production = load("production", SECRET_KEY_FILE=str(secret), DATABASE_URL=GOOD["DATABASE_URL"])
    assert production.SECRET_KEY == KEY


def test_connections_to_postgresql_have_time_outs_and_are_checked() -> None:
    database = load("production", **GOOD).DATABASES["default"]
    assert database["ENGINE"] == "backstagetest1.postgresql"
    assert database["CONN_MAX_AGE"] == 60 and database["CONN_HEALTH_CHECKS"] is True
    assert database["OPTIONS"]["connect_timeout"] == 3
    assert "statement_timeout=15s" in database["OPTIONS"]["options"]


@given(st.text(st.characters(codec="utf-8", exclude_characters="\0")))
def test_a_flag_is_true_or_false_or_stops(value: str) -> None:
    known = {word: True for word in env.TRUE} | {word: False for word in env.FALSE}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("A_FLAG", value)
        word = env.tidy(value).lower()
        if word == "":
            assert env.flag("A_FLAG", True) is True and env.flag("A_FLAG", False) is False
        elif word in known:
            assert env.flag("A_FLAG", False) is known[word]
        else:
            with pytest.raises(ImproperlyConfigured, match="A_FLAG (is invalid|contains a line break)"):
                env.flag("A_FLAG", True)


@given(st.text(st.characters(codec="utf-8", exclude_characters="\0")))
def test_no_text_breaks_the_parsers(value: str) -> None:
    def trimmed_words() -> None:
        assert all(word == word.strip() != "" for word in env.words("SOME"))

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SOME", value)
        patch.setenv("DATABASE_URL", value)
        patch.setenv("SECRET_KEY", value)
        patch.setenv("ALLOWED_HOSTS", value)
        for read in (
            trimmed_words,
            lambda: env.number("SOME", 1),
            lambda: env.networks("SOME"),
            lambda: env.ascending("SOME", "1"),
            lambda: env.choice("SOME", "a", ("a", "b")),
            lambda: env.hosts("localhost"),
            lambda: env.port("SOME", 1),
            lambda: env.path("SOME", "a/"),
            lambda: services.redis_url("redis://localhost"),
            services.database,
            env.secret_key,
            lambda: env.site("SOME"),
            lambda: env.private_site("SOME"),
            lambda: env.prometheus("SOME", "token"),
            lambda: env.collector("SOME", secret=True),
            lambda: env.headers("SOME"),
            lambda: env.dsn("SOME"),
            lambda: env.share("SOME", 1),
            lambda: env.origins("SOME"),
            lambda: env.whole("SOME", 1),
            lambda: env.host("SOME", "localhost"),
            lambda: env.comparison("SOME"),
            lambda: env.sender("SOME", "a@example.com"),
        ):
            try:
                read()
            except ImproperlyConfigured as error:
                assert re.match(r"[A-Z_]+ (is (invalid|not set)|contains a line break)", str(error))


@pytest.mark.parametrize("value", ["https://a1b2@o1.ingest.sentry.io/42", "http://a1b2:c3@[::1]:9000/sentry/1"])
def test_a_dsn_reads_as_itself(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME", value)
    assert env.dsn("SOME") == value


def test_headers_read_as_they_are_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME", "Authorization=Bearer%20a%2Cb==, x-team = web")
    assert env.headers("SOME") == {"authorization": "Bearer a,b==", "x-team": "web"}


@given(st.floats(allow_nan=False, min_value=0, max_value=1e12))
def test_a_number_reads_as_itself(value: float) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SOME", repr(value))
        assert env.number("SOME", 1) == value


@pytest.mark.parametrize("value", ["0", "-1,1", "1,1", "2,1", "1,x", "nan", "1,inf", ","])
def test_bounds_that_do_not_ascend_stop_the_process(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME", value)
    with pytest.raises(ImproperlyConfigured, match="^SOME is invalid: expected numbers above 0 in ascending order"):
        env.ascending("SOME", "1")


def test_bounds_read_as_themselves(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME", "0.005, 0.1,5")
    assert env.ascending("SOME", "1") == [0.005, 0.1, 5]


READ_ELSEWHERE = {"PORT", "PYTHON", "TEST_PROCESSES", "DJANGO_SETTINGS_MODULE"}  # by ./run and Django


def registered() -> dict[str, env.Variable]:
    """Every variable that the settings and gunicorn.conf.py read, as settings.env registers it."""
    password = {"SECRET_KEY": KEY, "DB_PASSWORD": "hunter2"}
    with mock.patch.dict(env.VARIABLES, clear=True):
        load("dev")
        load("testing", **GOOD, REDIS_URL="redis://cache.internal/1")
        load("staging", **password)
        load("production", **password)
        runpy.run_path(str(ROOT / "gunicorn.conf.py"))
        return dict(env.VARIABLES)


def examples() -> dict[str, tuple[str, str]]:
    """The variables of .env.example, each with the value that is shown and the comment above it."""
    found, comment = {}, ""
    for line in (ROOT / ".env.example").read_text().splitlines():
        if match := re.match(r"#?\s?([A-Z][A-Z0-9_]*)=(.*)", line):
            found[match[1]] = (match[2], comment)
        else:
            comment = f"{comment} {line}" if line else ""
    return found


def test_the_example_file_documents_every_variable_and_no_other() -> None:
    documented = examples()
    assert set(documented) == set(registered()) | READ_ELSEWHERE
    assert not [name for name, (_, comment) in documented.items() if not comment.strip()], "not explained"


def test_the_example_file_shows_the_default_or_says_what_it_is() -> None:
    documented = examples()
    for name, variable in registered().items():
        shown, comment = documented[name]
        default = variable.default.removeprefix(f"{ROOT}/")
        assert not default or shown == default or "default" in comment.lower(), f"{name}: {default}"


def test_no_variable_is_read_past_the_register() -> None:
    """settings.env alone reads the environment, so that no variable can be missing from .env.example."""
    rooms = ("settings", "health", "metrics", "accounts", "backstagetest1")
    files = [ROOT / "gunicorn.conf.py", *(path for room in rooms for path in (ROOT / room).rglob("*.py"))]
    names = {
        str(path.relative_to(ROOT))
        for path in files
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Attribute) and node.attr in ("environ", "environb", "getenv")
    }
    assert names == {"settings/env.py", "backstagetest1/wsgi.py"}, "wsgi.py only sets DJANGO_SETTINGS_MODULE"


def test_the_stack_passes_on_every_variable_that_makes_sense_in_it() -> None:
    documented = set(examples())
    passed = re.findall(r"^    ([A-Z][A-Z0-9_]*?)(?:_FILE)?:", (ROOT / "docker-compose.yml").read_text(), re.M)
    of_the_image = {"APP_VERSION", "APP_COMMIT", "MEDIA_ROOT", "STATIC_ROOT", "METRICS_DIR", "ENVIRONMENTS_FILE"}
    of_the_stack = {
        "APP_REVISION",
        "BIND",
        "CLOSE_CONNECTIONS_FILE",
        "DATABASE_COLOUR",
        "DB_PASSWORD",
        "DEBUG",
        "HEALTH_DRAIN_FILE",
        "STATIC_SHARED",
    }
    of_commands = {"HOST", "PG_DUMP", "PORT", "PYTHON", "TEST_PROCESSES", "LEDGER_URL", "LEDGER_TOKEN"}
    assert documented - set(passed) == of_the_image | of_the_stack | of_commands


def test_the_static_files_backend_is_the_hashing_one() -> None:
    assert isinstance(staticfiles_storage, CompressedManifestStaticFilesStorage)


def test_no_image_build_needs_a_secret_for_its_static_files(tmp_path: Path) -> None:
    """collectstatic runs under the image's settings with a throw-away key and no database."""
    done = subprocess.run(
        [sys.executable, "manage.py", "collectstatic", "--noinput", "--dry-run"],
        cwd=ROOT,
        env={"DJANGO_SETTINGS_MODULE": "settings.production", "STATIC_ROOT": str(tmp_path), "PATH": os.environ["PATH"]}
        | {"SECRET_KEY": KEY, "DATABASE_URL": "postgresql://nobody@nowhere.invalid/none"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
