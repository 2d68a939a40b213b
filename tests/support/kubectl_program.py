"""What scripts/rollback.sh says to kubectl, without a process that takes 50 ms of a processor each time.

The script finds the program below in place of kubectl. It passes what is said on to the double of kubectl, and becomes
the real one for what fails, and for whatever is not known there. A test compares the answers with the real ones; with
--full there is the real kubectl alone.
"""

import re
import shlex
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from tests.support import gotemplate

if TYPE_CHECKING:
    from tests.support.cluster import Cluster

PROGRAM = r"""#!/bin/bash
config='' given=''
if [[ -r ${KUBECONFIG:-} ]]; then config=$(<"$KUBECONFIG"); fi
if [[ " $* " == *' -f - '* ]]; then IFS= read -rd '' given; fi
if [[ " $* " != *' exec '* && $config =~ http://127\.0\.0\.1:([0-9]+) ]] &&
  { exec 3<>"/dev/tcp/127.0.0.1/${BASH_REMATCH[1]}"; } 2>/dev/null; then
  { printf 'KUBECTL / HTTP/1.0\r\n\r\n' && printf '%s\0' "$#" "$@" "$given"; } >&3
  if IFS= read -rt 20 known <&3 && [[ $known == known ]]; then exec cat <&3; fi
  exec 3>&-
fi
if [[ $given ]]; then exec REAL "$@" <<<"$given"; fi
exec REAL "$@"
"""
VERBS = {"annotate", "create", "delete", "get", "logs", "patch", "replace", "scale", "set"}
CONTEXT = re.compile(r"--context=(.*)", re.S)


def install(folder: Path) -> None:
    """Puts the program into a folder that is to come first in PATH."""
    program = folder / "kubectl"
    program.write_text(PROGRAM.replace("REAL", shlex.quote(str(shutil.which("kubectl")))))
    program.chmod(0o755)


def answer(cluster: "Cluster", said: list[str], given: str) -> str | None:
    """What kubectl would print without complaint; None if only the real one knows."""
    from tests.support.cluster import Refusal
    from tests.support.kubectl import Call

    words = [each for each in said if not each.startswith(("--request-timeout=", "--namespace="))]
    contexts = [found[1] for each in said if (found := CONTEXT.fullmatch(each))]
    if any(each != "test" for each in contexts):
        return None
    if words == ["config", "current-context"]:
        return "test\n"
    verb = next((each for each in words if not each.startswith("--")), "")
    if verb not in VERBS:
        return None
    try:
        return Call(cluster, said, given).said()
    except (Refusal, gotemplate.Unsupported):
        return None
