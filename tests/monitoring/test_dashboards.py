"""The dashboards: what they say of themselves, and each of their queries against a real Prometheus."""

import http.client
import json
import re
import runpy
import subprocess
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from urllib.parse import urlencode
from urllib.request import urlopen

import pytest

from tests.monitoring.promql import Expression
from tests.monitoring.test_rules import known
from tests.support.prometheus import PrometheusServer
from tests.support.servers import PATIENCE, ROOT, Gunicorn, Postgres, Redis, eventually
from tests.support.tools import needs

SCRIPT = runpy.run_path(str(ROOT / "scripts/dashboards.py"))
FILES = sorted((ROOT / "monitoring/dashboards").glob("*.json"))
RULES = sorted((ROOT / "monitoring/rules").glob("*.yml"))
DASHBOARDS = {path.stem: json.loads(path.read_text()) for path in FILES}
PANELS = [panel for dashboard in DASHBOARDS.values() for panel in dashboard["panels"] if panel["type"] != "row"]
# https://grafana.com/docs/grafana/latest/panels-visualizations/configure-standard-options/#unit
UNITS = {"none", "s", "bytes", "Bps", "reqps", "cps", "ops", "percentunit"}
# Of Prometheus itself: https://prometheus.io/docs/concepts/jobs_instances/
OF_PROMETHEUS = {"scrape_duration_seconds", "scrape_samples_scraped", "ALERTS"}


def expressions(panel: dict[str, Any]) -> list[str]:
    return [target["expr"] for target in panel["targets"]]


def filled(expression: str, environment: str, instance: str) -> str:
    """The query as Grafana sends it, with its variables filled."""
    for name, value in {"environment": environment, "instance": instance, "__rate_interval": "1m"}.items():
        expression = expression.replace(f"${name}", value)
    assert "$" not in expression, expression
    return expression


# What they say of themselves


def test_the_files_are_those_of_the_script() -> None:
    assert {path: path.read_text() for path in FILES} == SCRIPT["files"](), "run scripts/dashboards.py"


@pytest.mark.parametrize("panel", PANELS, ids=lambda panel: str(panel["title"]))
def test_a_panel_says_what_it_shows_in_what_unit_and_why_it_may_be_empty(panel: dict[str, Any]) -> None:
    defaults = panel["fieldConfig"]["defaults"]
    assert panel["title"] and defaults["unit"] in UNITS
    for text in (panel["description"], defaults["noValue"]):
        assert len(text) > 20 and text.endswith("."), text
    assert panel["targets"] and all(target["legendFormat"] for target in panel["targets"][1:])


def test_no_two_panels_have_the_same_title_and_no_two_dashboards_the_same_address() -> None:
    assert len({panel["title"] for panel in PANELS}) == len(PANELS) > 50
    assert len({dashboard["uid"] for dashboard in DASHBOARDS.values()}) == len(FILES) == 5


def test_no_two_panels_overlap() -> None:
    for dashboard in DASHBOARDS.values():
        taken: set[tuple[int, int]] = set()
        for panel in dashboard["panels"]:
            place = panel["gridPos"]
            cells = {
                (x, y)
                for x in range(place["x"], place["x"] + place["w"])
                for y in range(place["y"], place["y"] + place["h"])
            }
            assert max(x for x, _ in cells) < SCRIPT["WIDTH"] and not cells & taken, panel["title"]
            taken |= cells
        assert len({panel["id"] for panel in dashboard["panels"]}) == len(dashboard["panels"])


def queries() -> list[str]:
    """Every query, those of annotations and variables included."""
    found = [expression for panel in PANELS for expression in expressions(panel)]
    for dashboard in DASHBOARDS.values():
        found += [each["expr"] for each in dashboard["annotations"]["list"]]
        for each in dashboard["templating"]["list"]:
            if each["type"] == "query":
                found.append(re.sub(r"label_values\((.*), \w+\)", r"\1", each["query"]["query"]))
    return found


def test_every_metric_is_there_and_used_as_its_type_allows_and_every_label_that_is_selected() -> None:
    for query in queries():
        for each in Expression(query).selectors:
            kind, labels = (
                ("gauge", {"alertstate", "environment"}) if each.metric in OF_PROMETHEUS else known(each.metric)
            )
            assert each.matchers.keys() <= labels | {"instance", "job"}, query
            assert (kind == "counter") == bool({"rate", "increase"} & set(each.inside)), query


@needs("promtool")
def test_promtool_accepts_every_query(tmp_path: Path) -> None:
    rules = [
        {"record": f"query:{number}", "expr": filled(query, "testing", "a|b")} for number, query in enumerate(queries())
    ]
    file = tmp_path / "queries.yml"
    file.write_text(json.dumps({"groups": [{"name": "queries", "rules": rules}]}))
    done = subprocess.run(["promtool", "check", "rules", file], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


# Their queries against a real Prometheus

RUNNING, FROZEN, FRESH = "production", "staging", "development"
# What may be empty although the service runs and has traffic; each says in words of its own why.
EMPTY_WHILE_ALL_IS_WELL = {
    "Certificate expires in",
    "Change failure rate, 30 days",
    "Container memory",
    "Duration",
    "Failed collectors",
    "Failing checks by reason",
    "In progress for",
    "Last uptime sample",
    "Lead time",
    "Lock held by hand for",
    "Store errors",
    "Why the database is unhealthy",
}


class Monitored:
    """A Prometheus with the rules, which scrapes three services each second."""

    def __init__(self, prometheus: PrometheusServer, services: dict[str, Gunicorn]) -> None:
        self.prometheus = prometheus
        self.services = services

    def query(self, expression: str) -> list[Any]:
        """The series that an instant query returns now, without those that have no number."""
        with urlopen(
            f"{self.prometheus.url}/api/v1/query?{urlencode({'query': expression})}", timeout=PATIENCE
        ) as answer:
            found = json.load(answer)
        assert found["status"] == "success", found
        return [each for each in found["data"]["result"] if each["value"][1] != "NaN"]

    def empty(self, panel: dict[str, Any], environment: str) -> list[str]:
        """The panel's queries that have no series."""
        instance = f"127.0.0.1:{self.services[environment].port}"
        return [one for one in expressions(panel) if not self.query(filled(one, environment, instance))]


def visit(service: Gunicorn, *paths: str) -> None:
    for path in paths:
        link = http.client.HTTPConnection("127.0.0.1", service.port, timeout=PATIENCE)
        link.request("GET", path, headers={"Connection": "close"})
        link.getresponse().read()
        link.close()


@pytest.fixture(scope="module")
def monitored(django_db_setup: None, own_postgres: Postgres, own_redis: Redis) -> Iterator[Monitored]:
    named = {"DJANGO_SETTINGS_MODULE": "tests.support.named_settings", "SAMPLE_UPTIME": "false"}
    services = {
        RUNNING: Gunicorn(2, **named, NAMED_ENVIRONMENT=RUNNING),
        FROZEN: Gunicorn(2, **named, NAMED_ENVIRONMENT=FROZEN, DATABASE_URL=own_postgres.url, REDIS_URL=own_redis.url),
        FRESH: Gunicorn(2, **named, NAMED_ENVIRONMENT=FRESH),
    }
    with ExitStack() as stack:
        starting = [threading.Thread(target=stack.enter_context, args=(each,)) for each in services.values()]
        for each in starting:
            each.start()
        for each in starting:
            each.join()
        rules = Path(own_redis.folder) / "rules"
        rules.mkdir(exist_ok=True)
        for path in RULES:  # what is evaluated every two minutes would come too late
            (rules / path.name).write_text(re.sub(r"interval: \w+", "interval: 1s", path.read_text()))
        targets = [{"targets": [f"127.0.0.1:{each.port}" for each in services.values()]}]
        config = {
            "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
            "rule_files": [f"{rules}/*.yml"],
            "scrape_configs": [{"job_name": "backstagetest1", "static_configs": targets}],
        }
        prometheus = stack.enter_context(PrometheusServer(json.dumps(config)))
        found = Monitored(prometheus, services)
        eventually(lambda: len(found.query("up == 1")) == 3)
        for _ in range(5):  # while the counters are scraped, as those that begin with a number have no rate
            visit(services[RUNNING], "/", "/accounts/login/", "/nowhere/", "/static/nothing", "/status/")
            visit(services[FROZEN], "/accounts/login/", "/nowhere/", "/fails/")
        own_postgres.pause()
        own_redis.pause()
        stack.callback(own_redis.resume)
        stack.callback(own_postgres.resume)
        yield found


def empty(monitored: Monitored, environment: str) -> set[str]:
    """The titles of the panels of which a query has no series."""
    return {panel["title"] for panel in PANELS if monitored.empty(panel, environment)}


@pytest.mark.slow
@pytest.mark.django_db
@needs("prometheus")
def test_no_panel_of_a_running_service_is_empty(monitored: Monitored) -> None:
    def missing() -> set[str]:
        visit(monitored.services[RUNNING], "/", "/accounts/login/", "/nowhere/", "/fail/")
        return empty(monitored, RUNNING) - EMPTY_WHILE_ALL_IS_WELL

    eventually(lambda: not missing(), every=0.5)


@pytest.mark.slow
@pytest.mark.django_db
@needs("prometheus")
def test_the_variables_offer_each_environment_and_its_instances_and_a_new_version_is_marked(
    monitored: Monitored,
) -> None:
    for dashboard in DASHBOARDS.values():
        queries = {each["name"]: each["query"]["query"] for each in dashboard["templating"]["list"][1:]}
        marks = {each["name"]: each["expr"] for each in dashboard["annotations"]["list"]}
        for environment, service in monitored.services.items():
            found = {}
            for name, query in queries.items():
                series, label = re.fullmatch(r"label_values\((.*), (\w+)\)", query).groups()  # type: ignore[union-attr]
                series = filled(series, environment, "")
                found[name] = {each["metric"][label] for each in monitored.query(series)}
            assert found == {"environment": {*monitored.services}, "instance": {f"127.0.0.1:{service.port}"}}
            (new,) = monitored.query(filled(marks["New versions"], environment, ""))
            assert new["metric"] == {"version": "dev"}


@pytest.mark.slow
@pytest.mark.django_db
@needs("prometheus")
@pytest.mark.parametrize(
    ("environment", "unknown"),
    [(FROZEN, {"Connections", "Clock offset", "Active users"}), (FRESH, {"Requests by status", "Slowest endpoints"})],
)
def test_an_empty_panel_of_a_frozen_or_a_fresh_service_says_why_in_words_of_its_own(
    monitored: Monitored, environment: str, unknown: set[str]
) -> None:
    general = {one["title"] for one in PANELS if one["fieldConfig"]["defaults"]["noValue"] == SCRIPT["NOT_SCRAPED"]}

    def as_expected() -> bool:
        found = empty(monitored, environment)
        return unknown <= found and not found & general

    eventually(as_expected, every=0.5)
