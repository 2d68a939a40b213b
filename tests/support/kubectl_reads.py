"""What scripts/rollback.sh reads with kubectl, without a process that takes 45 ms of a processor for each question.

The script finds the program below in place of kubectl. It passes a question on to the double of the cluster, and
becomes the real kubectl for all that changes something, for what fails, and for whatever is not known here. A test
compares the answers with the real ones; with --full there is the real kubectl alone.
"""

import json
import re
import shlex
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from tests.support import gotemplate

if TYPE_CHECKING:
    from tests.support.cluster import Cluster

PROGRAM = r"""#!/bin/bash
config=''
if [[ -r ${KUBECONFIG:-} ]]; then config=$(<"$KUBECONFIG"); fi
if [[ " $* " =~ \ (get|config)\  && $config =~ http://127\.0\.0\.1:([0-9]+) ]] &&
  { exec 3<>"/dev/tcp/127.0.0.1/${BASH_REMATCH[1]}"; } 2>/dev/null; then
  { printf 'KUBECTL / HTTP/1.0\r\n\r\n' && printf '%s\0' "$#" "$@"; } >&3
  if IFS= read -rt 20 known <&3 && [[ $known == known ]]; then exec cat <&3; fi
  exec 3>&-
fi
exec REAL "$@"
"""
OPTION = re.compile(r"--(request-timeout|namespace|context)=(.*)", re.S)
WITH_VALUE = {"-l", "--selector", "--field-selector", "-o", "--output"}


def install(folder: Path) -> None:
    """Puts the program into a folder that is to come first in PATH."""
    program = folder / "kubectl"
    program.write_text(PROGRAM.replace("REAL", shlex.quote(str(shutil.which("kubectl")))))
    program.chmod(0o755)


def answer(cluster: "Cluster", said: list[str]) -> str | None:
    """What kubectl would print without complaint; None if only the real one knows."""
    from tests.support.cluster import Refusal

    options = {found[1]: found[2] for each in said if (found := OPTION.fullmatch(each))}
    words = [each for each in said if not OPTION.fullmatch(each)]
    if options.get("context", "test") != "test":
        return None
    if words == ["config", "current-context"]:
        return "test\n"
    try:
        if words[:2] == ["get", "--raw"] and len(words) == 3 and "?" not in words[2]:
            return raw(cluster, words[2])
        return printed(cluster, options.get("namespace", "default"), words[1:])
    except Refusal as refusal:
        return "" if refusal.code == 404 and "--ignore-not-found" in words else None
    except gotemplate.Unsupported:
        return None


def raw(cluster: "Cluster", path: str) -> str | None:
    """Of get --raw."""
    code, found = cluster.answer("GET", path, {}, "", b"")
    if code != 200:
        return None
    return found if isinstance(found, str) else json.dumps(found)


def printed(cluster: "Cluster", namespace: str, words: list[str]) -> str | None:
    """Of get KIND [NAME] with a Go template."""
    from tests.support.cluster import KINDS

    names, query, form = [], {}, ""
    while words:
        word = words.pop(0)
        if word in WITH_VALUE and words:
            value = words.pop(0)
            if word in ("-o", "--output"):
                form = value
            else:
                query["fieldSelector" if word == "--field-selector" else "labelSelector"] = value
        elif word != "--ignore-not-found":
            names.append(word)
    kind = names[0] if names and names[0] in KINDS else f"{names[0]}s" if names else ""
    if kind not in KINDS or not form.startswith("go-template=") or len(names) > 2 or names[1:] and query:
        return None
    version = KINDS[kind][0]
    root = f"/apis/{version}" if "/" in version else f"/api/{version}"
    path = "/".join([root, "namespaces", namespace, kind, *names[1:]])
    found = cluster.answer("GET", path, query, "", b"")[1]
    return gotemplate.render(form.removeprefix("go-template="), found) if names[1:] or found["items"] else None
