"""The rule for versions: a valid image tag that names a single build.

A version is used as it is for the tag of an image, so it follows the OCI distribution specification, which leaves out
the + of semantic versioning (https://github.com/opencontainers/distribution-spec/blob/main/spec.md#pull): what the
ledger registers can be deployed, and what is deployed can be registered. The ledger keeps 64 characters. `latest` is
the tag that moves from build to build, so it is not a version.

The API, the ledger and its database, the commands and both targets use it. scripts/rollback.sh and ./run cannot, so
they repeat PATTERN; a test compares them.
"""

import re

LENGTH = 64  # characters
PATTERN = r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}"
MOVING = "latest"
EXPECTED = f"an image tag of at most {LENGTH} letters, digits, '_', '.' and '-', such as 1.4.0, and not {MOVING}"
RULE = re.compile(PATTERN)


def validate(version: str) -> str:
    """Returns `version`. Raises ValueError, with what was expected, if it is not a valid one."""
    if not RULE.fullmatch(version) or version == MOVING:
        raise ValueError(f"{version[:100]!r} is not a valid version; expected {EXPECTED}.")
    return version
