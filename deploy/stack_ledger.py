"""The ledger of the stack on this machine, which the deployer reaches with nothing to configure.

The API is asked from inside the app's container, over the socket by which nginx reaches the app: there the Host check,
the redirect to TLS and the published ports do not matter, and whichever release is live answers. The token is made with
the stack's own database and kept in a file that only its owner can read.
"""

import json
import os
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess

from deploy.errors import StepFailed
from deploy.ledger_client import LedgerUnavailable, RemoteLedger
from deploy.shell import last_line

SECONDS = 10  # for an answer; the first one of a container takes longer
# Runs in the container. The request comes on standard input, as arguments can be read by other processes.
PROGRAM = """
import http.client, json, os, socket, sys
call = json.load(sys.stdin)
hosts = [name.strip().lstrip(".") for name in os.environ.get("ALLOWED_HOSTS", "").split(",") if name.strip()]
link = http.client.HTTPConnection(hosts[0] if hosts else "localhost", timeout=%d)
link.sock = socket.socket(socket.AF_UNIX)
link.sock.settimeout(%d)
link.sock.connect("/run/web/current.sock")
headers = {"X-Forwarded-Proto": "https", "Connection": "close", "Content-Type": "application/json"}
headers["Authorization"] = "Bearer " + call["token"]
link.request(call["method"], "/api/" + call["path"], call["body"].encode() or None, headers)
answer = link.getresponse()
print(json.dumps([answer.status, answer.read().decode(errors="replace")]))
""" % (SECONDS, SECONDS)

Execute = Callable[..., "CompletedProcess[str]"]  # (*words, given=, timeout=): a program in the live app's container


class StackLedger(RemoteLedger):
    """The API of the stack. `execute` runs a program in the app's container; `token_file` keeps the token."""

    def __init__(self, execute: Execute, environment: str, token_file: Path) -> None:
        super().__init__("", "")
        self.execute, self.environment, self.token_file = execute, environment, token_file
        self.name = "the stack's ledger"

    def send(self, method: str, path: str, body: str) -> tuple[int, str]:
        """As RemoteLedger.send(). An unknown token, as after `./run down --volumes`, is replaced."""
        self.token = self.token or self.kept_token() or self.new_token()
        code, text = self.call(method, path, body)
        if code == 401:
            self.token = self.new_token()
            code, text = self.call(method, path, body)
        return code, text

    def call(self, method: str, path: str, body: str) -> tuple[int, str]:
        """One request. Raises LedgerUnavailable."""
        given = json.dumps({"method": method, "path": path, "body": body, "token": self.token})
        done = self.run("python", "-c", PROGRAM, given=given)
        try:
            code, text = json.loads(done.stdout)
        except ValueError:
            raise LedgerUnavailable(f"{self.name} ({last_line(done.stderr)})") from None
        return int(code), str(text)

    def kept_token(self) -> str:
        """The token of the last run; empty if there is none."""
        try:
            return self.token_file.read_text().strip()
        except OSError:
            return ""

    def new_token(self) -> str:
        """Makes the deployer's token for this environment, or gives it a new secret, and keeps that.

        Raises LedgerUnavailable.
        """
        name = f"deployer-{self.environment}"
        rights = ("--environment", self.environment, "--register")
        done = self.run("python", "manage.py", "api_token", "create", name, *rights)
        if done.returncode:  # it may exist already
            done = self.run("python", "manage.py", "api_token", "rotate", name)
        token = done.stdout.strip()
        if done.returncode or not token:
            raise LedgerUnavailable(f"{self.name} ({last_line(done.stderr)})")
        try:
            self.token_file.parent.mkdir(parents=True, exist_ok=True)
            with open(os.open(self.token_file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
                file.write(token + "\n")
        except OSError:
            pass  # the next run makes another
        return token

    def run(self, *words: str, given: str = "") -> "CompletedProcess[str]":
        """Runs a program in the container. Raises LedgerUnavailable."""
        try:
            return self.execute(*words, given=given, timeout=60)
        except StepFailed as error:
            raise LedgerUnavailable(f"{self.name} ({error})") from None
