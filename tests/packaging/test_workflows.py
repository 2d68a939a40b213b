""".github/: what the pipeline may and may not do, and what its commands really do. `./run check` has the linters."""

import json
import os
import re
import shutil
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml
from django.core.management import load_command_class

from tests.support.cluster import APP, Cluster
from tests.support.servers import PATIENCE, ROOT
from tests.support.tools import needs

WORKFLOWS = ROOT / ".github" / "workflows"
NAMES = sorted(path.name for path in WORKFLOWS.glob("*.yml"))
SHA, DIGEST = "0123456789abcdef0123456789abcdef01234567", "sha256:" + "ab" * 32
IMAGE = f"registry.example/team/app@{DIGEST}"
PINNED = re.compile(r"uses: [\w./-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+")

Object = dict[str, Any]


@cache
def workflow(name: str) -> Object:
    found: Object = yaml.load((WORKFLOWS / name).read_text(), Loader=yaml.BaseLoader)  # "on" stays a word
    return found


def jobs() -> list[tuple[str, str, Object]]:
    return [(name, key, job) for name in NAMES for key, job in workflow(name)["jobs"].items()]


def steps() -> list[tuple[str, str, Object]]:
    return [(name, key, step) for name, key, job in jobs() for step in job.get("steps", [])]


def step(name: str, title: str) -> Object:
    return next(each for workflow, _, each in steps() if workflow == name and each.get("name") == title)


def run(script: str, cwd: Path, **env: str) -> subprocess.CompletedProcess[str]:
    """As GitHub runs a step."""
    words = ("bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", script)
    return subprocess.run(words, cwd=cwd, env=os.environ | env, capture_output=True, text=True, timeout=PATIENCE)


def doubled(folder: Path, name: str, script: str) -> Path:
    """A program that takes another's place."""
    path = folder / name
    path.write_text(f"#!/usr/bin/env bash\n{script}\n")
    path.chmod(0o755)
    return path


# What may run when


def test_the_jobs_of_the_guide_are_there_in_their_order() -> None:
    found = workflow("deploy.yml")
    assert found["name"] == "Deploy to Production"
    assert found["on"] == {"push": {"branches": ["main"]}, "pull_request": {"branches": ["main"]}}
    needs = {key: job.get("needs", []) for key, job in found["jobs"].items()}
    assert needs == {
        "test": [],
        "build": "test",
        "deploy-staging": "build",
        "approve": "deploy-staging",
        "deploy-production": ["build", "approve"],
    }


def test_a_pull_request_is_tested_and_built_and_no_more() -> None:
    found = workflow("deploy.yml")["jobs"]
    assert found["build"]["with"] == {"push": "${{ github.event_name == 'push' }}"}
    assert found["deploy-staging"]["if"] == "github.event_name == 'push'"
    # A job that needs one that was skipped is skipped as well, if it has no condition of its own.
    assert all("if" not in found[key] for key in ("approve", "deploy-production"))
    built = workflow("build.yml")["jobs"]
    assert built["push"]["if"] == "${{ inputs.push }}" and built["build"]["if"] == "${{ !inputs.push }}"
    assert built["build"]["permissions"] == {"contents": "read"}
    others = [name for name in NAMES if name != "deploy.yml" and "pull_request" in workflow(name)["on"]]
    assert others == [] and not any("pull_request_target" in (WORKFLOWS / name).read_text() for name in NAMES)


@pytest.mark.parametrize("name", ["deploy.yml", "hotfix.yml"])
def test_production_waits_for_a_person_outside_its_own_queue(name: str) -> None:
    found = workflow(name)["jobs"]
    assert found["approve"]["environment"] == "production-approval" and "concurrency" not in found["approve"]
    production = found["deploy-production"]
    assert "approve" in production["needs"] and production["environment"]["name"] == "production"
    assert production["concurrency"] == {"group": "production"}


def test_one_environment_takes_one_deployment_at_a_time_and_none_is_ended() -> None:
    for name, key, job in jobs():
        if key.startswith("deploy-"):
            assert job["concurrency"] == {"group": key.removeprefix("deploy-")}, (name, key)
    assert workflow("deploy.yml")["concurrency"]["cancel-in-progress"] == "${{ github.event_name == 'pull_request' }}"


def test_a_rollback_waits_for_nobody() -> None:
    job = workflow("rollback.yml")["jobs"]["rollback"]
    assert "needs" not in job and job["concurrency"]["group"].startswith("rollback-")


def test_what_was_built_is_what_is_deployed() -> None:
    deploys = [each for _, _, each in steps() if "manage deploy" in each.get("run", "")]
    assert len(deploys) == 3
    assert all(each["env"]["IMAGE"] == "${{ needs.build.outputs.image }}" for each in deploys)
    assert workflow("build.yml")["on"]["workflow_call"]["outputs"]["image"]["value"] == "${{ jobs.push.outputs.image }}"


# What it may touch


@pytest.mark.parametrize("name", NAMES)
def test_everything_has_no_more_rights_than_it_needs_and_an_end(name: str) -> None:
    assert workflow(name)["permissions"] == {}
    for key, job in workflow(name)["jobs"].items():
        allowed: Object = {"contents": "read"} if "steps" not in job or len(job["steps"]) > 1 else {}
        if key == "push" or "build.yml" in job.get("uses", ""):
            allowed["packages"] = "write"
        assert job["permissions"] == allowed, key
        if "steps" in job:
            assert 0 < int(job["timeout-minutes"]) <= 60 and job["runs-on"] == "ubuntu-24.04", key


def test_every_action_is_pinned_and_leaves_no_token_behind() -> None:
    for name in NAMES:
        lines = [line.strip(" -") for line in (WORKFLOWS / name).read_text().splitlines() if "uses: " in line]
        for line in lines:
            assert PINNED.fullmatch(line) or line.startswith("uses: ./.github/workflows/"), line
    for name, key, each in steps():
        if each.get("uses", "").startswith("actions/checkout@"):
            assert each["with"]["persist-credentials"] == "false", (name, key)


def test_no_text_of_strangers_becomes_part_of_a_script() -> None:
    assert [(name, key) for name, key, each in steps() if "${{" in each.get("run", "")] == []


def test_a_password_is_never_a_word_of_a_command() -> None:
    for name, _, each in steps():
        secret = [key for key, value in each.get("env", {}).items() if "secrets." in value]
        for key in secret:
            used = [line for line in each["run"].splitlines() if f"${key}" in line]
            assert all("--password-stdin <<<" in line or line.startswith("printf ") for line in used), (name, used)


def test_the_updates_wait_and_come_together() -> None:
    found = yaml.safe_load((ROOT / ".github" / "dependabot.yml").read_text())["updates"]
    assert {each["package-ecosystem"] for each in found} == {"pip", "docker", "docker-compose", "github-actions"}
    assert all(each["cooldown"]["default-days"] >= 7 and each["groups"] for each in found)


# What is run here as well


def test_what_the_steps_call_exists() -> None:
    commands = set(
        re.findall(r"^([a-z0-9]+)\(\) \{", (ROOT / "run").read_text().partition("\n# Not commands")[0], re.M)
    )
    called = {word for _, _, each in steps() for word in re.findall(r"\./run (\w+)", each.get("run", ""))}
    assert called >= {"check", "scan", "test", "e2e", "image", "manage", "audit"} and called <= commands
    tests = re.findall(r"\./run test (\S+) -k (\w+)", step("test.yml", "Roll back on it")["run"])
    assert [name in (ROOT / path).read_text() for path, name in tests] == [True]


def test_the_matrix_is_every_python_that_is_promised() -> None:
    suite = workflow("test.yml")["jobs"]["suite"]
    assert suite["strategy"]["matrix"]["python"] == ["3.11", "3.12", "3.13"]
    stack = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]
    assert suite["services"]["postgres"]["image"] == stack["db"]["image"]
    assert suite["services"]["redis"]["image"] == stack["redis"]["image"]


@pytest.mark.parametrize(
    ("name", "title", "more"),
    [
        ("deploy.yml", "Deploy to staging", {"environment": "staging"}),
        ("deploy.yml", "Deploy to production", {"environment": "production"}),
        ("hotfix.yml", "Deploy the hotfix to production", {"environment": "production", "hotfix": True}),
    ],
)
def test_a_deployment_step_says_what_the_command_understands(
    tmp_path: Path, name: str, title: str, more: dict[str, Any]
) -> None:
    doubled(tmp_path, "run", r'cat "$KUBECONFIG"; stat -c %a "$KUBECONFIG"; printf "%s\n" "$@"')
    env = {"CLUSTER": "a cluster", "RUNNER_TEMP": str(tmp_path), "GITHUB_SHA": SHA, "IMAGE": IMAGE}
    done = run(step(name, title)["run"], tmp_path, **env, REASON='$(touch told) "it\'s down"')
    assert done.returncode == 0, done.stderr
    cluster, mode, manage, command, *words = done.stdout.splitlines()
    assert (cluster, mode, manage, command) == ("a cluster", "600", "manage", "deploy")
    options = vars(load_command_class("deploy", "deploy").create_parser("manage.py", "deploy").parse_args(words))
    wanted = {"version": SHA, "image": IMAGE, "commit": SHA, "wait": 600.0, "hotfix": False, "dry_run": False} | more
    assert {key: options[key] for key in wanted} == wanted
    assert not (tmp_path / "told").exists()
    assert options["reason"] == ('$(touch told) "it\'s down"' if more.get("hotfix") else "")


def test_a_hotfix_by_a_tag_has_its_commit_s_first_line_as_its_reason(tmp_path: Path) -> None:
    doubled(tmp_path, "run", r'printf "%s\n" "$@"')
    git = ("git", "-c", "user.name=a", "-c", "user.email=a@example.com")
    subprocess.run((*git, "init", "--quiet"), cwd=tmp_path, check=True)
    message = "Let people sign in again\n\nMore."
    subprocess.run((*git, "commit", "--quiet", "--allow-empty", "--message", message), cwd=tmp_path, check=True)
    env = {"CLUSTER": "a", "RUNNER_TEMP": str(tmp_path), "GITHUB_SHA": SHA, "IMAGE": IMAGE, "REASON": ""}
    done = run(step("hotfix.yml", "Deploy the hotfix to production")["run"], tmp_path, **env)
    assert "--reason\nLet people sign in again\n" in done.stdout, done.stderr


def copy_run(folder: Path) -> None:
    """Copies ./run and what it needs to build an image into `folder`."""
    (folder / "scripts").mkdir()
    for name in (
        "run",
        "scripts/image.sh",
        "scripts/stack.sh",
        "scripts/venv.sh",
        "scripts/version.sh",
        "pyproject.toml",
    ):
        shutil.copy(ROOT / name, folder / name)


def test_the_image_goes_out_once_and_its_digest_is_what_comes_back(tmp_path: Path) -> None:
    doubled(
        tmp_path,
        "docker",
        r"""printf '%s\n' "$*" >>calls
        case "$*" in
          login*) cat >password ;;
          'buildx inspect'*) exit 1 ;;
          'buildx bake'*) echo "$NAME" >name ;;&
          *--metadata-file*) printf '{\n "containerimage.digest": "%s"\n}\n' "$DIGEST" >"${*: -2:1}"; echo noise >&2 ;;
        esac""",
    )
    copy_run(tmp_path)
    output = tmp_path / "output"
    env = {
        "PATH": f"{tmp_path}:{os.environ['PATH']}",
        "DIGEST": DIGEST,
        "GITHUB_SHA": SHA,
        "GITHUB_ACTOR": "ann",
        "GITHUB_OUTPUT": str(output),
        "REPOSITORY": "registry.example/Team/App",
        "REGISTRY_TOKEN": "s3cret",
    }
    done = run(step("build.yml", "Build the image and push it to the registry")["run"], tmp_path, **env)
    assert done.returncode == 0, done.stderr
    assert output.read_text() == f"image={IMAGE}\n"
    calls = (tmp_path / "calls").read_text()
    assert (tmp_path / "password").read_text() == "s3cret\n" and "s3cret" not in calls
    (build,) = [line for line in calls.splitlines() if line.startswith("buildx bake")]
    assert build.endswith(" release") and (tmp_path / "name").read_text() == f"registry.example/team/app:{SHA}\n"


def test_an_image_that_is_not_pushed_hands_on_nothing(tmp_path: Path) -> None:
    """A registry that refuses the image must end the job: without a digest there is nothing to deploy."""
    doubled(tmp_path, "docker", """case "$*" in *' release') echo denied >&2; exit 1 ;; esac""")
    copy_run(tmp_path)
    env = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "GITHUB_SHA": SHA, "GITHUB_ACTOR": "ann"}
    env |= {"GITHUB_OUTPUT": str(tmp_path / "output"), "REPOSITORY": "registry.example/a", "REGISTRY_TOKEN": "s"}
    done = run(step("build.yml", "Build the image and push it to the registry")["run"], tmp_path, **env)
    assert done.returncode != 0 and "denied" in done.stderr and not (tmp_path / "output").exists()


def test_a_release_image_goes_to_the_registry_with_its_sbom_and_provenance() -> None:
    if not shutil.which("docker") or subprocess.run(["docker", "buildx", "version"], capture_output=True).returncode:
        stop = pytest.fail if os.environ.get("CI") == "true" else pytest.skip
        stop("docker buildx not found; install it")
    env = {
        "PATH": os.environ["PATH"],
        "NAME": "registry.example:5000/team/app:1",
        "APP_VERSION": "1",
        "APP_COMMIT": SHA,
    }
    words = ["docker", "buildx", "bake", "--file", "docker-bake.hcl", "--print", "release"]
    done = subprocess.run(words, cwd=ROOT, env=env, capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode == 0, done.stderr
    release = json.loads(done.stdout)["target"]["release"]
    assert release["tags"] == [env["NAME"]]
    assert release["args"] == {"APP_VERSION": "1", "APP_COMMIT": SHA, "APP_CREATED": ""}
    assert release["attest"] == ["type=sbom", "type=provenance,mode=max"]
    assert release["output"] == ["type=registry"]
    assert release["cache-from"] == ["type=registry,ref=registry.example:5000/team/app:cache"]
    assert release["cache-to"] == ["type=registry,ref=registry.example:5000/team/app:cache,mode=max"]


@needs("kubectl")
@pytest.mark.parametrize(("asked", "found"), [("1", "1"), ("", "2")])
def test_the_rollback_step_rolls_back(tmp_path: Path, asked: str, found: str) -> None:
    with Cluster("backstagetest1-staging") as cluster:
        cluster.service()
        for version in ("1", "2", "3"):
            good = {"good": version} if version != "3" else {}
            cluster.deploy(APP, f"registry.example/app:{version}", replicas=1, cause=f"deploy {version}", **good)
        env = {
            "CLUSTER": json.dumps(cluster.config()),
            "RUNNER_TEMP": str(tmp_path),
            "ENVIRONMENT": "staging",
            "VERSION": asked,
            "REASON": "it's down; $(false)",
            "LEDGER_URL": "",
        }
        done = run(step("rollback.yml", "Roll back")["run"], ROOT, **env)
        assert done.returncode == 0, done.stdout + done.stderr
        assert cluster.serving() == {f"registry.example/app:{found}"}
        notes = cluster.objects["deployments", APP]["metadata"]["annotations"]
        assert "it's down; $(false)" in notes["kubernetes.io/change-cause"]
