"""environments.toml: where each environment is."""

from pathlib import Path

import pytest
from django.core.exceptions import ImproperlyConfigured
from pytest_django import Settings

from deploy.errors import InvalidUsage
from deploy.management.commands.deploy import with_image
from ledger.environments import Check, EnvironmentConfig, WatchConfig, environment_configs
from metrics.prometheus import Prometheus


def test_the_file_of_the_repository_has_every_environment_of_the_ledger() -> None:
    found = environment_configs()
    assert list(found) == ["development", "testing", "staging", "production"]
    assert [name for name, place in found.items() if place.production] == ["production"]
    assert found["production"].url == "https://backstagetest1.com"
    assert all(place.namespace == f"backstagetest1-{name}" for name, place in found.items() if name != "development")


def test_what_a_section_leaves_out_has_its_default(tmp_path: Path, settings: Settings) -> None:
    settings.ENVIRONMENTS_FILE = tmp_path / "environments.toml"
    settings.ENVIRONMENTS_FILE.write_text('[staging]\nurl = "https://staging.example.com/"\n[production]\n')
    assert environment_configs()["staging"] == EnvironmentConfig("staging", url="https://staging.example.com")
    assert environment_configs()["production"] == EnvironmentConfig("production", production=True)


CHECK, GOOD = "[[staging.watch.checks]]", "name = 'a'\nquery = 'up'\n"


def test_what_releases_are_judged_by_is_declared(tmp_path: Path, settings: Settings) -> None:
    settings.ENVIRONMENTS_FILE = tmp_path / "environments.toml"
    settings.ENVIRONMENTS_FILE.write_text("""
        [staging]
        prometheus_url = "https://example.com/prometheus/"
        error_budget = "hold"
        [staging.watch]
        max_error_rate = 0.01
        [[staging.watch.checks]]
        name = "jobs that wait"
        query = 'sum(jobs{environment="$environment", version="$version"})'
        max = 100
        [production]
        """)
    found = environment_configs()["staging"]
    check = Check("jobs that wait", 'sum(jobs{environment="$environment", version="$version"})', max=100)
    assert found.watch == WatchConfig(0.01, 1.0, (check,)) and found.error_budget == "hold"
    assert check.expression("staging", "1.4.0") == 'sum(jobs{environment="staging", version="1.4.0"})'
    assert [check.exceeded(value) for value in (99, 100, 101)] == [False, False, True]
    assert [Check("a", "up", min=1).exceeded(value) for value in (0.9, 1, 2)] == [True, False, False]
    settings.PROMETHEUS_TOKEN = "secret"
    assert found.prometheus == Prometheus("https://example.com/prometheus", "secret")
    assert environment_configs()["production"].prometheus is None
    settings.PROMETHEUS_URL = "http://localhost:9090"
    assert environment_configs()["production"].prometheus == Prometheus("http://localhost:9090", "secret")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[Staging]", r":1: \[Staging\]: not a valid name; expected at most 40 lower-case letters"),
        ("# none", ":1: no environment; expected a section"),
        ("[a]\n[b]\npromotes_from = 'c'", r':3: \[b\] promotes_from = "c": expected environments above it: a.'),
        ("[a]\npromotes_from = ['b']\n[b]", r':2: \[a\] promotes_from = "b": expected environments above it: none.'),
        ("[a]\n[b]\npromotes_from = 1", ":3: .*expected names of environments"),
        ("[a]\n[b]\npromotes_from = ['a', 'a']", ":3: .*names an environment twice"),
        ("[a]\n[b]\npromotes_from = 'a'\nsoak = '5 min'", r":4: \[b\] soak: '5 min' is not a valid duration; expected"),
        ("[a]\nsoak = '5m'", r":2: \[a\] soak: requires promotes_from"),
        ("[a]\nproduction = 'yes'", ":2: .*expected true or false"),
        ("[a]\ncolour = 'pink'", ':2: .*"pink": expected grey or blue or green'),
        ("a = { url = 'x' }", r":1: \[a\] url: expected a URL"),
        ("a.url = 'x'", r":1: \[a\] url: expected a URL"),
        ("[ 'a' ]\n'url' = 'x'", r":2: \[a\] url: expected a URL"),
        ("staging = 1", "staging is not a section"),
        ("[a]\n\n[staging]\nimage = 'a'\nurls = ''", r":5: \[staging\] urls: unknown key; expected one of url, target"),
        ("[staging]\nurl = 1", r"\[staging\] url = 1: expected a string"),
        ("[staging]\nurl = 'staging.example.com'", "expected a URL without credentials, such as https://"),
        ("[staging]\nurl = 'file:///etc/passwd'", "expected a URL without credentials, such as https://"),
        ("[staging]\nurl = 'https://me:secret@example.com'", "expected a URL without credentials, such as https://"),
        ("[staging]\nurl = 'https://example.com:port'", "expected a URL without credentials, such as https://"),
        ("[staging]\nurl = 'https://a.example,b.example'", "expected a URL without credentials, such as https://"),
        ("[staging]\nurl = 'https://example.com/?a=1'", "expected a URL without credentials, such as https://"),
        ("[staging]\ntarget = 'nomad'", '"nomad": expected compose or kubernetes'),
        ("[staging]\nstrategy = 'canary'", '"canary": expected rolling or blue-green'),
        ("[staging]\nnamespace = 'A;b'", '"A;b": expected lower-case letters'),
        ("[staging]\nimage = 'app:1'", '"app:1": expected a repository without tag'),
        ("[staging", ":1: is not valid TOML"),
        ("[staging]\nurl = 'a", ":2: is not valid TOML"),
        ("[staging]\nerror_budget = 'spend'", r'\[staging\] error_budget = "spend": expected hold or report'),
        ("[staging]\nprometheus_url = 'http://me:secret@host'", r"\[staging\] prometheus_url: expected a URL without"),
        (
            "[staging]\nprometheus_url = 'http://host'",
            r"\[staging\] prometheus_url: expected https://, as PROMETHEUS_TOK",
        ),
        ("[staging]\nwatch = 1", r"\[staging.watch\]: not a section. Write \[staging.watch\]"),
        (
            "[staging.watch]\nmax_errors = 1",
            r"\[staging.watch\] max_errors: unknown key; expected one of max_error_rate",
        ),
        ("[staging.watch]\nmax_error_rate = 5", r"\[staging.watch\] max_error_rate = 5: expected a share above 0, at"),
        ("[staging.watch]\nmax_error_rate = true", r"max_error_rate = True: expected a share above 0"),
        ("[staging.watch]\nmax_p95_seconds = nan", r"\[staging.watch\] max_p95_seconds = nan: expected seconds above"),
        ("[staging.watch]\nmax_p95_seconds = '1'", "max_p95_seconds = '1': expected seconds above 0, such as 1.0."),
        ("[staging.watch]\nchecks = 'a'", r"\[\[staging.watch.checks\]\]: expected tables"),
        (f"{CHECK}\n{GOOD}max = 1\nmaxi = 1", r"\[\[staging.watch.checks\]\] number 1 maxi: unknown key"),
        (
            f"{CHECK}\n{GOOD}max = 1\n{CHECK}\nname = 'b'",
            r":5: \[\[staging.watch.checks\]\] number 2 query: expected text",
        ),
        (f"{CHECK}\n{GOOD}max = 1\n{CHECK}\n{GOOD}min = 1", r':6: \[\[staging.watch.checks\]\] name = "a": used twice'),
        (f"{CHECK}\n{GOOD}", r"\[\[staging.watch.checks\]\] number 1: expected either max or min, a number."),
        (f"{CHECK}\n{GOOD}max = 1\nmin = 0", "number 1: expected either max or min"),
        (f"{CHECK}\n{GOOD}max = inf", "number 1: expected either max or min"),
        (f"{CHECK}\nquery = 'up'\nname = 'a\tb'\nmax = 1", "number 1 name: expected one line"),
    ],
)
def test_a_mistake_is_named_with_its_place(tmp_path: Path, settings: Settings, text: str, message: str) -> None:
    settings.PROMETHEUS_TOKEN = "secret"
    settings.ENVIRONMENTS_FILE = tmp_path / "environments.toml"
    settings.ENVIRONMENTS_FILE.write_text(text)
    with pytest.raises(ImproperlyConfigured, match=message):
        environment_configs()


def test_a_file_that_is_not_there_is_named(tmp_path: Path, settings: Settings) -> None:
    settings.ENVIRONMENTS_FILE = tmp_path / "none.toml"
    with pytest.raises(ImproperlyConfigured, match="none.toml cannot be read .*ENVIRONMENTS_FILE"):
        environment_configs()


DIGEST = "sha256:" + "a1" * 32


@pytest.mark.parametrize(
    ("image", "tagged"),
    [
        ("registry.example.com:5000/team/app", "registry.example.com:5000/team/app:1.4.0"),
        ("team/app:1.4.0", "team/app:1.4.0"),
        (f"team/app@{DIGEST}", f"team/app:1.4.0@{DIGEST}"),
        (f"registry.example.com/app:1.4.0@{DIGEST}", f"registry.example.com/app:1.4.0@{DIGEST}"),
    ],
)
def test_a_deployment_may_name_the_very_image(image: str, tagged: str) -> None:
    assert with_image(EnvironmentConfig("staging", target="kubernetes"), image, "1.4.0").tagged("1.4.0") == tagged


@pytest.mark.parametrize("image", ["team/app:1.3.0", "team/app@", "team/app@sha256:12", f"@{DIGEST}", "a b", "-x", ""])
def test_an_image_that_is_none_is_refused(image: str) -> None:
    with pytest.raises(InvalidUsage, match="expected a repository"):
        with_image(EnvironmentConfig("staging", target="kubernetes"), image, "1.4.0")


def test_compose_takes_no_image_by_its_digest() -> None:
    with pytest.raises(InvalidUsage, match="requires a cluster"):
        with_image(EnvironmentConfig("development"), f"app@{DIGEST}", "1.4.0")
