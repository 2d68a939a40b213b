"""The tokens page: everybody's own API tokens, and for maintainers those of all."""

from datetime import timedelta
from typing import Any

from django import forms
from django.contrib import messages
from django.contrib.auth.decorators import login_required
from django.core.exceptions import PermissionDenied
from django.db import IntegrityError, transaction
from django.db.models import QuerySet
from django.http import Http404, HttpRequest, HttpResponse
from django.shortcuts import redirect, render
from django.utils import timezone
from django.views.decorators.cache import never_cache
from django.views.decorators.debug import sensitive_variables
from django.views.decorators.http import require_http_methods, require_POST

from accounts.roles import Scope, scope
from ledger import tokens
from ledger.models import ApiToken, Environment

EXPIRES_SOON = timedelta(days=14)
LONGEST = 365  # days until a token of a person expires


class TokenForm(forms.ModelForm):  # type: ignore[type-arg]
    """A new token: for environments in which its maker may deploy."""

    days = forms.IntegerField(label="Days until it expires", min_value=1, max_value=LONGEST, initial=90)

    class Meta:
        model = ApiToken
        fields = ("name", "environments", "may_request", "may_record", "may_register")
        labels = {
            "may_request": "Request deployments",
            "may_record": "Report the progress of its own deployments",
            "may_register": "Register releases",
        }
        help_texts = {"name": "The pipeline that uses it. A name is never given twice.", "environments": ""}
        widgets = {"environments": forms.CheckboxSelectMultiple}

    def __init__(self, *args: Any, allowed: Scope = Scope(None), **options: Any) -> None:
        super().__init__(*args, **options)
        field = self.fields["environments"]
        assert isinstance(field, forms.ModelMultipleChoiceField)
        field.queryset = Environment.objects.on_board()
        if allowed.names is not None:
            field.queryset = field.queryset.filter(name__in=allowed.names)
            del self.fields["may_register"]  # releases are for every environment
        field.required = True

    @property
    def abilities(self) -> list[forms.BoundField]:
        """What the token may do, shown as one group."""
        return [self[name] for name in self.fields if name.startswith("may_")]


def may_make(request: HttpRequest) -> Scope:
    """Returns the environments for which the visitor may make tokens.

    A token reads everything, so its owner must be a viewer everywhere.
    """
    found = scope(request.user, "ledger.request_deployment")
    return found if scope(request.user, "ledger.view_people").names is None else Scope(frozenset())


def visible(request: HttpRequest) -> "QuerySet[ApiToken]":
    """Returns the tokens that the visitor may see and revoke: their own, or all."""
    rows = ApiToken.objects.select_related("owner").prefetch_related("environments")
    return rows if request.user.has_perm("ledger.manage_tokens") else rows.filter(owner=request.user.pk)


@require_http_methods(["GET", "HEAD", "POST"])
@never_cache
@login_required
@sensitive_variables("token")
def page(request: HttpRequest) -> HttpResponse:
    """Lists the tokens; a POST makes one and shows it, this once. 422 if the form is invalid."""
    allowed = may_make(request)
    if not allowed:
        raise PermissionDenied
    form, made, token = TokenForm(request.POST if request.method == "POST" else None, allowed=allowed), None, ""
    if form.is_valid():
        given = dict(form.cleaned_data)
        expires = timezone.now() + timedelta(days=given.pop("days"))
        try:
            with transaction.atomic():
                name, environments = given.pop("name"), given.pop("environments")
                made, token = tokens.make(name, environments, expires, owner=request.user, request=request, **given)
        except IntegrityError:
            form.add_error("name", "This name is taken. Choose another.")
        else:
            form = TokenForm(allowed=allowed)
    now = timezone.now()
    rows = [
        {"token": row, "state": row.state(now), "works": tokens.usable(row), "soon": expires_soon(row)}
        for row in visible(request)
    ]
    context = {"form": form, "made": made, "secret": token, "rows": rows}
    return render(request, "board/tokens.html", context, status=422 if form.is_bound else 200)


def expires_soon(row: ApiToken) -> bool:
    now = timezone.now()
    return row.state(now) == "active" and row.expires is not None and row.expires <= now + EXPIRES_SOON


@require_POST
@never_cache
@login_required
def revoke(request: HttpRequest, key: int) -> HttpResponse:
    """Revokes a token; one that the visitor may not see is 404, as one that is not there."""
    row = visible(request).filter(pk=key).first()
    if row is None:
        raise Http404
    tokens.revoke(row.name, request=request)
    messages.success(request, f"Token {row.name} revoked.")
    return redirect("tokens")
