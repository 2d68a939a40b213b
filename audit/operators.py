"""Who runs a command, for what is recorded of it."""

import getpass
import os
import socket


def holder() -> str:
    """Returns who runs this process, with the machine: the person that the CI system names, or the user.

    It is one word: the deployer's lock, scripts/rollback.sh and the ledger compare and keep it.
    """
    who = os.environ.get("GITHUB_ACTOR") or os.environ.get("GITLAB_USER_LOGIN")
    try:
        who = who or getpass.getuser()
    except (OSError, KeyError):  # a user without a name, as in a container
        who = str(os.getuid())
    return "".join(
        letter if letter.isprintable() and letter != " " else "-" for letter in f"{who}@{socket.gethostname()}"
    )
