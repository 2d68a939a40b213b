"""The settings in k8s/overlays: the pod template that a Deployment gets from them, and the ConfigMaps that it names."""

import json
import re
import sys
from dataclasses import dataclass
from pathlib import Path

from django.conf import settings

from deploy.errors import DeployRefused
from deploy.kubectl import Kubectl
from deploy.shell import call, last_line
from deploy.targets.kubernetes.objects import Object
from ledger.environments import EnvironmentConfig

MANIFESTS = Path(settings.BASE_DIR) / "scripts" / "manifests.py"
KINDS = ("ConfigMap", "Deployment", "CronJob")


@dataclass(frozen=True)
class Settings:
    """What new settings consist of. A ConfigMap's name has a hash of its content, so it replaces none."""

    template: Object  # of the pods
    config_maps: list[Object]
    tasks: list[Object]  # the CronJobs


def load(config: EnvironmentConfig, kubectl: Kubectl, deployment: str) -> Settings:
    """The settings of the environment's overlay for the Deployment of that name. Changes nothing.

    Raises DeployRefused if the overlay is not valid or has no such Deployment, and StepFailed if a program times out.
    """
    options = ("--context", config.context) if config.context else ()
    done = call((sys.executable, str(MANIFESTS), config.name, *options), timeout=60)
    if done.returncode:
        raise DeployRefused(f"Cannot render k8s/overlays/{config.name}: {last_line(done.stderr)}")
    documents = re.split(r"^---$", done.stdout, flags=re.MULTILINE)
    wanted = [each for each in documents if re.search(rf"^kind: ({'|'.join(KINDS)})$", each, re.MULTILINE)]
    # kubectl reads the YAML, and prints it as JSON.
    words = ("create", "--dry-run=client", "--validate=false", "--output", "json", "--filename", "-")
    done = kubectl.read(*words, given="---".join(wanted))
    if done.returncode:
        raise DeployRefused(f"k8s/overlays/{config.name}: {last_line(done.stderr)}")
    objects = parsed(done.stdout)
    wanted_one = ("Deployment", deployment)
    found = next((each for each in objects if (each["kind"], each["metadata"]["name"]) == wanted_one), {})
    if not found:
        raise DeployRefused(f"k8s/overlays/{config.name} has no Deployment {deployment}.")
    return Settings(
        template=found["spec"]["template"],
        config_maps=[each for each in objects if each["kind"] == "ConfigMap"],
        tasks=[each for each in objects if each["kind"] == "CronJob"],
    )


def parsed(text: str) -> list[Object]:
    """The JSON objects of a text that has one after the other, or a List of them."""
    found: list[Object] = []
    decoder, rest = json.JSONDecoder(), text.strip()
    while rest:
        one, end = decoder.raw_decode(rest)
        found += one["items"] if one["kind"] == "List" else [one]
        rest = rest[end:].lstrip()
    return found
