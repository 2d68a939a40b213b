"""The stack over time: stopped and started, backed up and restored, upgraded; and under TLS."""

import http.client
import re
import shutil
import socket
import ssl
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.stack import Client, Stack, closing, docker, picture, say
from tests.support.servers import PATIENCE


@pytest.fixture(scope="module")
def own(checkout: Path, image: str) -> Iterator[Stack]:
    """A stack that only these tests use."""
    with closing(Stack(checkout, "life", image)) as one:
        yield one


SET = {"SECRET_KEY": "a-key-from-outside-" * 4, "METRICS_TOKEN": "hush-hush", "ADMIN_URL": "office/"}
SECRET_KEY = ("cat", "/run/secrets/secret_key")


@pytest.fixture(scope="module")
def configured(own: Stack) -> str:
    """The stack, up again with settings of the environment and with styles of two ages; the secret key that it had."""
    kept, web = own.exec("web", *SECRET_KEY), own.inspect("web")["Config"]["Image"]
    aged = "touch -d '31 days ago' /v/ancient.0123456789ab.css; touch -d '29 days ago' /v/recent.0123456789ab.css"
    docker("run", "--rm", "--volume", f"{own.name}_static_volume:/v", "--entrypoint", "sh", web, "-c", aged)
    gateway = own.inspect("nginx")["NetworkSettings"]["Networks"][f"{own.name}_frontend"]["Gateway"]
    own.variables |= SET | {"REAL_IP_FROM": f"{gateway},192.0.2.1"}
    own.up()
    return kept


@pytest.fixture(scope="module")
def member(own: Stack) -> Client:
    client = own.client()
    client.sign_up()
    assert client.give_avatar(picture()).status == 302
    return client


def styles(stack: Stack) -> str:
    found = re.search(r"/static/style\.[0-9a-f]{12}\.css", stack.client().get("/").text)
    assert found
    return found[0]


def test_down_and_up_keep_every_row_file_and_session(own: Stack, member: Client) -> None:
    rows, path = own.sql("SELECT count(*) FROM accounts_user"), member.avatar()
    before = member.get(path).body
    own.compose("down")
    own.up()
    assert own.sql("SELECT count(*) FROM accounts_user") == rows
    assert member.signed_in()
    assert member.get(path).body == before


def test_a_second_up_changes_nothing(own: Stack) -> None:
    services = ("web", "db", "redis", "nginx")
    before = [own.container(service) for service in services]
    own.up()
    assert [own.container(service) for service in services] == before


def test_a_backup_brings_back_what_was_there_and_nothing_that_came_later(
    own: Stack, member: Client, tmp_path: Path
) -> None:
    file, path = tmp_path / "one.tar", member.avatar()
    before = member.get(path).body
    done = own.run("backup", str(file))
    assert done.returncode == 0, done.stderr
    assert file.stat().st_mode & 0o077 == 0
    rows = own.sql("SELECT count(*) FROM accounts_user")

    later = own.client()
    later.sign_up()
    assert later.give_avatar(picture()).status == 302
    newer = later.avatar()
    own.exec("web", "sh", "-c", "rm -r /app/media/avatars/" + path.rsplit("/", 1)[1])

    unasked = own.run("restore", str(file), stdin=-3)
    assert unasked.returncode == 2 and "--yes" in unasked.stderr
    assert own.sql("SELECT count(*) FROM accounts_user") == str(int(rows) + 1)

    done = own.run("restore", str(file), "--yes")
    assert done.returncode == 0, done.stderr
    assert own.sql("SELECT count(*) FROM accounts_user") == rows
    assert member.signed_in() and member.get(path).body == before
    assert not later.signed_in() and own.client().get(newer).status == 404
    assert own.sql("SELECT DISTINCT tableowner FROM pg_tables WHERE schemaname = 'public'") == "backstagetest1_owner"
    assert own.client().sign_up()  # with the app's role, which the restored tables let write


def test_what_is_no_backup_is_refused_and_changes_nothing(own: Stack, member: Client, tmp_path: Path) -> None:
    own.run("backup", str(tmp_path / "whole.tar"))
    whole = (tmp_path / "whole.tar").read_bytes()
    torn, altered = tmp_path / "torn.tar", tmp_path / "altered.tar"
    torn.write_bytes(whole[: len(whole) // 2])
    altered.write_bytes(whole[:2000] + bytes([whole[2000] ^ 1]) + whole[2001:])
    for file in (torn, altered, tmp_path / "none.tar"):
        done = own.run("restore", str(file), "--yes")
        assert done.returncode in (1, 2) and file.name in done.stderr, done.stderr
    assert member.signed_in()
    assert own.run("backup", str(tmp_path / "whole.tar")).returncode == 2


def test_an_upgrade_brings_its_own_style_keeps_the_old_one_and_signs_nobody_out(
    own: Stack, member: Client, second: str
) -> None:
    old = styles(own)
    before = own.client().get(old).body
    own.variables["IMAGE"] = second
    own.up()
    new = styles(own)
    assert new != old
    assert b"--release:" in own.client().get(new).body
    assert b"--release:" in own.client().get("/static/style.css").body
    assert own.client().get(old).body == before
    assert own.client().get("/health/").json()["version"] == "2.0.0"
    assert member.signed_in()


@pytest.mark.usefixtures("configured")
def test_an_old_style_goes_after_thirty_days(own: Stack) -> None:
    assert own.client().get("/static/ancient.0123456789ab.css").status == 404
    assert own.client().get("/static/recent.0123456789ab.css").status == 200
    assert own.client().get("/static/style.css").status == 200


@pytest.mark.usefixtures("configured")
def test_what_the_environment_sets_goes_before(own: Stack) -> None:
    assert own.exec("web", *SECRET_KEY).strip() == SET["SECRET_KEY"]
    assert own.direct().get("/metrics").status in (401, 403)
    assert own.direct().get("/metrics", Authorization="Bearer hush-hush").status == 200
    assert own.client().get("/office/").status == 302


@pytest.mark.usefixtures("configured")
def test_a_load_balancer_is_believed_only_if_it_is_named(own: Stack) -> None:
    path = "/no-such-page/balanced/"
    own.client().get(path, X_Forwarded_For="198.51.100.1, 203.0.113.9, 192.0.2.1")
    for service in ("nginx", "web"):
        assert [line["client"] for line in own.logs(service) if line.get("path") == path] == ["203.0.113.9"]


def answers_tls(port: int) -> bool:
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=PATIENCE) as link:
            link.sendall(b"not TLS at all\r\n\r\n")
            return bool(link.recv(1))
    except ConnectionError:
        return False


def test_a_certificate_that_is_mounted_switches_tls_on_and_the_own_secrets_are_back(
    own: Stack, configured: str, image: str, tmp_path: Path
) -> None:
    assert not answers_tls(own.tls_port)
    script = (
        "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -subj /CN=localhost "
        "-addext subjectAltName=DNS:localhost -keyout /out/tls.key -out /out/tls.crt 2>/dev/null; chmod 644 /out/*"
    )
    tmp_path.chmod(0o777)
    docker("run", "--rm", "--user", "0", "--volume", f"{tmp_path}:/out", "--entrypoint", "sh", image, "-c", script)
    for folder in list(tmp_path.parents)[:2]:
        folder.chmod(0o755)
    for name in (*SET, "REAL_IP_FROM"):
        del own.variables[name]
    own.variables |= {"TLS_DIR": str(tmp_path), "HTTPS_ONLY": "true"}
    own.up()
    assert own.exec("web", *SECRET_KEY) == configured

    trusting = ssl.create_default_context(cafile=str(tmp_path / "tls.crt"))
    link = http.client.HTTPSConnection("localhost", own.tls_port, context=trusting, timeout=PATIENCE)
    link.request("GET", "/accounts/login/")
    answer = link.getresponse()
    answer.read()
    link.close()
    assert answers_tls(own.tls_port)
    assert answer.status == 200
    assert "max-age=31536000" in (answer.getheader("Strict-Transport-Security") or "")
    cookie = answer.getheader("Set-Cookie") or ""
    assert cookie.startswith("__Host-csrf=") and "Secure" in cookie
    plain = own.client().get("/")
    assert plain.status == 301 and plain.headers["location"].startswith("https://localhost")
    assert own.direct("10.1.2.3").get("/health/ready/").status == 200

    def handshake(name: str, context: ssl.SSLContext) -> str | None:
        with socket.create_connection(("127.0.0.1", own.tls_port), timeout=PATIENCE) as raw:
            with context.wrap_socket(raw, server_hostname=name) as secured:
                return secured.selected_alpn_protocol() or secured.version()

    trusting.set_alpn_protocols(["h2"])
    assert handshake("localhost", trusting) == "h2"
    anything = ssl._create_unverified_context()
    with pytest.raises(ssl.SSLError):
        handshake("evil.example", anything)
    old = ssl._create_unverified_context()
    old.set_ciphers("DEFAULT:@SECLEVEL=0")
    old.maximum_version = ssl.TLSVersion.TLSv1_2
    assert handshake("localhost", old) == "TLSv1.2"
    say(f"TLS {handshake('localhost', anything)}, HTTP/2, and an unknown name is refused")
    shutil.rmtree(tmp_path, ignore_errors=True)
