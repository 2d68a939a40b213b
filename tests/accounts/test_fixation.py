"""A session that somebody else knows is not the one that a person is signed in with."""

import pytest
from django.conf import settings
from django.test import Client

from accounts.models import User

PASSWORD = "correct-horse-42"


@pytest.mark.django_db
def test_a_session_from_before_the_sign_in_is_worth_nothing_after_it(client: Client) -> None:
    user = User.objects.create_user("ada@example.com", PASSWORD)
    user.emailaddress_set.create(email=user.email, verified=True, primary=True)
    session = client.session
    session["planted"] = "yes"
    session.save()
    planted = str(session.session_key)
    assert client.post("/accounts/login/", {"login": user.email, "password": PASSWORD}).status_code == 302
    assert client.get("/accounts/profile/").status_code == 200
    thief = Client()
    thief.cookies[settings.SESSION_COOKIE_NAME] = planted
    assert client.session.session_key != planted
    assert thief.get("/accounts/profile/").status_code == 302
