"""Who may sign up, and invitations: their life, and every way in which one is refused."""

import re
import threading
from collections.abc import Iterator
from datetime import timedelta

import pytest
from django.conf import LazySettings
from django.core import mail
from django.core.cache import cache
from django.db import connection
from django.test import Client
from django.utils import timezone

from accounts import invitations, members, roles
from accounts.models import Invitation, User
from accounts.roles import Role
from audit.models import Entry
from tests.support.people import member
from tests.support.servers import PATIENCE

pytestmark = pytest.mark.django_db

ADA = "ada@example.com"
PASSWORD = "correct horse battery staple"
FORM = {"password1": PASSWORD, "password2": PASSWORD}
SIGN_UP = "/accounts/signup/"


@pytest.fixture(autouse=True)
def invited(settings: LazySettings) -> None:
    settings.SIGN_UP = "invited"
    cache.clear()  # which counts the mails to an address


@pytest.fixture
def maintainer(client: Client) -> Client:
    client.force_login(member("maintainer"))
    return client


def invite(maintainer: Client, email: str = ADA, role: str = "deployer", environment: str = "", **more: str) -> str:
    """Makes an invitation on the page, and returns the path of its link."""
    page = maintainer.post("/members/invite/", {"email": email, "role": role, "environment": environment, **more})
    assert page.status_code == 200
    found = re.search(r"http://testserver(/accounts/invitations/[\w-]{43}/)", page.content.decode())
    assert found
    return found[1]


def sign_up(visitor: Client, email: str = ADA) -> int:
    return visitor.post(SIGN_UP, FORM | {"email": email}).status_code


def confirm(visitor: Client) -> None:
    """Opens the link of the latest mail that verifies an address."""
    (link,) = re.findall(r"http://testserver(/accounts/confirm-email/\S+)", str(mail.outbox[-1].body))
    assert visitor.post(link).status_code == 302


# Who may sign up


@pytest.mark.parametrize("mode, status", [("open", 200), ("invited", 200), ("closed", 200)])
def test_who_may_sign_up(mode: str, status: int, settings: LazySettings) -> None:
    settings.SIGN_UP = mode
    page = Client().get(SIGN_UP)
    assert ("password1" in page.content.decode()) == (mode == "open") and page.status_code == status
    says = {"open": "Sign up", "invited": "need an invitation", "closed": "cannot be created"}[mode]
    assert says in page.content.decode()
    sign_up(Client())
    assert User.objects.exists() == (mode == "open")
    assert (f'href="{SIGN_UP}"' in Client().get("/").content.decode()) == (mode == "open")


def test_closed_is_closed_for_the_invited_as_well(maintainer: Client, settings: LazySettings) -> None:
    link = invite(maintainer)
    settings.SIGN_UP = "closed"
    visitor = Client()
    assert "Sign-up is closed" in visitor.get(link).content.decode()
    visitor.post(link)
    sign_up(visitor)
    assert not User.objects.filter(email=ADA).exists()


def test_only_addresses_of_the_allowed_domains_are_accepted(maintainer: Client, settings: LazySettings) -> None:
    settings.SIGN_UP, settings.SIGN_UP_DOMAINS = "open", ["example.com"]
    for email in (
        "eve@evil.example",
        "eve@example.com.evil.example",
        "eve@sub.example.com",
        '"@example.com"@evil.example',
    ):
        assert sign_up(Client(), email) == 200, email
        assert maintainer.post("/members/invite/", {"email": email}).status_code == 422
        maintainer.post("/accounts/email/", {"email": email, "action_add": ""})
    assert User.objects.count() == 1 == User.objects.get().emailaddress_set.count()
    assert sign_up(Client(), "Eve@EXAMPLE.com") == 302


# The whole way


def test_an_invitation_makes_an_account_with_the_role(maintainer: Client) -> None:
    link = invite(maintainer, ADA.title(), "deployer", "staging", send="on")
    assert mail.outbox[-1].to == [ADA] and f"http://testserver{link}" in mail.outbox[-1].body
    assert "Deployer in staging" in mail.outbox[-1].body
    visitor = Client()
    assert "Deployer in staging" in visitor.get(link).content.decode()
    assert visitor.get(SIGN_UP).content.decode().count("need an invitation") == 1, "reading it changes nothing"
    assert visitor.post(link).headers["Location"] == SIGN_UP
    assert ADA in visitor.get(SIGN_UP).content.decode()
    assert sign_up(visitor) == 302
    confirm(visitor)
    user = User.objects.get(email=ADA)
    assert roles.held(user) == {"staging": Role.DEPLOYER}
    assert visitor.post("/accounts/login/", {"login": ADA, "password": PASSWORD}).headers["Location"] == "/"
    actions = list(Entry.objects.order_by("time", "pk").values_list("action", flat=True))
    assert [each for each in actions if each in ("invited", "role_changed", "invitation_accepted")] == [
        "invited",
        "role_changed",
        "invitation_accepted",
    ]


def test_somebody_with_an_account_signs_in_and_accepts(maintainer: Client) -> None:
    user = member("viewer")
    link = invite(maintainer, user.email, "approver")
    visitor = Client()
    assert f"/accounts/login/?next={link}" in visitor.get(link).content.decode()
    visitor.force_login(user)
    assert visitor.post(link).status_code == 302
    assert roles.held(user) == {"": Role.APPROVER}


def test_an_invitation_takes_no_higher_role_away(maintainer: Client) -> None:
    user = member("maintainer")
    visitor = Client()
    visitor.force_login(user)
    assert visitor.post(invite(maintainer, user.email, "viewer")).status_code == 302
    assert roles.held(user) == {"": Role.MAINTAINER}


def test_only_a_hash_of_the_key_is_stored(maintainer: Client) -> None:
    key = invite(maintainer).split("/")[3]
    with connection.cursor() as cursor:
        cursor.execute("SELECT * FROM accounts_invitation")
        (row,) = cursor.fetchall()
    assert not any(key in str(value) for value in row) and key not in str(list(Entry.objects.values()))
    assert key not in maintainer.get("/members/").content.decode()


# What is refused


def test_it_is_used_once(maintainer: Client) -> None:
    link = invite(maintainer)
    first, second = Client(), Client()
    for visitor in (first, second):
        visitor.post(link)
    assert sign_up(first) == 302
    assert "used already" in Client().get(link).content.decode() and Client().post(link).status_code == 410
    sign_up(second, "other@example.com")
    assert "need an invitation" in second.get(SIGN_UP).content.decode(), "it was opened before it was used"
    assert User.objects.filter(email="other@example.com").count() == 0


def test_another_address_is_refused(maintainer: Client) -> None:
    link = invite(maintainer)
    visitor = Client()
    visitor.post(link)
    page = visitor.post(SIGN_UP, FORM | {"email": "eve@example.com"})
    assert page.status_code == 200 and f"Your invitation is for {ADA}" in page.content.decode()
    eve = member("viewer")
    visitor.force_login(eve)
    assert visitor.post(link).status_code == 403 and "have not verified" in visitor.get(link).content.decode()
    eve.emailaddress_set.create(email=ADA, verified=False)
    assert visitor.post(link).status_code == 403, "an address that anybody can add proves nothing"
    assert roles.held(eve) == {"": Role.VIEWER} and invitations.pending().count() == 1


@pytest.mark.parametrize("how", ["expired", "revoked", "replaced", "inviter suspended", "inviter demoted", "unknown"])
def test_what_ended_is_refused_with_a_reason(how: str, maintainer: Client) -> None:
    other = member("maintainer")
    link = invite(maintainer)
    inviter = Invitation.objects.get().invited_by
    assert inviter
    visitor = Client()
    visitor.post(link)
    if how == "expired":
        Invitation.objects.update(expires=timezone.now() - timedelta(seconds=1))
    elif how == "revoked":
        page = maintainer.post(f"/members/invitations/{Invitation.objects.get().pk}/revoke/")
        assert page.status_code == 302
    elif how == "replaced":
        invite(maintainer)
    elif how == "inviter suspended":
        members.suspend(inviter)
    elif how == "inviter demoted":
        members.set_role(inviter, Role.APPROVER)
    else:
        link = f"/accounts/invitations/{'x' * 43}/"
    says = {"expired": "has expired", "unknown": "does not exist"}.get(how, "was revoked")
    for answer in (Client().get(link), Client().post(link)):
        assert answer.status_code == 410 and says in answer.content.decode()
    if how != "replaced" and how != "unknown":
        sign_up(visitor)
        assert not User.objects.filter(email=ADA).exists(), "nor does it help to have opened it before"
    assert other.is_active


@pytest.mark.django_db(transaction=True)
def test_of_two_uses_at_once_one_is_refused() -> None:
    invitation, _ = invitations.invite(ADA, Role.DEPLOYER)
    people = [member(None) for _ in range(2)]
    barrier = threading.Barrier(2, timeout=PATIENCE)
    results: list[str] = []

    class Request:
        session: dict[str, str] = {}
        META: dict[str, str] = {}

    def use(user: User) -> None:
        try:
            barrier.wait()
            invitations.accept(invitation, user, Request())  # type: ignore[arg-type]
            results.append("accepted")
        except invitations.Refused:
            results.append("refused")
        finally:
            connection.close()

    for _ in range(10):
        results.clear()
        Invitation.objects.update(accepted=None)
        for user in people:
            roles.assign(user, None)
        threads = [threading.Thread(target=use, args=(user,)) for user in people]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(PATIENCE)
        assert sorted(results) == ["accepted", "refused"]
        assert sum(bool(roles.held(user)) for user in people) == 1


@pytest.fixture
def mail_server_down(settings: LazySettings) -> Iterator[None]:
    settings.EMAIL_BACKEND, settings.EMAIL_HOST, settings.EMAIL_PORT = (
        "django.core.mail.backends.smtp.EmailBackend",
        "127.0.0.1",
        1,
    )
    yield


def test_without_a_mail_server_the_link_is_shown_all_the_same(maintainer: Client, mail_server_down: None) -> None:
    page = maintainer.post("/members/invite/", {"email": ADA, "role": "viewer", "environment": "", "send": "on"})
    assert "did not accept the message" in page.content.decode() and "/accounts/invitations/" in page.content.decode()
