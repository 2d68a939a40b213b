"""./run manifests: prints the manifests of k8s/overlays/ENVIRONMENT with the cluster's own images, replicas and colour.

Those three are changed after the first apply by others: manage.py deploy, rollback.sh and the autoscalers. The overlay
says only where a fresh environment begins, so for a cluster without a Deployment of ours it is printed as it is.

Replicas are printed rather than left out, although an autoscaler owns them: `kubectl apply` sets a field that the last
applied manifest has and the new one lacks back to its default, which is one pod.
https://kubernetes.io/docs/tasks/run-application/horizontal-pod-autoscale/#migrating-deployments-and-statefulsets-to-horizontal-autoscaling

It runs without a virtual environment, so it needs Python's own library only.
"""

import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

APP = "backstagetest1"
OVERLAYS = Path(__file__).resolve().parent.parent / "k8s" / "overlays"
IMAGE = "/spec/template/spec/containers/0/image"
OTHER = {"blue": "green", "green": "blue"}

Patch = dict[str, Any]


def main() -> int:
    """Returns the exit code: 1 if the cluster cannot be read, 2 if the arguments or the tools are not right."""
    environments = sorted(path.parent.name for path in OVERLAYS.glob("*/kustomization.yaml"))
    environment, *options = sys.argv[1:] or [""]
    if environment not in environments:
        print(f"Usage: ./run manifests {'|'.join(environments)} [KUBECTL OPTION...]", file=sys.stderr)
        return 2
    overlay = OVERLAYS / environment
    try:
        patches = list(live(overlay, options))
        with tempfile.TemporaryDirectory() as folder:
            # Kustomize takes relative paths only, and reads JSON, as that is YAML.
            base = os.path.relpath(overlay, Path(folder).resolve())
            Path(folder, "kustomization.yaml").write_text(json.dumps({"resources": [base], "patches": patches}))
            print(kubectl("kustomize", folder), end="")
    except FileNotFoundError:
        print("kubectl not found; install it (https://kubernetes.io/docs/tasks/tools/)", file=sys.stderr)
        return 2
    except subprocess.CalledProcessError:
        print("Cannot read what the cluster runs; see above. Nothing was printed.", file=sys.stderr)
        return 1
    return 0


def live(overlay: Path, options: list[str]) -> Iterator[Patch]:
    """Yields a kustomize patch for each field that has to stay as it is in the cluster."""
    (namespace,) = re.findall(r"^namespace: (.+)$", (overlay / "kustomization.yaml").read_text(), re.M)
    get = (*options, "--namespace", namespace, "get", "--output", "json")
    deployments = json.loads(kubectl(*get, "deployments", "--selector", f"app={APP}"))["items"]
    service = json.loads(kubectl(*get, "service", APP, "--ignore-not-found") or "{}")
    colour = service.get("spec", {}).get("selector", {}).get("colour")
    active = f"{APP}-{colour}" if colour else APP
    for deployment in deployments:
        name, spec = deployment["metadata"]["name"], deployment["spec"]
        image = next(each["image"] for each in spec["template"]["spec"]["containers"] if each["name"] == APP)
        yield replace("Deployment", name, {"/spec/replicas": spec["replicas"], IMAGE: image})
        if name == active:
            yield replace("CronJob", ".*", {f"/spec/jobTemplate{IMAGE}": image})
            # The migrate Job is the overlay's first release; this version's migrations have been applied.
            job = {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "any"}, "$patch": "delete"}
            yield {"target": {"kind": "Job"}, "patch": json.dumps(job)}
    if colour:
        yield replace("Service", APP, {"/spec/selector/colour": colour})
        yield replace("Service", f"{APP}-preview", {"/spec/selector/colour": OTHER[colour]})


def replace(kind: str, name: str, fields: dict[str, Any]) -> Patch:
    """A patch (RFC 6902) that replaces fields of the objects whose name matches, a regular expression."""
    changes = [{"op": "replace", "path": path, "value": value} for path, value in fields.items()]
    return {"target": {"kind": kind, "name": f"^{name}$"}, "patch": json.dumps(changes)}


def kubectl(*words: str) -> str:
    """Runs kubectl and returns its output. Raises FileNotFoundError and CalledProcessError."""
    return subprocess.run(["kubectl", *words], stdout=subprocess.PIPE, text=True, check=True).stdout


if __name__ == "__main__":
    sys.exit(main())
