"""The manifests in k8s/: rendered by the real kubectl, held to the API's schemas, to one another and to the app."""

import ipaddress
import os
import re
import secrets
import shutil
import subprocess
import sys
from collections.abc import Iterator
from copy import deepcopy
from functools import cache
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from django.core.management import get_commands, load_command_class
from django.urls import resolve, reverse

from deploy.targets.kubernetes.objects import command_job, migrate_job, migrate_job_name, with_own_database
from deploy.targets.kubernetes.rolling import RollingUpdate
from health.middleware import PROBES
from ledger.environments import environment_configs
from settings import base
from tests.support.cluster import APP, Cluster
from tests.support.servers import PATIENCE, ROOT, Postgres
from tests.support.tools import needs

Object = dict[str, Any]
OVERLAYS = ("testing", "staging", "production")
COMPONENTS = ("outside", "shared-media", "monitoring", "monitoring-rules", "monitoring-annotations", "traces")
COLOURED = ("blue-green", "two-databases")  # the components of an overlay with a database per colour, in their order
COMMANDS = ("prepare", "status", "switch", "rollback", "recover", "finalize")  # of manage.py bluegreen
OPERATOR = "monitoring.coreos.com/v1"  # the Prometheus operator's kinds, whose schemas Kubernetes does not have
OLDEST = "1.30"  # docs/kubernetes.md names it
HOSTS = {  # those of docs/guide.md
    "testing": {"testing.backstagetest1.com"},
    "staging": {"staging.backstagetest1.com"},
    "production": {"backstagetest1.com", "www.backstagetest1.com"},
}

pytestmark = needs("kubectl")
overlays = pytest.mark.parametrize("overlay", OVERLAYS)


def kubectl(*words: str) -> str:
    done = subprocess.run(("kubectl", *words), cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode == 0, done.stderr
    return done.stdout


@cache
def render(overlay: str, component: str = "") -> tuple[Object, ...]:
    """The overlay's objects; with `component`, as if it named that, too."""
    folder = ROOT / "k8s" / "overlays" / overlay
    if not component:
        return tuple(yaml.safe_load_all(kubectl("kustomize", str(folder))))
    outer = ROOT / "k8s" / "overlays" / f".{secrets.token_hex(4)}"
    outer.mkdir()
    try:
        text = f"resources: [../{overlay}]\ncomponents: [../../components/{component}]\n"
        (outer / "kustomization.yaml").write_text(text)
        return tuple(yaml.safe_load_all(kubectl("kustomize", str(outer))))
    finally:
        shutil.rmtree(outer)


@cache
def with_two_databases(overlay: str) -> tuple[Object, ...]:
    """The overlay's objects, as if it named both components."""
    outer = ROOT / "k8s" / "overlays" / f".{secrets.token_hex(4)}"
    shutil.copytree(ROOT / "k8s" / "overlays" / overlay, outer)
    try:
        found = yaml.safe_load((outer / "kustomization.yaml").read_text())
        found["components"] = [f"../../components/{each}" for each in COLOURED]
        (outer / "kustomization.yaml").write_text(yaml.safe_dump(found))
        return tuple(yaml.safe_load_all(kubectl("kustomize", str(outer))))
    finally:
        shutil.rmtree(outer)


def named(objects: tuple[Object, ...], kind: str, name: str = "") -> list[Object]:
    return [each for each in objects if each["kind"] == kind and name in ("", each["metadata"]["name"])]


def only(objects: tuple[Object, ...], kind: str, name: str = "") -> Object:
    (found,) = named(objects, kind, name)
    return found


def templates(objects: tuple[Object, ...]) -> Iterator[tuple[str, Object]]:
    """(kind/name, pod template) of all that makes pods."""
    for each in objects:
        spec = each.get("spec", {})
        spec = spec["jobTemplate"]["spec"] if each["kind"] == "CronJob" else spec
        if "template" in spec:
            yield f"{each['kind']}/{each['metadata']['name']}", spec["template"]


def containers(objects: tuple[Object, ...]) -> Iterator[tuple[str, Object, Object]]:
    """(kind/name, pod spec, container)"""
    for name, template in templates(objects):
        for container in (*template["spec"].get("initContainers", []), *template["spec"]["containers"]):
            yield name, template["spec"], container


def app(objects: tuple[Object, ...]) -> Object:
    """The container of the app; blue and green have the same (a test sees to it)."""
    found: Object = named(objects, "Deployment")[0]["spec"]["template"]["spec"]["containers"][0]
    return found


def selects(selector: Object, labels: dict[str, str]) -> bool:
    """A LabelSelector, with the operator that is used here."""
    expressions = selector.get("matchExpressions", [])
    assert all(each["operator"] == "In" for each in expressions)
    return all(labels.get(key) == value for key, value in selector.get("matchLabels", {}).items()) and all(
        labels.get(each["key"]) in each["values"] for each in expressions
    )


def selected(objects: tuple[Object, ...], selector: Object) -> set[str]:
    return {name for name, template in templates(objects) if selects(selector, template["metadata"]["labels"])}


def dockerfile(word: str) -> str:
    found = re.search(rf"^\s*{word}[ =](\S+)", (ROOT / "Dockerfile").read_text(), re.M)
    assert found, word
    return found[1]


def configuration(objects: tuple[Object, ...]) -> dict[str, str]:
    return dict(only(objects, "ConfigMap")["data"])


# They are what the API takes


@pytest.mark.parametrize(
    ("overlay", "component"), [*((each, "") for each in OVERLAYS), *(("production", each) for each in COMPONENTS)]
)
def test_an_overlay_fits_the_schemas_of_the_oldest_and_the_newest_kubernetes(overlay: str, component: str) -> None:
    seen = render(overlay) if component else ()  # what a component leaves as it is, is looked at without it
    for each in render(overlay, component):
        if each["apiVersion"] == OPERATOR or each in seen:
            continue
        for version in (OLDEST, kubernetes_validate.latest_version()):
            kubernetes_validate.validate(each, version, strict=True)


def test_every_component_is_tried() -> None:
    folders = {each.parent.name for each in (ROOT / "k8s" / "components").glob("*/kustomization.yaml")}
    assert folders == {*COMPONENTS, *COLOURED}
    assert {each.name for each in (ROOT / "k8s" / "overlays").iterdir() if each.name[0] != "."} == set(OVERLAYS)


def test_the_operators_rules_are_those_of_monitoring() -> None:
    rule = only(render("production", "monitoring-rules"), "PrometheusRule")
    files = sorted((ROOT / "monitoring" / "rules").glob("*.yml"))
    assert rule["spec"]["groups"] == [group for file in files for group in yaml.safe_load(file.read_text())["groups"]]
    assert set(rule["spec"]) == {"groups"} and rule["apiVersion"] == OPERATOR, "run scripts/prometheus_rule.py"


@pytest.mark.parametrize("overlay", ["production", "staging"])
def test_prometheus_finds_every_pod_of_the_app_by_the_operator_or_by_annotations(overlay: str) -> None:
    objects = render(overlay, "monitoring")
    monitor = only(objects, "PodMonitor")
    deployments = {f"Deployment/{each['metadata']['name']}" for each in named(objects, "Deployment")}
    assert selected(objects, monitor["spec"]["selector"]) == deployments
    (endpoint,) = monitor["spec"]["podMetricsEndpoints"]
    assert endpoint["port"] in {port["name"] for port in app(objects)["ports"]}
    assert endpoint["path"] == "/metrics"
    (to,) = only(objects, "NetworkPolicy", "prometheus")["spec"]["egress"]
    assert to["ports"] == [{"port": 9090, "protocol": "TCP"}]
    for name, template in templates(render(overlay, "monitoring-annotations")):
        if name in deployments:
            annotations = template["metadata"]["annotations"]
            assert annotations["prometheus.io/port"] == str(app(objects)["ports"][0]["containerPort"])
            assert (annotations["prometheus.io/scrape"], annotations["prometheus.io/path"]) == (
                "true",
                endpoint["path"],
            )


@overlays
def test_one_apply_makes_the_namespace_and_all_in_it(overlay: str) -> None:
    objects = render(overlay)
    namespace = objects[0]
    assert (namespace["kind"], namespace["metadata"]["name"]) == ("Namespace", environment_configs()[overlay].namespace)
    assert {each["metadata"]["namespace"] for each in objects[1:]} == {namespace["metadata"]["name"]}
    for mode in ("enforce", "warn", "audit"):
        assert namespace["metadata"]["labels"][f"pod-security.kubernetes.io/{mode}"] == "restricted"


@overlays
def test_every_pod_meets_the_restricted_standard(overlay: str) -> None:
    meets_the_restricted_standard(render(overlay))


def meets_the_restricted_standard(objects: tuple[Object, ...]) -> None:
    """https://kubernetes.io/docs/concepts/security/pod-security-standards/#restricted"""
    for name, pod, container in containers(objects):
        own, of_pod = container["securityContext"], pod["securityContext"]
        assert not {"hostNetwork", "hostPID", "hostIPC"} & set(pod), name
        assert of_pod["runAsNonRoot"] is True and of_pod["seccompProfile"] == {"type": "RuntimeDefault"}, name
        assert of_pod["runAsUser"] == of_pod["runAsGroup"] == int(dockerfile("USER").partition(":")[0]), name
        assert own["allowPrivilegeEscalation"] is False and own["capabilities"] == {"drop": ["ALL"]}, name
        assert "privileged" not in own and not any("hostPort" in port for port in container.get("ports", [])), name
        allowed = {"configMap", "downwardAPI", "emptyDir", "persistentVolumeClaim", "secret", "projected"}
        assert all(set(each) - {"name"} <= allowed for each in pod["volumes"]), name
        # And what it does not ask for
        assert own["readOnlyRootFilesystem"] is True and pod["automountServiceAccountToken"] is False, name


# They fit one another


@overlays
def test_selectors_find_their_pods_and_no_others(overlay: str) -> None:
    objects = render(overlay)
    deployments = {f"Deployment/{each['metadata']['name']}" for each in named(objects, "Deployment")}
    for each in named(objects, "Deployment"):
        name = f"Deployment/{each['metadata']['name']}"
        assert selected(objects, each["spec"]["selector"]) == {name}
        pod = each["spec"]["template"]["spec"]
        for spread in pod["topologySpreadConstraints"]:
            assert spread["whenUnsatisfiable"] == "ScheduleAnyway"  # or a cluster of one node has no room
            assert selected(objects, spread["labelSelector"]) == {name}
    assert selected(objects, only(objects, "PodDisruptionBudget")["spec"]["selector"]) == deployments
    for each in named(objects, "Service"):
        assert len(selected(objects, {"matchLabels": each["spec"]["selector"]})) == 1, each["metadata"]["name"]
    for each in named(objects, "NetworkPolicy"):
        assert selected(objects, each["spec"]["podSelector"]), each["metadata"]["name"]


def test_two_colours_differ_in_nothing_but_their_colour_and_who_has_the_traffic() -> None:
    objects = render("production")
    blue, green = (only(objects, "Deployment", f"{APP}-{colour}") for colour in ("blue", "green"))
    assert (blue["spec"]["replicas"], green["spec"]["replicas"]) == (3, 0)
    text = yaml.safe_dump(blue | {"spec": blue["spec"] | {"replicas": 0}})
    assert yaml.safe_load(text.replace("blue", "green")) == green
    selectors = [only(objects, "Service", name)["spec"]["selector"] for name in (APP, f"{APP}-preview")]
    assert selectors == [{"app": APP, "colour": "blue"}, {"app": APP, "colour": "green"}]


@overlays
def test_ports_are_those_of_the_image(overlay: str) -> None:
    objects = render(overlay)
    port = int(dockerfile("EXPOSE"))
    assert dockerfile("BIND") == f"0.0.0.0:{port}" and "BIND" not in configuration(objects)
    assert app(objects)["ports"] == [{"name": "http", "containerPort": port}]
    for each in named(objects, "Service"):
        assert [(one["name"], one["targetPort"]) for one in each["spec"]["ports"]] == [("http", "http")]
    for rule in only(objects, "Ingress")["spec"]["rules"]:
        (path,) = rule["http"]["paths"]
        assert path["backend"]["service"] == {"name": APP, "port": {"name": "http"}}
    (let_in,) = only(objects, "NetworkPolicy", APP)["spec"]["ingress"]
    (let_out,) = only(objects, "NetworkPolicy", f"{APP}-tasks")["spec"]["egress"]
    assert let_in["ports"] == let_out["ports"] == [{"port": port, "protocol": "TCP"}]


@overlays
def test_the_autoscaler_begins_where_the_deployment_does(overlay: str) -> None:
    objects = render(overlay)
    for each in named(objects, "HorizontalPodAutoscaler"):
        target = only(objects, "Deployment", each["spec"]["scaleTargetRef"]["name"])
        assert target["spec"]["replicas"] in (0, each["spec"]["minReplicas"])  # at 0 it does nothing
        assert each["spec"]["minReplicas"] < each["spec"]["maxReplicas"]
        (metric,) = each["spec"]["metrics"]
        cpu = app(objects)["resources"]
        wanted = metric["resource"]["target"]["averageValue"]
        assert millis(cpu["requests"]["cpu"]) < millis(wanted) < millis(cpu["limits"]["cpu"])


def millis(text: str) -> int:
    return int(text[:-1]) if text.endswith("m") else 1000 * int(text)


def mebibytes(text: str) -> int:
    assert text.endswith("Mi")
    return int(text[:-2])


@overlays
def test_every_container_says_what_it_needs_and_what_it_may_take(overlay: str) -> None:
    for name, _, container in containers(render(overlay)):
        requests, limits = container["resources"]["requests"], container["resources"]["limits"]
        assert millis(requests["cpu"]) <= millis(limits["cpu"]), name
        assert mebibytes(requests["memory"]) <= mebibytes(limits["memory"]), name


@overlays
def test_every_key_that_is_referred_to_exists(overlay: str) -> None:
    objects = render(overlay)
    held = secret_keys()
    maps = {each["metadata"]["name"] for each in named(objects, "ConfigMap")}
    used: dict[str, set[str]] = {}
    needed: set[tuple[str, str]] = set()
    for name, pod, container in containers(objects):
        assert pod["serviceAccountName"] == only(objects, "ServiceAccount")["metadata"]["name"], name
        for source in container.get("envFrom", []):
            assert source["configMapRef"]["name"] in maps, name
        for variable in container["env"]:
            if "secretKeyRef" in variable.get("valueFrom", {}):
                ref = variable["valueFrom"]["secretKeyRef"]
                used.setdefault(ref["name"], set()).add(ref["key"])
                if not ref.get("optional"):
                    needed.add((ref["name"], ref["key"]))
        claims = {
            each["persistentVolumeClaim"]["claimName"]
            for each in pod["volumes"]
            if len(each) > 1 and "persistentVolumeClaim" in each
        }
        assert claims <= {each["metadata"]["name"] for each in named(objects, "PersistentVolumeClaim")}
    own = {"database-url-blue", "database-url-green"}  # of a database per colour
    assert used == {name: keys - own for name, keys in held.items()}
    app_needs = {(f"{APP}-secrets", "database-url"), (f"{APP}-secrets", "secret-key")}  # docs/guide.md
    assert needed == app_needs | {(f"{APP}-migrate", "database-url")}  # the others may be left out


def secret_keys() -> dict[str, set[str]]:
    """The keys of each Secret that is to be made, by its name."""
    found = yaml.safe_load_all((ROOT / "k8s" / "secrets.example.yaml").read_text())
    return {each["metadata"]["name"]: set(each["stringData"]) for each in found}


def database_secret(container: Object) -> str:
    (found,) = [each for each in container["env"] if each["name"].startswith(("DATABASE_URL", "DB_"))]
    return str(found["valueFrom"]["secretKeyRef"]["name"])


@overlays
def test_only_migrations_connect_as_the_owner_of_the_tables(overlay: str) -> None:
    for name, _, container in containers(render(overlay)):
        assert database_secret(container) == (f"{APP}-migrate" if name.startswith("Job/") else f"{APP}-secrets"), name


@overlays
def test_the_uploads_are_on_one_node_or_on_a_volume_for_many(overlay: str) -> None:
    objects = render(overlay)
    assert only(objects, "PersistentVolumeClaim")["spec"]["accessModes"] == ["ReadWriteOnce"]
    every = {f"Deployment/{each['metadata']['name']}" for each in named(objects, "Deployment")}
    for each in named(objects, "Deployment"):
        pod = each["spec"]["template"]["spec"]
        (term,) = pod["affinity"]["podAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]
        assert term["topologyKey"] == "kubernetes.io/hostname"
        assert selected(objects, term["labelSelector"]) == every  # of either colour
    shared = render(overlay, "shared-media")
    assert only(shared, "PersistentVolumeClaim")["spec"]["accessModes"] == ["ReadWriteMany"]
    assert not any("affinity" in each["spec"]["template"]["spec"] for each in named(shared, "Deployment"))


@overlays
def test_what_the_app_writes_to_is_mounted(overlay: str) -> None:
    objects = render(overlay)
    mounts = [Path(each["mountPath"]) for each in app(objects)["volumeMounts"]]
    variables = configuration(objects)
    assert "MEDIA_ROOT" not in variables  # it is /app/media then
    for path in (variables["METRICS_DIR"], variables["HEALTH_DRAIN_FILE"], "/app/media", "/tmp"):
        assert any(Path(path).is_relative_to(each) for each in mounts), path


# They fit the app


@overlays
def test_probes_ask_for_paths_that_are_answered_in_time(overlay: str) -> None:
    container = app(render(overlay))
    for kind, path in (
        ("startupProbe", "/health/live/"),
        ("livenessProbe", "/health/live/"),
        ("readinessProbe", "/health/ready/"),
    ):
        probe = container[kind]
        assert probe["httpGet"] == {"path": path, "port": "http"}
        assert path in PROBES and resolve(path)
        assert probe["timeoutSeconds"] > base.HEALTH_CHECK_TIMEOUT


@overlays
def test_grace_periods_are_ordered(overlay: str) -> None:
    objects = render(overlay)
    pause = re.fullmatch(
        r'touch "\$HEALTH_DRAIN_FILE"; sleep (\d+)', app(objects)["lifecycle"]["preStop"]["exec"]["command"][2]
    )
    assert pause and int(pause[1]) >= 5  # endpoints and ingress controllers need a moment
    drain = int(pause[1]) + int(configuration(objects)["GRACEFUL_TIMEOUT"])
    for each in named(objects, "Deployment"):
        assert drain + 5 <= each["spec"]["template"]["spec"]["terminationGracePeriodSeconds"]
        assert each["spec"]["strategy"]["rollingUpdate"] == {"maxSurge": 1, "maxUnavailable": 0}


@overlays
def test_every_variable_is_one_that_the_app_reads(overlay: str) -> None:
    example = set(re.findall(r"^# ([A-Z_]+)=", (ROOT / ".env.example").read_text(), re.M))
    objects = render(overlay)
    given = set(configuration(objects))
    for _, _, container in containers(objects):
        given |= {each["name"] for each in container["env"]}
    assert given <= example


@overlays
def test_the_settings_load_with_the_guides_two_secrets_and_nothing_else(overlay: str) -> None:
    objects = render(overlay)
    hosts: set[str] = set()
    tried: list[dict[str, str]] = []
    for name, _, container in containers(objects):
        env = configuration(objects) if "envFrom" in container else {}
        env |= {each["name"]: each["value"] for each in container["env"] if "value" in each}
        hosts |= set(env.get("ALLOWED_HOSTS", "").split(",")) - {""}
        if env in tried:
            continue
        tried.append(env)
        program = "import django; django.setup(); from django.conf import settings; print(settings.ENVIRONMENT)"
        done = subprocess.run(
            [sys.executable, "-c", program],
            cwd=ROOT,
            env=env | {"DATABASE_URL": "postgresql://u:p@db:5432/n", "SECRET_KEY": secrets.token_urlsafe(50)},
            capture_output=True,
            text=True,
        )
        assert (done.stdout.strip(), done.returncode) == (overlay, 0), f"{name}: {done.stderr}"
    assert hosts == HOSTS[overlay] and len(tried) == 2


@overlays
def test_the_ingress_has_the_hosts_of_the_guide(overlay: str) -> None:
    spec = only(render(overlay), "Ingress")["spec"]
    assert {rule["host"] for rule in spec["rules"]} == HOSTS[overlay]
    assert {host for each in spec["tls"] for host in each["hosts"]} == HOSTS[overlay]
    assert environment_configs()[overlay].url.removeprefix("https://") in HOSTS[overlay]


@overlays
def test_the_ingress_limits_each_client(overlay: str) -> None:
    """Beside the app's own limits, and above what a page with its files asks for at once."""
    notes = only(render(overlay), "Ingress")["metadata"]["annotations"]
    for name in ("limit-rps", "limit-connections"):
        assert 20 <= int(notes[f"nginx.ingress.kubernetes.io/{name}"]) <= 200


def test_nginx_limits_every_form_about_an_account_and_the_api() -> None:
    places = re.findall(r"location (\S+) (\S+) \{\n\s+limit_req zone=(\w+)", (ROOT / "nginx.conf").read_text())
    by_zone = {zone: pattern for _, pattern, zone in places}
    for name in (
        "account_login",
        "account_signup",
        "account_reauthenticate",
        "account_email",
        "account_change_password",
        "account_reset_password",
    ):
        assert re.match(by_zone["accounts"], reverse(name)), name
    assert re.match(by_zone["accounts"], "/accounts/password/reset/key/1-x/")
    assert by_zone["api"] == "/api/"


@overlays
def test_jobs_call_commands_that_there_are(overlay: str) -> None:
    objects = render(overlay)
    called = set()
    for name, template in templates(objects):
        (container,) = template["spec"]["containers"]
        if name.startswith("Deployment/"):
            assert "command" not in container and "args" not in container  # the image's own
            continue
        python, manage, command, *words = container["command"]
        assert (python, manage) == ("python", "manage.py")
        load_command_class(get_commands()[command], command).create_parser("manage.py", command).parse_args(words)
        called.add(command)
    assert called == {"audit", "clearsessions", "migrate_release", "sample_uptime", "rollup_samples"}
    for each in named(objects, "CronJob"):
        minutely = each["spec"]["schedule"] == "* * * * *"
        assert each["spec"]["jobTemplate"]["spec"]["activeDeadlineSeconds"] == (50 if minutely else 600)


@overlays
def test_images_and_the_migrate_job_carry_the_tag_of_the_overlay(overlay: str) -> None:
    kustomization = yaml.safe_load((ROOT / "k8s" / "overlays" / overlay / "kustomization.yaml").read_text())
    ((image),) = kustomization["images"]
    version = image["newTag"]
    assert f'version = "{version}"' in (ROOT / "pyproject.toml").read_text()
    objects = render(overlay)
    assert {each["image"] for _, _, each in containers(objects)} == {f"{APP}:{version}"}
    job = only(objects, "Job")
    assert job["metadata"]["name"] == migrate_job_name(version)
    # A Job's template cannot be changed, so nothing may come into it that changes without a new version.
    assert "envFrom" not in job["spec"]["template"]["spec"]["containers"][0]


@overlays
def test_nothing_gets_in_or_out_but_what_is_named(overlay: str) -> None:
    objects = render(overlay)
    for policy in named(objects, "NetworkPolicy"):
        assert all(rule.get("to") for rule in policy["spec"].get("egress", [])), policy["metadata"]["name"]
        assert all(rule.get("from") for rule in policy["spec"].get("ingress", [])), policy["metadata"]["name"]
    deny = only(objects, "NetworkPolicy", "default-deny")["spec"]
    assert deny == {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}
    egress = only(objects, "NetworkPolicy", "out")["spec"]["egress"]
    ports = {each["port"] for rule in egress for each in rule["ports"]}
    example = next(yaml.safe_load_all((ROOT / "k8s" / "secrets.example.yaml").read_text()))["stringData"]
    stores = {int(re.findall(r":(\d+)/", example[key])[0]) for key in ("database-url", "redis-url")}
    assert ports == {53} | stores
    dns, inside = egress
    assert {port["port"] for port in dns["ports"]} == {53} and inside["to"] == [{"podSelector": {}}]
    assert dns["to"][0] == {
        "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "kube-system"}},
        "podSelector": {"matchLabels": {"k8s-app": "kube-dns"}},
    }
    for policy in named(objects, "NetworkPolicy"):
        for rule in policy["spec"].get("egress", []):
            blocks = [ipaddress.ip_network(to["ipBlock"]["cidr"]) for to in rule["to"] if "ipBlock" in to]
            assert all(block.num_addresses == 1 for block in blocks), policy["metadata"]["name"]
    (rule,) = only(objects, "NetworkPolicy", "stores")["spec"]["ingress"]
    assert {each["port"] for each in rule["ports"]} == stores and rule["from"] == [{"podSelector": {}}]
    (let_in,) = only(objects, "NetworkPolicy", APP)["spec"]["ingress"]
    tasks = [each["podSelector"] for each in let_in["from"] if "namespaceSelector" not in each]
    assert [selected(objects, each) for each in tasks] == [
        {f"CronJob/{each['metadata']['name']}" for each in named(objects, "CronJob")}
    ]


@overlays
def test_only_networks_that_the_overlay_names_are_believed_as_proxies(overlay: str) -> None:
    (base_map,) = yaml.safe_load((ROOT / "k8s" / "base" / "kustomization.yaml").read_text())["configMapGenerator"]
    assert "TRUSTED_PROXIES=127.0.0.1,::1" in base_map["literals"]  # an overlay that names none believes nobody
    for network in map(ipaddress.ip_network, configuration(render(overlay))["TRUSTED_PROXIES"].split(",")):
        assert network.num_addresses <= 65_536, f"{network} is more than the pods of a cluster"


@overlays
def test_the_internet_is_reached_with_a_component_alone_and_nothing_private_with_it(overlay: str) -> None:
    assert not named(render(overlay), "NetworkPolicy", "outside")
    (rule,) = only(render(overlay, "outside"), "NetworkPolicy", "outside")["spec"]["egress"]
    assert {port["port"] for port in rule["ports"]} == {443, 587}
    for address in ("10.96.0.1", "172.16.0.1", "192.168.0.1", "100.64.0.1", "169.254.169.254", "fd00::1", "fe80::1"):
        ip = ipaddress.ip_address(address)
        for block in (to["ipBlock"] for to in rule["to"]):
            refused = any(ip in ipaddress.ip_network(each) for each in block["except"])
            assert ip not in ipaddress.ip_network(block["cidr"]) or refused, address


@overlays
def test_a_collector_is_reached_with_a_component_alone_and_by_the_app_alone(overlay: str) -> None:
    assert not named(render(overlay), "NetworkPolicy", "traces")
    objects = render(overlay, "traces")
    policy = only(objects, "NetworkPolicy", "traces")["spec"]
    assert selected(objects, policy["podSelector"]) == {
        f"Deployment/{each['metadata']['name']}" for each in named(objects, "Deployment")
    }
    (rule,) = policy["egress"]
    assert [port["port"] for port in rule["ports"]] == [4318] and all("namespaceSelector" in to for to in rule["to"])


# A database per colour


def variables(container: Object) -> dict[str, tuple[str, str]]:
    """(Secret, key) of each variable that names a database."""
    refs = {each["name"]: each.get("valueFrom", {}).get("secretKeyRef", {}) for each in container["env"]}
    return {name: (ref["name"], ref["key"]) for name, ref in refs.items() if name.startswith("DATABASE_")}


def urls(secret: str) -> dict[str, tuple[str, str]]:
    return {f"DATABASE_URL_{each}": (secret, f"database-url-{each.lower()}") for each in ("BLUE", "GREEN")}


@overlays
def test_with_two_databases_an_overlay_is_what_the_api_takes_and_stays_what_it_was(overlay: str) -> None:
    objects = with_two_databases(overlay)
    for each in objects:
        for version in (OLDEST, kubernetes_validate.latest_version()):
            kubernetes_validate.validate(each, version, strict=True)
    meets_the_restricted_standard(objects)
    named_before = {(each["kind"], each["metadata"]["name"]) for each in render("production")}
    added = {(each["kind"], each["metadata"]["name"]) for each in objects} - named_before
    assert {("CronJob", f"{APP}-bluegreen-{each}") for each in COMMANDS} <= added
    assert {each["metadata"]["namespace"] for each in objects[1:]} == {objects[0]["metadata"]["name"]}
    for name, _, container in containers(objects):
        requests, limits = container["resources"]["requests"], container["resources"]["limits"]
        assert millis(requests["cpu"]) <= millis(limits["cpu"]), name
        assert mebibytes(requests["memory"]) <= mebibytes(limits["memory"]), name


@overlays
def test_with_two_databases_only_the_commands_and_migrations_connect_as_the_owner(overlay: str) -> None:
    held = secret_keys()
    for name, pod, container in containers(with_two_databases(overlay)):
        if container["name"] != APP:
            assert "env" not in container, name
            continue
        owner = name.startswith(("Job/", f"CronJob/{APP}-bluegreen-"))
        found = variables(container)
        assert found == urls(f"{APP}-migrate" if owner else f"{APP}-secrets"), name
        assert all(key in held[secret] for secret, key in found.values())
        assert pod["serviceAccountName"] == APP


@overlays
def test_the_commands_of_two_databases_never_run_by_themselves_and_end_cleanly(overlay: str) -> None:
    objects = with_two_databases(overlay)
    (config,) = named(objects, "ConfigMap")
    script = (ROOT / "scripts" / "pg_client.sh").read_text()
    for command in COMMANDS:
        found = only(objects, "CronJob", f"{APP}-bluegreen-{command}")
        # What gives all CronJobs the live image and settings finds them by this label.
        assert found["metadata"]["labels"]["app"] == f"{APP}-tasks" and found["spec"]["suspend"] is True
        job = found["spec"]["jobTemplate"]["spec"]
        pod = job["template"]["spec"]
        (container,) = pod["containers"]
        limit, after, seconds, *words = container["command"]
        assert words[:4] == ["python", "manage.py", "bluegreen", command] and limit == "timeout"
        load_command_class("deploy", "bluegreen").create_parser("manage.py", "bluegreen").parse_args(words[3:])
        assert int(after.removeprefix("--kill-after=")) < pod["terminationGracePeriodSeconds"]
        assert int(seconds) < job["activeDeadlineSeconds"] and job["backoffLimit"] == 0
        assert container["envFrom"] == [{"configMapRef": {"name": config["metadata"]["name"]}}]
        first = pod.get("initContainers", [])
        assert bool(first) == (command == "prepare")
        for each in first:
            assert each["command"] == ["sh", "-c", script, "pg_client.sh", "/opt/postgresql/client"]
            assert each["image"].partition(":")[0] == "postgres"
        assert not selects({"matchLabels": {"app": APP}}, job["template"]["metadata"]["labels"])  # no traffic for it
    out = [each for each in named(objects, "NetworkPolicy") if "Egress" in each["spec"]["policyTypes"]]
    reached = [
        each for each in out if f"CronJob/{APP}-bluegreen-switch" in selected(objects, each["spec"]["podSelector"])
    ]
    ports = {port["port"] for each in reached for rule in each["spec"].get("egress", []) for port in rule["ports"]}
    assert ports == {53, 5432, 6379}, "the databases, and nothing else"
    (let_in,) = only(objects, "NetworkPolicy", APP)["spec"]["ingress"]
    tasks = [each["podSelector"] for each in let_in["from"] if "namespaceSelector" not in each]
    assert not any("bluegreen" in name for each in tasks for name in selected(objects, each))


def test_with_two_databases_the_migrate_job_of_a_release_knows_both_as_the_owner() -> None:
    """Or it would migrate as the app."""
    found = with_own_database(named(with_two_databases("production"), "Deployment")[0]["spec"]["template"], "green")
    job = migrate_job({"spec": {"template": found}}, "2", f"{APP}:2", unsafe=False)
    kubernetes_validate.validate(job, OLDEST, strict=True)
    assert variables(job["spec"]["template"]["spec"]["containers"][0]) == urls(f"{APP}-migrate")


@pytest.mark.parametrize("words", [("bluegreen", "prepare", "--release", "2"), ("migrate_release", "--check")])
def test_the_job_of_a_command_is_that_of_the_component_with_another_command(words: tuple[str, ...]) -> None:
    name = f"{APP}-bluegreen-{'prepare' if 'prepare' in words else 'status'}"
    job = command_job(only(with_two_databases("production"), "CronJob", name), f"{APP}:2", words)
    for version in (OLDEST, kubernetes_validate.latest_version()):
        kubernetes_validate.validate(job, version, strict=True)
    meets_the_restricted_standard((job,))
    (container,) = job["spec"]["template"]["spec"]["containers"]
    *limit, python, manage = container["command"][: -len(words) - ("prepare" in words)]
    assert limit[0] == "timeout" and (python, manage) == ("python", "manage.py")
    assert tuple(container["command"][5:]) == (*words, "--json")[: len(words) + ("prepare" in words)]
    assert container["image"] == f"{APP}:2" and variables(container) == urls(f"{APP}-migrate")


# What the documentation says of them


def test_the_documentation_names_every_object() -> None:
    text = (ROOT / "docs" / "kubernetes.md").read_text()
    for each in (*render("staging"), *render("production")):
        kind, name = each["kind"], each["metadata"]["name"]
        (row,) = re.findall(rf"^\| {kind} \|.*$", text, re.M)
        name = {"ConfigMap": f"{APP}-config-HASH", "Job": f"{APP}-migrate-VERSION"}.get(kind, name)
        if kind not in ("Namespace", "HorizontalPodAutoscaler"):
            assert f"`{name}`" in row, (kind, name)


def test_the_patches_in_the_documentation_fit(tmp_path: Path) -> None:
    text = (ROOT / "docs" / "kubernetes.md").read_text()
    blocks = [yaml.safe_load(block) for block in re.findall(r"^ *```yaml\n(.*?)^ *```$", text, re.M | re.S)]
    patches = [patch for block in blocks for patch in block.get("patches", [])]
    assert len(patches) == 4
    link = os.path.relpath(ROOT / "k8s" / "overlays" / "staging", tmp_path.resolve())
    outer = {"resources": [link], "patches": patches}
    (tmp_path / "kustomization.yaml").write_text(yaml.safe_dump(outer))
    changed = tuple(yaml.safe_load_all(kubectl("kustomize", str(tmp_path))))
    assert sum(new != old for new, old in zip(changed, render("staging"), strict=True)) == 4


# What is applied again


def live(cluster: Cluster, environment: str) -> subprocess.CompletedProcess[str]:
    env = os.environ | {"KUBECONFIG": cluster.kubeconfig}
    return subprocess.run(
        ["./run", "manifests", environment], cwd=ROOT, env=env, capture_output=True, text=True, timeout=PATIENCE
    )


def test_what_is_printed_to_be_applied_again_leaves_the_traffic_the_images_and_the_replicas_as_they_are() -> None:
    with Cluster(environment_configs()["production"].namespace) as cluster:
        cluster.service("green")
        cluster.deploy(f"{APP}-blue", "registry.example/team/backstagetest1:1", replicas=0)
        cluster.deploy(f"{APP}-green", "registry.example/team/backstagetest1:2", replicas=7)
        done = live(cluster, "production")
    assert done.returncode == 0, done.stderr
    objects = tuple(yaml.safe_load_all(done.stdout))
    found = {each["metadata"]["name"]: each["spec"] for each in named(objects, "Deployment")}
    images = {name: spec["template"]["spec"]["containers"][0]["image"] for name, spec in found.items()}
    assert {name: spec["replicas"] for name, spec in found.items()} == {f"{APP}-blue": 0, f"{APP}-green": 7}
    new = "registry.example/team/backstagetest1:2"
    assert images == {f"{APP}-blue": new.replace(":2", ":1"), f"{APP}-green": new}
    assert only(objects, "Service", APP)["spec"]["selector"]["colour"] == "green"
    assert only(objects, "Service", f"{APP}-preview")["spec"]["selector"]["colour"] == "blue"
    assert {each["image"] for name, _, each in containers(objects) if name.startswith("CronJob")} == {new}
    assert not named(objects, "Job")
    untouched = {"Deployment", "Service", "CronJob", "Job"}
    assert [each for each in objects if each["kind"] not in untouched] == [
        each for each in render("production") if each["kind"] not in untouched
    ]


def test_for_a_fresh_cluster_the_overlay_is_printed_as_it_is() -> None:
    with Cluster(environment_configs()["staging"].namespace) as cluster:
        done = live(cluster, "staging")
    assert tuple(yaml.safe_load_all(done.stdout)) == render("staging")


def test_the_migrate_job_of_a_release_runs_wherever_there_is_room() -> None:
    """It is made from the Deployment: it must not need the app's node, nor its volume, and the API must take it."""
    job = migrate_job(only(render("staging"), "Deployment"), "2", f"{APP}:2", unsafe=False)
    kubernetes_validate.validate(job, OLDEST, strict=True)
    meets_the_restricted_standard((job,))
    pod = job["spec"]["template"]["spec"]
    assert database_secret(pod["containers"][0]) == f"{APP}-migrate"
    assert "affinity" not in pod and {each["name"] for each in pod["volumes"]} == {"tmp", "metrics", "podinfo"}
    assert not selected((job,), only(render("staging"), "Deployment")["spec"]["selector"])  # no traffic for it


def test_a_release_that_is_found_good_takes_the_cronjobs_along(monkeypatch: pytest.MonkeyPatch) -> None:
    place = environment_configs()["staging"]
    with Cluster(place.namespace) as cluster:
        monkeypatch.setenv("KUBECONFIG", cluster.kubeconfig)
        cluster.service()
        cluster.deploy(APP, "registry.example/team/backstagetest1:2")
        for each in named(render("staging"), "CronJob"):
            cluster.store("cronjobs", deepcopy(each))
        RollingUpdate(place, "2", ROOT).mark_good()
        jobs = [each["spec"]["jobTemplate"]["spec"] for each in cluster.all("cronjobs")]
    assert [each["template"]["spec"]["containers"][0]["image"] for each in jobs] == [
        "registry.example/team/backstagetest1:2"
    ] * 4


def test_nothing_is_printed_if_the_cluster_does_not_answer() -> None:
    with Cluster() as cluster:
        pass
    done = live(cluster, "staging")
    assert (done.returncode, done.stdout) == (1, "")
    assert "Cannot read what the cluster runs" in done.stderr


# The Job


@pytest.mark.slow
def test_the_migrate_job_waits_for_a_database_that_comes_up_later() -> None:
    (container,) = only(render("testing"), "Job")["spec"]["template"]["spec"]["containers"]
    database = Postgres()
    try:
        given = {"DATABASE_URL": database.url, "DJANGO_SETTINGS_MODULE": "settings.testing"}
        with subprocess.Popen(
            [sys.executable, *container["command"][1:]],
            cwd=ROOT, env=os.environ | given, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        ) as job:  # fmt: skip
            try:
                assert job.stderr and "Waiting up to 600 s for the database" in job.stderr.readline()
                assert job.poll() is None
                database.start()
                said, _ = job.communicate(timeout=PATIENCE)
            finally:
                job.kill()  # or leaving this block waits for it
            assert job.returncode == 0 and "migrations applied" in said
    finally:
        database.close()
