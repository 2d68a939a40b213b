"""The image of the working tree, for the stack on this machine."""

import subprocess
import sys
from pathlib import Path

from deploy.errors import DeployRefused, InvalidUsage, StepFailed
from deploy.shell import call, last_line
from ledger import versions
from ledger.environments import EnvironmentConfig

SECONDS = 1800  # for a build without any cache, on a slow network
REVISION = '{{index .Config.Labels "org.opencontainers.image.revision"}}'


def working_tree(folder: Path) -> dict[str, str]:
    """APP_VERSION, APP_COMMIT and APP_CREATED, as scripts/version.sh has them. Raises StepFailed."""
    done = call(("scripts/version.sh",), timeout=30, cwd=folder)
    if done.returncode:
        raise StepFailed(f"scripts/version.sh failed: {last_line(done.stderr)}")
    return dict(line.split("=", 1) for line in done.stdout.splitlines())


def image(config: EnvironmentConfig, version: str, folder: Path) -> tuple[str, str, str]:
    """Builds the image of the working tree in `folder` as `version`, by default what git calls it.

    An image of that version that was built from the same commit is not built again. Returns the version, the commit,
    empty if unknown, and a note. Raises InvalidUsage, DeployRefused if the version is another build's, and StepFailed.
    """
    tree = working_tree(folder)
    version = version or tree["APP_VERSION"]
    try:
        versions.validate(version)
    except ValueError as error:
        raise InvalidUsage(str(error)) from None
    name, commit = config.tagged(version), tree["APP_COMMIT"]
    known = "" if commit == "unknown" else commit
    there = call(("docker", "image", "inspect", "--format", REVISION, name), timeout=30)
    if not there.returncode:
        built_from = there.stdout.strip()
        if known and (built_from != commit or dirty(folder)):
            raise DeployRefused(
                f"Image {name} exists and was built from {built_from[:7] or 'an unknown commit'}, not from the working "
                f"tree. Choose another version, or ship that image: manage.py deploy {version} -e {config.name}"
            )
        return version, known, f"{name} exists already"
    build(name, tree | {"APP_VERSION": version}, folder)
    return version, known, name


def dirty(folder: Path) -> bool:
    """Whether the working tree has changes that are not committed."""
    return bool(call(("git", "status", "--porcelain", "--untracked-files=no"), timeout=30, cwd=folder).stdout.strip())


def build(name: str, variables: dict[str, str], folder: Path) -> None:
    """Builds it. On a terminal Docker shows its progress there. Raises StepFailed with the last lines."""
    words = ("env", *(f"{key}={value}" for key, value in variables.items()), "scripts/image.sh", name)
    if sys.stderr.isatty():
        code, said = subprocess.run(words, cwd=folder, stdout=sys.stderr).returncode, ""
    else:
        done = call(words, timeout=SECONDS, cwd=folder)
        code, said = done.returncode, done.stdout + done.stderr
    if code:
        raise StepFailed(f"Building {name} failed; nothing was changed.", "\n".join(said.splitlines()[-20:]))
