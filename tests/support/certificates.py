"""A certificate of its own for a test's server, made by openssl."""

import shutil
import ssl
import subprocess
from pathlib import Path
from typing import Any


def self_signed(folder: Path) -> Path:
    """A file with a key and its certificate for 127.0.0.1, valid for a day. Nobody trusts it; SSL_CERT_FILE can."""
    openssl = shutil.which("openssl")
    assert openssl, "openssl is missing: install it (Debian, Ubuntu: apt install openssl)"
    subprocess.run(
        [openssl, "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "1"]
        + ["-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1"]
        + ["-keyout", str(folder / "key"), "-out", str(folder / "cert")],
        check=True,
        capture_output=True,
    )
    pem = folder / "server.pem"
    pem.write_bytes((folder / "key").read_bytes() + (folder / "cert").read_bytes())
    return pem


def secure(server: Any, pem: Path) -> None:
    """Has a server of socketserver speak TLS."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pem)
    server.socket = context.wrap_socket(server.socket, server_side=True)
