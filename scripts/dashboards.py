"""Makes monitoring/dashboards/*.json, the dashboards for Grafana; prints the names of the files that changed.

A dashboard is a list of rows, and a row a list of panels. What all panels have in common is written once, in as_json(),
so a panel says only what it shows. Queries are held to docs/metrics.md and monitoring/rules/ by tests/monitoring/.
https://grafana.com/docs/grafana/latest/dashboards/build-dashboards/view-dashboard-json-model/
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
TARGET = ROOT / "monitoring" / "dashboards"
SOURCE = {"type": "prometheus", "uid": "${datasource}"}
NOT_SCRAPED = "Nothing was scraped in this time. Check that Prometheus reaches the instances (Status > Targets)."
WIDTH, HEIGHT = 24, 8  # of the whole grid, and of a panel

HERE = 'environment="$environment"'
EACH = 'instance=~"$instance"'


@dataclass(frozen=True)
class Panel:
    """A panel. `queries` are pairs of an expression and what the legend says of a series, such as {{instance}}.

    `empty` is shown in place of "No data", and says why there may be none. `limits` are the values from which a stat
    turns orange and red; falling ones, if the second is lower. `kind` is Grafana's name of the visualization.
    """

    title: str
    unit: str
    description: str
    queries: tuple[tuple[str, str], ...]
    empty: str = NOT_SCRAPED
    kind: str = "timeseries"
    width: int = 8
    limits: tuple[float, float] | None = None
    maximum: float | None = None

    @property
    def height(self) -> int:
        """In cells of the grid."""
        return HEIGHT // 2 if self.kind == "stat" else HEIGHT

    def as_json(self, key: int, x: int, y: int) -> dict[str, Any]:
        """Returns the panel at that place, with that id."""
        instant = self.kind != "timeseries"
        defaults: dict[str, Any] = {"unit": self.unit, "noValue": self.empty}
        if self.maximum is not None:
            defaults |= {"min": 0, "max": self.maximum}
        if self.kind == "timeseries":
            defaults["custom"] = {"fillOpacity": 10, "showPoints": "auto", "spanNulls": False}
            options: dict[str, Any] = {
                "legend": {"displayMode": "table", "placement": "bottom", "calcs": ["lastNotNull", "max"]},
                "tooltip": {"mode": "multi", "sort": "desc"},
            }
        elif self.kind == "stat":
            defaults["color"] = {"mode": "thresholds"}
            defaults["thresholds"] = {"mode": "absolute", "steps": self.steps()}
            options = {"reduceOptions": {"calcs": ["lastNotNull"]}, "textMode": "auto", "wideLayout": True}
        else:
            options = {"showHeader": True}
        panel: dict[str, Any] = {
            "id": key,
            "type": self.kind,
            "title": self.title,
            "description": self.description,
            "datasource": SOURCE,
            "gridPos": {"x": x, "y": y, "w": self.width, "h": self.height},
            "fieldConfig": {"defaults": defaults, "overrides": []},
            "options": options,
            "targets": [
                {
                    "refId": chr(ord("A") + number),
                    "datasource": SOURCE,
                    "expr": expression,
                    "legendFormat": legend,
                    "instant": instant,
                    "range": not instant,
                    **({"format": "table"} if self.kind == "table" else {}),
                }
                for number, (expression, legend) in enumerate(self.queries)
            ],
        }
        if self.kind == "table":
            hidden = {"Time": True, "Value": True}
            panel["transformations"] = [{"id": "organize", "options": {"excludeByName": hidden}}]
        return panel

    def steps(self) -> list[dict[str, Any]]:
        """Returns the thresholds of a stat, as Grafana orders them: from the lowest value up."""
        if self.limits is None:
            return [{"color": "text", "value": None}]
        warning, bad = self.limits
        if bad > warning:
            colours: list[tuple[str, float | None]] = [("green", None), ("orange", warning), ("red", bad)]
        else:
            colours = [("red", None), ("orange", bad), ("green", warning)]
        return [{"color": colour, "value": value} for colour, value in colours]


@dataclass(frozen=True)
class Row:
    """Panels under a heading. They fill the width, from the left to the right, and then the next line."""

    title: str
    panels: tuple[Panel, ...]


@dataclass(frozen=True)
class Dashboard:
    """A dashboard; its file and its address (uid) are called `name`."""

    name: str
    title: str
    description: str
    rows: tuple[Row, ...]

    def as_json(self) -> dict[str, Any]:
        """Returns Grafana's JSON model."""
        panels: list[dict[str, Any]] = []
        y = 0
        for row in self.rows:
            head = {"type": "row", "title": row.title, "collapsed": False, "panels": []}
            panels.append(head | {"id": len(panels) + 1, "gridPos": {"x": 0, "y": y, "w": WIDTH, "h": 1}})
            x, y, tallest = 0, y + 1, 0
            for panel in row.panels:
                if x + panel.width > WIDTH:
                    x, y, tallest = 0, y + tallest, 0
                panels.append(panel.as_json(len(panels) + 1, x, y))
                x, tallest = x + panel.width, max(tallest, panel.height)
            y += tallest
        return {
            "uid": f"backstagetest1-{self.name}",
            "title": f"backstagetest1 / {self.title}",
            "description": self.description,
            "tags": ["backstagetest1"],
            "schemaVersion": 39,
            "editable": False,
            "graphTooltip": 1,
            "refresh": "30s",
            "time": {"from": "now-3h", "to": "now"},
            "timezone": "",
            "links": [{"type": "dashboards", "tags": ["backstagetest1"], "title": "Dashboards", "keepTime": True}],
            "templating": {"list": VARIABLES},
            "annotations": {"list": ANNOTATIONS},
            "panels": panels,
        }


def variable(name: str, label: str, query: str, several: bool) -> dict[str, Any]:
    """Returns a variable whose values are those of a label. "All" stands for each of its values."""
    return {
        "name": name,
        "label": label,
        "type": "query",
        "datasource": SOURCE,
        "query": {"query": query, "refId": name},
        "refresh": 2,  # when the time range changes, so that instances of that time are offered
        "sort": 1,
        "multi": several,
        "includeAll": several,
        "current": {"text": "All", "value": "$__all"} if several else {},
    }


VARIABLES = [
    {"name": "datasource", "label": "Data source", "type": "datasource", "query": "prometheus", "current": {}},
    variable("environment", "Environment", "label_values(app_info, environment)", False),
    variable("instance", "Instance", f"label_values(app_info{{{HERE}}}, instance)", True),
]


def annotation(name: str, colour: str, expression: str, title: str, text: str) -> dict[str, Any]:
    """Returns an annotation: marks on the time axis while the expression has a series."""
    return {
        "name": name,
        "datasource": SOURCE,
        "enable": True,
        "iconColor": colour,
        "expr": expression,
        "titleFormat": title,
        "textFormat": text,
        "step": "30s",
    }


ANNOTATIONS = [
    annotation(
        "Deployments",
        "blue",
        f"sum by (environment, strategy, result) (increase(deployments_total{{{HERE}}}[2m])) > 0",
        "Deployment {{result}}",
        "{{strategy}}, recorded by the ledger",
    ),
    annotation(
        "New versions",
        "purple",
        f"group by (version) (app_info{{{HERE}}})"
        f" unless on (version) group by (version) (last_over_time(app_info{{{HERE}}}[10m] offset 2m))",
        "Version {{version}} started",
        "The first instance that reports it",
    ),
]


def stat(
    title: str, unit: str, description: str, expression: str, legend: str = "", empty: str = NOT_SCRAPED, **more: Any
) -> Panel:
    """Returns a panel with a number, an eighth of the width."""
    return Panel(title, unit, description, ((expression, legend),), empty, "stat", **({"width": 4} | more))


def graph(
    title: str, unit: str, description: str, *queries: tuple[str, str], empty: str = NOT_SCRAPED, **more: Any
) -> Panel:
    """Returns a panel with curves, a third of the width."""
    return Panel(title, unit, description, queries, empty, **more)


NO_REQUESTS = "No requests in the last 5 minutes, so there is nothing to measure."
NO_TRAFFIC = "No requests since these instances started."
FROZEN = "The database did not answer the scrape, or it is SQLite, which has no such figure."


def quantiles(of: str, by: str) -> tuple[tuple[str, str], ...]:
    """Returns the queries of the three recorded quantiles of the durations of `of`."""
    return tuple(
        (f"{of}:http_request_duration_seconds:p{each}_5m{{{HERE}}}", f"p{each} {{{{{by}}}}}") for each in (50, 95, 99)
    )


OVERVIEW = Dashboard(
    "overview",
    "Overview",
    "The golden signals of an environment: traffic, errors, latency, saturation. Releases are told apart.",
    (
        Row(
            "Now",
            (
                stat(
                    "Requests",
                    "reqps",
                    "Requests per second over the last 5 minutes, of all releases.",
                    f"sum(release:http_requests:rate5m{{{HERE}}})",
                ),
                stat(
                    "Errors",
                    "percentunit",
                    "Share of requests that ended in a 5xx, of the release that has the most.",
                    f"max(release:http_errors:ratio_rate5m{{{HERE}}})",
                    limits=(0.001, 0.01),
                ),
                stat(
                    "p95",
                    "s",
                    "95 % of requests were answered within this time, by the slowest release.",
                    f"max(release:http_request_duration_seconds:p95_5m{{{HERE}}} >= 0)",
                    empty=NO_REQUESTS,
                    limits=(0.3, 1.0),
                ),
                stat(
                    "Instances",
                    "none",
                    "Instances that answered the last scrape.",
                    f"count(app_info{{{HERE},{EACH}}})",
                ),
                stat(
                    "Failing checks",
                    "none",
                    "Checks of /health/ that fail on any instance. The panel below names the reasons.",
                    f"count(min by (check) (health_check_up{{{EACH}}}) == 0) or 0 * count(health_check_up{{{EACH}}})",
                    limits=(1, 2),
                ),
                stat(
                    "Firing alerts",
                    "none",
                    "Alerts of this environment that fire now; Alertmanager has the details.",
                    f'count(ALERTS{{{HERE},alertstate="firing"}}) or 0 * count(app_info{{{HERE}}})',
                    limits=(1, 3),
                ),
            ),
        ),
        Row(
            "Golden signals",
            (
                graph(
                    "Requests by release",
                    "reqps",
                    "Requests per second of each release. Vertical lines mark deployments and new versions.",
                    (f"release:http_requests:rate5m{{{HERE}}}", "{{version}}"),
                ),
                graph(
                    "Errors by release",
                    "percentunit",
                    "Share of each release's requests that ended in a 5xx.",
                    (f"release:http_errors:ratio_rate5m{{{HERE}}}", "{{version}}"),
                ),
                graph(
                    "Latency by release",
                    "s",
                    "Half, 95 % and 99 % of each release's requests were answered within this time.",
                    *quantiles("release", "version"),
                    empty=NO_REQUESTS,
                ),
                graph(
                    "Requests in progress",
                    "none",
                    "Requests being answered, of all instances. At the number of threads, requests wait.",
                    (f"environment:http_requests_in_progress:sum{{{HERE}}}", "in progress"),
                ),
                graph(
                    "CPU",
                    "none",
                    "Cores in use by each instance, the master and its workers together.",
                    (f"rate(process_cpu_seconds_total{{{EACH}}}[$__rate_interval])", "{{instance}}"),
                ),
                graph(
                    "Requests by status",
                    "reqps",
                    "Requests per second by the status of the answer.",
                    (f"sum by (status) (rate(http_requests_total{{{EACH}}}[$__rate_interval]))", "{{status}}"),
                    empty=NO_TRAFFIC,
                ),
            ),
        ),
        Row(
            "By endpoint",
            (
                graph(
                    "Busiest endpoints",
                    "reqps",
                    "The ten endpoints with the most requests. An endpoint is the template of a route.",
                    (f"topk(10, endpoint:http_requests:rate5m{{{HERE}}})", "{{endpoint}}"),
                    empty=NO_TRAFFIC,
                ),
                graph(
                    "Errors by endpoint",
                    "percentunit",
                    "Share of an endpoint's requests that ended in a 5xx; the ten worst.",
                    (f"topk(10, endpoint:http_errors:ratio_rate5m{{{HERE}}})", "{{endpoint}}"),
                    empty=NO_TRAFFIC,
                ),
                graph(
                    "Slowest endpoints",
                    "s",
                    "95 % of an endpoint's requests were answered within this time; the ten slowest.",
                    (f"topk(10, endpoint:http_request_duration_seconds:p95_5m{{{HERE}}} >= 0)", "{{endpoint}}"),
                    empty=NO_REQUESTS,
                ),
                graph(
                    "Exceptions",
                    "cps",
                    "Unhandled exceptions per second, by their type and endpoint; the ten most frequent.",
                    (
                        "topk(10, sum by (type, endpoint)"
                        f" (rate(http_exceptions_total{{{EACH}}}[$__rate_interval])))",
                        "{{type}} {{endpoint}}",
                    ),
                    empty="No unhandled exception since these instances started.",
                ),
                graph(
                    "Answered bytes",
                    "Bps",
                    "Bytes per second of response bodies, before compression by the proxy; the ten largest endpoints.",
                    (
                        "topk(10, sum by (endpoint)"
                        f" (rate(http_response_size_bytes_sum{{{EACH}}}[$__rate_interval])))",
                        "{{endpoint}}",
                    ),
                    empty=NO_TRAFFIC,
                ),
                graph(
                    "Failing checks by reason",
                    "none",
                    "1 while a check of /health/ fails on any instance, by the reason that it gives.",
                    (f"max by (check, reason) (health_check_reason{{{EACH}}}) == 1", "{{check}}: {{reason}}"),
                    empty="No check of /health/ fails.",
                ),
            ),
        ),
        Row(
            "People and certificates",
            (
                graph(
                    "Active users",
                    "none",
                    "Distinct users seen in the last 15 minutes.",
                    (f"max(active_users{{{EACH}}})", "users"),
                    empty="The cache did not answer the scrape.",
                ),
                graph(
                    "Sign-ups",
                    "none",
                    "Users who signed up, per hour.",
                    (f"sum(increase(user_registrations_total{{{EACH}}}[1h]))", "sign-ups"),
                ),
                stat(
                    "Certificate expires in",
                    "s",
                    "Time until the environment's TLS certificate expires, as its visitors get it.",
                    f"max(certificate_expiry_timestamp_seconds{{{HERE}}}) - time()",
                    empty="No https URL in environments.toml, WATCH_ENVIRONMENTS is off, or not seen yet.",
                    limits=(1_209_600, 259_200),
                ),
                stat(
                    "Last uptime sample",
                    "s",
                    "Time since the last uptime sample of this environment; one is taken each minute.",
                    f"time() - max(uptime_sample_timestamp_seconds{{{HERE}}})",
                    empty="No sample yet, SAMPLE_UPTIME is off, or the database did not answer the scrape.",
                    limits=(180, 600),
                ),
            ),
        ),
    ),
)

WORKERS = Dashboard(
    "workers",
    "Workers and store",
    "The processes of each instance, what the machine grants them, and the metrics themselves.",
    (
        Row(
            "Workers",
            (
                graph(
                    "Workers",
                    "none",
                    "gunicorn's worker processes.",
                    (f"process_workers{{{EACH}}}", "{{instance}}"),
                ),
                graph(
                    "Workers that ended",
                    "none",
                    "Workers that ended without being told to, in 5 minutes. A timeout did not report for 30 s; a"
                    " crash was killed, perhaps for lack of memory; a recycled one had served MAX_REQUESTS.",
                    (f"sum by (reason) (increase(worker_exits_total{{{EACH}}}[5m]))", "{{reason}}"),
                ),
                graph(
                    "Busy threads",
                    "none",
                    "Requests in progress in each instance, each of which has a thread.",
                    (f"http_requests_in_progress{{{EACH}}}", "{{instance}}"),
                ),
                graph(
                    "Running since",
                    "s",
                    "Time since the start of each instance's master. A fall is a restart.",
                    (f"time() - process_start_time_seconds{{{EACH}}}", "{{instance}}"),
                ),
                graph(
                    "CPU by instance",
                    "none",
                    "Cores in use by the master and its workers.",
                    (f"rate(process_cpu_seconds_total{{{EACH}}}[$__rate_interval])", "{{instance}}"),
                ),
                graph(
                    "File descriptors",
                    "percentunit",
                    "Open file descriptors of the process that has the most, as a share of its limit.",
                    (f"process_open_fds{{{EACH}}} / process_max_fds{{{EACH}}}", "{{instance}}"),
                    maximum=1,
                ),
            ),
        ),
        Row(
            "Memory and disk",
            (
                graph(
                    "Container memory",
                    "percentunit",
                    "Memory in use as a share of the container's limit, without caches that can be dropped. At 1 the"
                    " kernel kills a process.",
                    (
                        f"container_memory_used_bytes{{{EACH}}} / container_memory_limit_bytes{{{EACH}}}",
                        "{{instance}}",
                    ),
                    empty="These instances have no memory limit.",
                    maximum=1,
                ),
                graph(
                    "Process memory",
                    "bytes",
                    "Resident memory of the master and its workers. Pages that they share count for each.",
                    (f"process_resident_memory_bytes{{{EACH}}}", "resident {{instance}}"),
                    (f"process_virtual_memory_bytes{{{EACH}}}", "virtual {{instance}}"),
                ),
                graph(
                    "Room for uploads",
                    "percentunit",
                    "Free space on the file system of MEDIA_ROOT, as a share of its size.",
                    (f"media_disk_free_bytes{{{EACH}}} / media_disk_size_bytes{{{EACH}}}", "{{instance}}"),
                    maximum=1,
                ),
            ),
        ),
        Row(
            "Metrics and their store",
            (
                graph(
                    "Scrape time",
                    "s",
                    "How long Prometheus waited for /metrics. Frozen dependencies delay it by half a second at most.",
                    (f"scrape_duration_seconds{{{EACH}}}", "{{instance}}"),
                ),
                graph(
                    "Samples per scrape",
                    "none",
                    "Samples in each scrape. The code bounds them, whatever clients request.",
                    (f"scrape_samples_scraped{{{EACH}}}", "{{instance}}"),
                ),
                graph(
                    "Answered scrapes",
                    "cps",
                    "Responses of /metrics per second, by status. 401 and 403 are rejected clients.",
                    (f"sum by (status) (rate(metrics_scrapes_total{{{EACH}}}[$__rate_interval]))", "{{status}}"),
                ),
                graph(
                    "Failed collectors",
                    "none",
                    "Times in 5 minutes that a collector failed or missed its deadline, and was left out of a scrape.",
                    (
                        f"sum by (collector) (increase(metrics_collector_errors_total{{{EACH}}}[5m])) > 0",
                        "{{collector}}",
                    ),
                    empty="No collector failed or was late.",
                ),
                graph(
                    "Store errors",
                    "none",
                    "Failures of the workers' metrics store in an hour: no room for a value, or a corrupt file.",
                    (f"sum by (reason) (increase(metrics_store_errors_total{{{EACH}}}[1h])) > 0", "{{reason}}"),
                    empty="No failure of the store.",
                ),
                graph(
                    "Clock offset",
                    "s",
                    "Each instance's clock minus that of the database.",
                    (f"clock_offset_seconds{{{EACH}}}", "{{instance}}"),
                    empty=FROZEN,
                ),
            ),
        ),
    ),
)

DATABASE = Dashboard(
    "database",
    "Database and cache",
    "What the app asks of PostgreSQL and Redis, and how they answer.",
    (
        Row(
            "Database",
            (
                graph(
                    "Connections",
                    "none",
                    "Client connections to the database, and how many the app's role may use.",
                    (f"max(database_connections_active{{{EACH}}})", "open"),
                    (f"min(database_connections_limit{{{EACH}}})", "limit"),
                    empty=FROZEN,
                ),
                graph(
                    "Queries",
                    "ops",
                    "Queries per second, by the alias of the database in the settings.",
                    (
                        f"sum by (alias) (rate(database_query_duration_seconds_count{{{EACH}}}[$__rate_interval]))",
                        "{{alias}}",
                    ),
                ),
                graph(
                    "Queries per request",
                    "none",
                    "Queries in relation to requests; those of health checks and scrapes are included.",
                    (
                        f"sum(rate(database_query_duration_seconds_count{{{EACH}}}[$__rate_interval]))"
                        f" / (sum(rate(http_requests_total{{{EACH}}}[$__rate_interval])) > 0)",
                        "queries per request",
                    ),
                    empty="No requests in this time.",
                ),
                graph(
                    "Query time",
                    "s",
                    "Half, 95 % and 99 % of queries took at most this long.",
                    *(
                        (
                            f"histogram_quantile({share}, sum by (le)"
                            f" (rate(database_query_duration_seconds_bucket{{{EACH}}}[$__rate_interval]))) >= 0",
                            name,
                        )
                        for share, name in ((0.5, "p50"), (0.95, "p95"), (0.99, "p99"))
                    ),
                    empty="No queries in this time.",
                ),
                graph(
                    "Database checks",
                    "none",
                    "Share of instances whose checks of the database and of its migrations succeed.",
                    (f'avg by (check) (health_check_up{{{EACH},check=~"database|migrations"}})', "{{check}}"),
                    maximum=1,
                    empty="No check has answered yet.",
                ),
                graph(
                    "Why the database is unhealthy",
                    "none",
                    "1 while the check of the database fails on any instance, by its reason.",
                    (
                        f'max by (check, reason) (health_check_reason{{{EACH},check=~"database|migrations"}}) == 1',
                        "{{check}}: {{reason}}",
                    ),
                    empty="The database is healthy.",
                ),
            ),
        ),
        Row(
            "Cache",
            (
                graph(
                    "Cache hits",
                    "percentunit",
                    "Share of cache lookups that found the key, over 5 minutes.",
                    (f"environment:cache_hits:ratio_rate5m{{{HERE}}}", "hits"),
                    maximum=1,
                    empty="No cache lookups in the last 5 minutes.",
                ),
                graph(
                    "Cache lookups",
                    "ops",
                    "Lookups per second. Those while Redis is down count as misses.",
                    (f"sum(rate(cache_hits_total{{{EACH}}}[$__rate_interval]))", "hits"),
                    (f"sum(rate(cache_misses_total{{{EACH}}}[$__rate_interval]))", "misses"),
                ),
                graph(
                    "Cache errors",
                    "ops",
                    "Failed cache operations per second, by reason. The app goes on as if the cache were empty.",
                    (f"sum by (reason) (rate(cache_errors_total{{{EACH}}}[$__rate_interval]))", "{{reason}}"),
                ),
                graph(
                    "Cache check",
                    "none",
                    "Share of instances whose check of the cache succeeds.",
                    (f'avg(health_check_up{{{EACH},check="cache"}})', "cache"),
                    maximum=1,
                    empty="The check has not answered yet.",
                ),
                graph(
                    "Cache hits since the start",
                    "percentunit",
                    "Share of lookups that found the key since each instance's start.",
                    (f"cache_hit_ratio{{{EACH}}} >= 0", "{{instance}}"),
                    maximum=1,
                    empty="No cache lookup since these instances started.",
                ),
            ),
        ),
    ),
)

DEPLOYMENTS = Dashboard(
    "deployments",
    "Deployments",
    "What runs, what was deployed, and what a release changed. Vertical lines mark deployments and new versions.",
    (
        Row(
            "Now",
            (
                Panel(
                    "Versions that run",
                    "none",
                    "Each version that instances report, with its commit. Two run during a deployment, or beside an"
                    " idle colour.",
                    ((f"count by (environment, version, commit) (app_info{{{HERE}}})", ""),),
                    kind="table",
                    width=12,
                ),
                stat(
                    "In progress for",
                    "s",
                    "Time since which a deployment or rollback is pending or running.",
                    f"time() - min(deployment_in_progress_since_timestamp_seconds{{{HERE}}})",
                    empty="No deployment is in progress, or the database did not answer the scrape.",
                    limits=(1_800, 3_600),
                ),
                stat(
                    "Lock held by hand for",
                    "s",
                    "Time since which manage.py lock acquire blocks deployments.",
                    f"time() - min(deployment_lock_held_since_timestamp_seconds{{{HERE}}})",
                    empty="Nobody holds the lock by hand, or the database did not answer the scrape.",
                    limits=(3_600, 7_200),
                ),
                stat(
                    "Change failure rate, 30 days",
                    "percentunit",
                    "Share of the deployments of the last 30 days that failed or were rolled back.",
                    f'sum(increase(deployments_total{{{HERE},result!="succeeded"}}[30d]))'
                    f" / (sum(increase(deployments_total{{{HERE}}}[30d])) > 0)",
                    empty="Prometheus has seen no deployment end in the last 30 days. The board knows them all.",
                    limits=(0.15, 0.3),
                ),
            ),
        ),
        Row(
            "Deployments",
            (
                graph(
                    "Ended deployments",
                    "none",
                    "Deployments and rollbacks that ended within an hour, by result.",
                    (f"sum by (result) (increase(deployments_total{{{HERE}}}[1h]))", "{{result}}"),
                ),
                graph(
                    "Duration",
                    "s",
                    "Mean time from the start of a deployment to its end, over a day, whatever the result.",
                    (
                        f"sum by (strategy) (increase(deployment_duration_seconds_sum{{{HERE}}}[1d]))"
                        f" / (sum by (strategy) (increase(deployment_duration_seconds_count{{{HERE}}}[1d])) > 0)",
                        "{{strategy}}",
                    ),
                    empty="No deployment has ended within a day.",
                ),
                graph(
                    "Lead time",
                    "s",
                    "Half of the releases of the last 30 days were live within this time after their build.",
                    (
                        "histogram_quantile(0.5, sum by (le)"
                        f" (increase(deployment_lead_time_seconds_bucket{{{HERE}}}[30d]))) >= 0",
                        "median",
                    ),
                    empty="No release has become live for the first time in the last 30 days.",
                ),
            ),
        ),
        Row(
            "What a release changed",
            (
                graph(
                    "Traffic",
                    "reqps",
                    "Requests per second of each release.",
                    (f"release:http_requests:rate5m{{{HERE}}}", "{{version}}"),
                ),
                graph(
                    "Error ratio",
                    "percentunit",
                    "Share of each release's requests that ended in a 5xx. A worse release is a visible step.",
                    (f"release:http_errors:ratio_rate5m{{{HERE}}}", "{{version}}"),
                ),
                graph(
                    "p95 latency",
                    "s",
                    "95 % of each release's requests were answered within this time.",
                    (f"release:http_request_duration_seconds:p95_5m{{{HERE}}} >= 0", "{{version}}"),
                    empty=NO_REQUESTS,
                ),
            ),
        ),
    ),
)

SLO = Dashboard(
    "slo",
    "SLO budgets",
    "What is promised (monitoring/slo.toml), what is left of each error budget, and how fast it is spent.",
    (
        Row(
            "Budgets",
            (
                stat(
                    "Budget left",
                    "percentunit",
                    "What is left of each error budget: 100 % is untouched, 0 % spent, less overspent.",
                    f"slo:error_budget_remaining:ratio{{{HERE}}}",
                    "{{slo}}",
                    limits=(0.25, 0.0),
                    width=12,
                ),
                stat(
                    "Objective",
                    "percentunit",
                    "Share of good requests that is promised.",
                    f"slo:objective:ratio{{{HERE}}}",
                    "{{slo}}",
                    width=12,
                ),
                graph(
                    "Budget left over time",
                    "percentunit",
                    "A fall is a bad hour; a rise, that an earlier one has left the window.",
                    (f"slo:error_budget_remaining:ratio{{{HERE}}}", "{{slo}}"),
                    width=12,
                ),
                graph(
                    "Bad requests",
                    "percentunit",
                    "Share of requests of the last 5 minutes that broke an objective.",
                    (f"slo:errors:ratio_rate5m{{{HERE}}}", "{{slo}}"),
                    width=12,
                ),
            ),
        ),
        Row(
            "Burn rates",
            tuple(
                graph(
                    f"Burn rate, {words}",
                    "none",
                    f"How fast the budget is spent, over {words}. At 1 it lasts exactly for its window. {alert}",
                    (
                        f"slo:errors:ratio_rate{window}{{{HERE}}}"
                        f" / on (slo, environment) (1 - slo:objective:ratio{{{HERE}}})",
                        "{{slo}}",
                    ),
                )
                for window, words, alert in (
                    ("1h", "1 hour", "14.4 spends 2 % of 30 days' budget in that time, and pages somebody."),
                    ("6h", "6 hours", "6 spends 5 % of 30 days' budget in that time, and pages somebody."),
                    ("3d", "3 days", "1 spends 10 % of 30 days' budget in that time, and opens a ticket."),
                )
            ),
        ),
    ),
)

DASHBOARDS = (OVERVIEW, WORKERS, DATABASE, DEPLOYMENTS, SLO)


def files() -> dict[Path, str]:
    """Returns the text of each file."""
    return {TARGET / f"{each.name}.json": json.dumps(each.as_json(), indent=1) + "\n" for each in DASHBOARDS}


def main() -> None:
    for path, text in files().items():
        if not path.exists() or path.read_text() != text:
            path.write_text(text)
            print(path.relative_to(ROOT))


if __name__ == "__main__":
    main()
