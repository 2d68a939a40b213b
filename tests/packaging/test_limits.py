"""Every text that people or machines enter: the rule of settings.text, and the limit of the row that it goes to.

These walk over all models, forms and API schemas, so that a new one is looked at without being named here.
"""

import inspect
from collections.abc import Callable, Iterator
from typing import Any, get_args

import pytest
from allauth.account.forms import AddEmailForm, SignupForm
from allauth.account.models import EmailAddress
from django import forms
from django.apps import apps
from django.contrib import admin
from django.core.exceptions import ValidationError
from django.db import models
from django.test import Client, RequestFactory
from django.utils.module_loading import import_string
from ninja import Schema
from pydantic import TypeAdapter
from pydantic import ValidationError as Malformed
from pydantic.fields import FieldInfo

from accounts import forms as account_forms
from accounts import members_forms
from accounts.models import ResetLink, User
from accounts.roles import Scope
from audit import forms as audit_forms
from audit.models import Entry
from board import forms as board_forms
from board import freezes, tokens
from ledger import rules
from ledger.api import schemas
from ledger.models import ApiToken, Approval, Deployment, Environment, Freeze, Lock, Release, Step
from settings import text
from statuspage import forms as statuspage_forms
from statuspage.models import IncidentUpdate
from tests.support.ledgers import begun, release

UNFIT = ["a\x0cb", "a\x00b", "a\ufffeb", "a\u202eb", "a\ud800b"]

# Texts that the rule need not hold, and why.
NOT_ENTERED = {
    "accounts.User.password": "a hash of ours; what is typed is never stored",
    "accounts.User.avatar": "a random name of ours",
    "accounts.ResetLink.address": "an address that an account has",
    "accounts.ResetLink.nonce": "random characters of ours",
    "accounts.Invitation.role": "a choice of the form",
    "accounts.Invitation.environment": "a choice of the form",
    "accounts.Invitation.digest": "a hash of ours",
    **dict.fromkeys(
        (f"audit.Entry.{name}" for name in ("action", "actor", "address", "environment", "target")),
        "written by audit.record() alone, which cleans what it is given",
    ),
    **dict.fromkeys(
        (f"ledger.Environment.{name}" for name in ("name", "purpose", "data", "access", "deployment")),
        "rows that follow environments.toml, which is read strictly",
    ),
    "ledger.Approval.digest": "that of the deployment, which it is compared with",
    "ledger.Freeze.zone": "a time zone that exists",
    "ledger.Freeze.actor": "an account's address, or who ran the command",
    "ledger.Freeze.ended_by": "an account's address, or who ran the command",
    "statuspage.IncidentUpdate.author": "an account's name or address, by their own rule",
    "ledger.Release.token": "the name of a token, by its own rule",
    "ledger.Deployment.token": "the name of a token, by its own rule",
    "ledger.Deployment.finished_token": "the name of a token, by its own rule",
    "ledger.Step.token": "the name of a token, by its own rule",
    "ledger.ApiToken.digest": "a hash of ours",
    "ledger.ApiToken.last_address": "an address of a connection",
    "ledger.IdempotencyKey.key": "visible ASCII by the API's own pattern; shown to nobody",
    "ledger.IdempotencyKey.request": "a hash of ours",
    "ledger.IdempotencyKey.location": "an address of ours",
    "ledger.IdempotencyKey.body": "an answer of ours",
}


def text_fields() -> Iterator[tuple[str, "models.Field[Any, Any]"]]:
    """Every field of our own models that holds free text, by its label."""
    for label in ("accounts", "audit", "ledger", "statuspage"):
        for model in apps.get_app_config(label).get_models():
            for field in model._meta.get_fields():
                if isinstance(field, models.CharField | models.TextField | models.FileField) and not field.choices:
                    yield f"{label}.{model.__name__}.{field.name}", field


@pytest.mark.parametrize(("label", "field"), [pytest.param(*each, id=each[0]) for each in text_fields()])
def test_every_text_of_a_model_has_the_rule_or_a_reason(label: str, field: "models.Field[Any, Any]") -> None:
    if label in NOT_ENTERED:
        return
    for value in UNFIT:
        with pytest.raises(ValidationError):
            field.run_validators(value)
    for rule in (text.lines, text.one_line, text.name):
        if rule in field.validators:
            return
    assert any(hasattr(each, "regex") for each in field.validators), f"{label} has neither the rule nor a pattern"


def test_no_reason_is_left_for_a_text_that_is_gone() -> None:
    assert NOT_ENTERED.keys() <= {label for label, _ in text_fields()}


# Forms

# allauth's forms that write nothing but hashes, and those that it has and we do not use.
FORMS_OF_OURS = [
    each
    for module in (account_forms, members_forms, audit_forms, board_forms, freezes, tokens, statuspage_forms)
    for _, each in inspect.getmembers(module, inspect.isclass)
    if issubclass(each, forms.BaseForm) and each.__module__ == module.__name__
]

# Which model field a form's field goes to, where the form itself does not say it.
GOES_TO: dict[tuple[str, str], tuple[type[models.Model], str]] = {
    ("SignupForm", "email"): (User, "email"),
    ("AddEmailForm", "email"): (EmailAddress, "email"),
    ("ResetPasswordForm", "email"): (ResetLink, "address"),
    ("DeploymentFilters", "search"): (Release, "version"),
    ("DeploymentFilters", "actor"): (Deployment, "actor"),
    ("EntryFilters", "actor"): (Entry, "actor"),
    ("EntryFilters", "environment"): (Entry, "environment"),
    ("InvitationForm", "email"): (User, "email"),
    ("EachWeek", "zone"): (Freeze, "zone"),
    **{(name, "reason"): (Freeze, "reason") for name in ("FreezeForm", "Once", "EachWeek")},
    ("NewIncident", "message"): (IncidentUpdate, "message"),
    ("NewUpdate", "message"): (IncidentUpdate, "message"),
}


def fields_of(form: Any) -> dict[str, forms.Field]:
    given: dict[str, Any] = {"user": User()} if issubclass(form, AddEmailForm) else {}
    if issubclass(form, freezes.FreezeForm | tokens.TokenForm):
        given["allowed"] = Scope(None)
    made = form(**given)
    found: dict[str, forms.Field] = made.fields
    return found


@pytest.mark.django_db
@pytest.mark.parametrize("form", FORMS_OF_OURS, ids=lambda form: form.__name__)
def test_every_text_of_a_form_has_the_rule_and_the_limit_of_its_row(form: type[forms.BaseForm]) -> None:
    for name, field in fields_of(form).items():
        if not isinstance(field, forms.CharField) or isinstance(field.widget, forms.PasswordInput):
            continue
        if issubclass(form, forms.ModelForm) and (form.__name__, name) not in GOES_TO:
            goes_to = (form._meta.model, name)
        else:
            assert (form.__name__, name) in GOES_TO, f"{form.__name__}.{name} goes to a row that GOES_TO does not name"
            goes_to = GOES_TO[form.__name__, name]
        row: Any = goes_to[0]._meta.get_field(goes_to[1])
        most = getattr(row, "max_length")
        assert field.max_length and field.max_length <= most, f"{form.__name__}.{name} takes more than {most}"
        assert int(field.widget.attrs["maxlength"]) == field.max_length
        with pytest.raises(ValidationError):
            field.clean("x" * (most + 1))
        for value in UNFIT:
            with pytest.raises(ValidationError):
                field.clean(value)
                if issubclass(form, forms.ModelForm) or issubclass(form, AddEmailForm | SignupForm):
                    row.run_validators(value)  # as the form does once its fields are clean


@pytest.mark.parametrize("kind", ["signup", "add_email", "reset_password"])
def test_the_forms_of_ours_are_those_that_are_used(kind: str, settings: Any) -> None:
    assert import_string(settings.ACCOUNT_FORMS[kind]) in FORMS_OF_OURS


@pytest.mark.django_db
@pytest.mark.parametrize("model", list(admin.site._registry), ids=lambda model: model._meta.label)
def test_every_text_of_the_admin_has_the_limit_of_its_row(model: type[models.Model]) -> None:
    page = admin.site._registry[model]
    request = RequestFactory().get("/")
    request.user = User(is_staff=True, is_superuser=True, is_active=True)
    if not page.has_add_permission(request) and not page.has_change_permission(request):
        return
    rows = {each.name: getattr(each, "max_length", None) for each in model._meta.get_fields()}
    for change in (False, True):
        for name, field in page.get_form(request, None, change=change).base_fields.items():
            if isinstance(field, forms.CharField) and not field.disabled and (most := rows.get(name)):
                assert field.max_length and field.max_length <= most, f"{model.__name__}.{name}"


# The API

ROWS: dict[type[Schema], type[models.Model]] = {
    schemas.NewRelease: Release,
    schemas.NewDeployment: Deployment,
    schemas.NewLock: Lock,
    schemas.StepReport: Step,
    schemas.DeploymentQuery: Deployment,
    schemas.Decision: Approval,
}
ELSEWHERE = {
    (schemas.NewDeployment, "environment"): (Environment, "name"),
    (schemas.NewDeployment, "release"): (Release, "version"),
    (schemas.DeploymentQuery, "environment"): (Environment, "name"),
    (schemas.DeploymentQuery, "search"): (Release, "version"),
    (schemas.DeploymentQuery, "cursor"): None,  # read, and never stored
    (schemas.Ending, "result"): None,  # one of the model's own states
}


def texts_of_the_api() -> Iterator[tuple[type[Schema], str, FieldInfo]]:
    for _, schema in inspect.getmembers(schemas, inspect.isclass):
        if issubclass(schema, schemas.Strict) and schema is not schemas.Strict:
            for name, field in schema.model_fields.items():
                if field.annotation is str or str in get_args(field.annotation) or "str" in str(field.annotation):
                    yield schema, name, field


@pytest.mark.parametrize(
    ("schema", "name", "field"),
    [pytest.param(*each, id=f"{each[0].__name__}.{each[1]}") for each in texts_of_the_api()],
)
def test_every_text_of_the_api_has_the_rule_and_the_limit_of_its_row(
    schema: type[Schema], name: str, field: FieldInfo
) -> None:
    reader: TypeAdapter[Any] = TypeAdapter(schema.__annotations__[name])
    for value in UNFIT:
        with pytest.raises(Malformed):
            reader.validate_python(value)
    goes_to = ELSEWHERE.get((schema, name), (ROWS[schema], name) if schema in ROWS else None)
    if goes_to is None:
        assert (schema, name) in ELSEWHERE, f"{schema.__name__}.{name}: which row does it go to?"
        return
    most = getattr(goes_to[0]._meta.get_field(goes_to[1]), "max_length")
    told = str(reader.json_schema())
    assert f"'maxLength': {most}" in told or "'pattern'" in told or "'enum'" in told, told
    for length in (most + 1, 10 * most):
        with pytest.raises(Malformed):
            reader.validate_python("1" * length)


# The ledger, whoever asks it


@pytest.mark.django_db
@pytest.mark.parametrize("value", [*UNFIT, "a\nb", "x" * 501])
def test_the_ledger_refuses_what_its_rows_cannot_hold_by_the_fields_name(value: str) -> None:
    made = release("1.0")
    acts: dict[str, Callable[[], object]] = {
        "message": lambda: rules.register("2.0", "4f2a9c1", made.built_at, value),
        "image": lambda: rules.register("2.0", "4f2a9c1", made.built_at, "", value),
        "version": lambda: rules.register(value, "4f2a9c1", made.built_at),
        "reason": lambda: rules.create("testing", "1.0", "rolling", "ci", reason=value),
        "actor": lambda: rules.create("testing", "1.0", "rolling", value),
        "name": lambda: rules.step(begun("development", "1.0").pk, value, "running"),
    }
    for field, act in acts.items():
        with pytest.raises(rules.Invalid) as caught:
            act()
        assert caught.value.field == field
    assert not Deployment.objects.filter(environment__name="testing").exists()


def test_a_tokens_name_is_told_apart_from_others() -> None:
    field: Any = ApiToken._meta.get_field("name")
    for value in ("deploy\u200b", "deploy\u200f", "\u202edeploy", "de\nploy"):
        with pytest.raises(ValidationError):
            field.run_validators(value)


# Addresses


def address(length: int) -> str:
    """An address of `length` characters whose parts are as long as they may be."""
    rest = length - 64 - 1
    labels = []
    while rest > 63 + 1 + 3:
        labels.append("a" * 62)
        rest -= 63
    labels.append("b" * (rest - 3))
    return "x" * 64 + "@" + ".".join([*labels, "io"])


@pytest.mark.django_db
@pytest.mark.parametrize("length", [255, 262, 320])
@pytest.mark.parametrize("verification", ["none", "mandatory"])
def test_an_address_that_is_too_long_signs_nobody_up(
    client: Client, length: int, verification: str, settings: Any
) -> None:
    settings.ACCOUNT_EMAIL_VERIFICATION = verification
    words = {"email": address(length), "password1": "correct-horse-42", "password2": "correct-horse-42"}
    response = client.post("/accounts/signup/", words)
    (message,) = response.context["form"].errors["email"]
    assert response.status_code == 200 and "at most 254 characters" in message
    assert not User.objects.exists() and not EmailAddress.objects.exists() and "_auth_user_id" not in client.session


@pytest.mark.django_db
def test_the_longest_address_signs_up_whole(client: Client) -> None:
    longest = address(254)
    words = {"email": longest, "password1": "correct-horse-42", "password2": "correct-horse-42"}
    assert client.post("/accounts/signup/", words).status_code == 302
    assert User.objects.get().email == EmailAddress.objects.get().email == longest


@pytest.mark.django_db
@pytest.mark.parametrize("value", [address(255), '"a\x0cb"@example.com'])
def test_an_address_that_does_not_fit_is_not_added(value: str) -> None:
    user = User.objects.create_user("me@example.com", "correct-horse-42")
    form = account_forms.AddEmailForm(user, {"email": value})
    assert not form.is_valid() and list(form.errors) == ["email"]


def test_an_address_that_grows_in_lower_case_is_not_cut() -> None:
    grown = f"{'x' * 64}@{'İ' * 62}.{'a' * 62}.{'b' * 61}.io"  # 254 characters, and 316 in lower case
    form = account_forms.SignupForm({"email": grown})
    assert "email" in form.errors
