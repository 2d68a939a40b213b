"""The source's schema, as pg_dump writes it, made anew in the target."""

import os
import re
import shutil
import subprocess
from pathlib import Path

from psycopg2 import extensions

from deploy.databases import statements
from deploy.databases.errors import DatabaseError
from deploy.databases.side import Side
from deploy.errors import DeployRefused

INSTALLED = "/usr/lib/postgresql"  # where Debian and PostgreSQL's own packages put each version's programs
TIMEOUT = 300.0  # seconds for pg_dump, and as many for the schema to be restored
# Owners and tablespaces are the target's own. What `bg` has was installed before: the guards' triggers need it.
WORDS = (
    "--schema-only",
    "--no-owner",
    "--no-tablespaces",
    "--no-publications",
    "--no-subscriptions",
    "--exclude-schema=bg",
    "--lock-wait-timeout=30s",
)
# Lines for psql alone (CVE-2025-8714), a comment that only an extension's owner may make, and the fence's own trigger.
OMITTED = re.compile(
    r"^\\(?:un)?restrict \w+$|^COMMENT ON EXTENSION .*?';$|^(?:CREATE|ALTER) EVENT TRIGGER bg_ddl .*?;$",
    re.MULTILINE | re.DOTALL,
)
NEWER = re.compile(r"^SET transaction_timeout = 0;$", re.MULTILINE)  # unknown to servers older than 17


def find(given: str, major: int, colour: str) -> str:
    """The pg_dump to use: `given`, or that of PATH, or the newest installed; at least as new as the server.

    Raises DeployRefused.
    """
    installed = sorted(Path(INSTALLED).glob("*/bin/pg_dump"), key=lambda path: _number(path.parts[-3]), reverse=True)
    names = [given] if given else ["pg_dump", *map(str, installed)]
    newest = 0
    for name in names:
        path = shutil.which(name)
        version = _version(path) if path else 0
        if path and version >= major:
            return path
        newest = max(newest, version)
    found = f"{given or 'pg_dump'} is of version {newest}" if newest else f"{given or 'pg_dump'} not found"
    raise DeployRefused(
        f"{found}; the {colour} database needs pg_dump {major} or newer. Install postgresql-client-{major} "
        "(https://www.postgresql.org/download/) or take it from the database's image (scripts/pg_client.sh), and set "
        "PG_DUMP to its path if it is not on PATH."
    )


def _number(name: str) -> float:
    return float(name) if re.fullmatch(r"\d+(\.\d+)?", name) else 0.0


def _version(path: str) -> int:
    try:
        said = subprocess.run([path, "--version"], capture_output=True, text=True, timeout=30).stdout
    except (OSError, subprocess.TimeoutExpired):
        return 0
    found = re.search(r"\(PostgreSQL\) (\d+)", said)
    return int(found[1]) if found else 0


def schema(source: Side, program: str, *, target_major: int) -> str:
    """The source's schema as SQL that can be sent in one message. Raises DatabaseError."""
    given = extensions.parse_dsn(source.url)
    password = given.pop("password", "")  # a command line can be read by every user of the machine
    try:
        done = subprocess.run(
            [program, *WORDS, f"--dbname={extensions.make_dsn(**given)}"],
            capture_output=True,
            text=True,
            timeout=TIMEOUT,
            env={**os.environ, "PGPASSWORD": password} if password else None,
        )
    except subprocess.TimeoutExpired:
        raise DatabaseError(f"pg_dump of the {source.colour} database timed out after {TIMEOUT:g} s.") from None
    except OSError as error:
        raise DatabaseError(f"Cannot run {program}: {error.strerror}.") from None
    if done.returncode:
        raise DatabaseError(f"pg_dump of the {source.colour} database failed.", details=done.stderr.strip())
    text = OMITTED.sub("", done.stdout)
    return text if target_major >= 17 else NEWER.sub("", text)


def restore(target: Side, text: str) -> None:
    """Runs the schema's statements in the target, all or none. Raises DatabaseError."""
    with target.session() as session:  # the dump empties its session's search_path
        session.run(text, timeout=TIMEOUT)


def empty(target: Side) -> int:
    """Drops all that the target has but `bg` and extensions. Returns the number of objects dropped."""
    drops = [drop for (drop,) in target.run(statements.DROPS)]
    if drops:
        target.run(";\n".join(drops), timeout=TIMEOUT)
    return len(drops)
