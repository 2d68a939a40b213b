"""The admin's pages for users, groups and email addresses.

Staff who may edit users must not be able to raise their own privileges. So only superusers grant permissions, and
nobody can change a user who has a permission that they lack, nor that user's addresses: a changed address or password
gives access to the account.
"""

from collections.abc import Callable
from typing import Any

from allauth.account import admin as allauth_admin  # registers EmailAddress, which is replaced below
from allauth.account.decorators import secure_admin_login
from allauth.account.models import EmailAddress
from allauth.mfa import admin as mfa_admin  # registers Authenticator, which is removed below
from allauth.usersessions import admin as usersessions_admin  # registers UserSession, likewise
from django.conf import settings
from django.contrib import admin, messages
from django.contrib.auth.admin import GroupAdmin as DjangoGroupAdmin
from django.contrib.auth.admin import UserAdmin as DjangoUserAdmin
from django.contrib.auth.forms import AdminUserCreationForm
from django.contrib.auth.models import Group, Permission
from django.db.models import ForeignKey, Q, QuerySet
from django.forms import ModelChoiceField, ModelForm
from django.http import HttpRequest, HttpResponse
from django.shortcuts import redirect

from accounts import members
from accounts.models import User

# Signing in and changing the password use the public pages, with their rate limits and notifications.
admin.site.login = secure_admin_login(admin.site.login)  # type: ignore[method-assign]


def password_change(request: HttpRequest, extra_context: dict[str, Any] | None = None) -> HttpResponse:
    return redirect("account_change_password")


admin.site.password_change = password_change  # type: ignore[method-assign,assignment]
admin.site.site_header = admin.site.site_title = "backstagetest1"


def is_superuser(request: HttpRequest) -> bool:
    return isinstance(request.user, User) and request.user.is_active and request.user.is_superuser


def manageable_users(request: HttpRequest) -> "QuerySet[User]":
    """Returns the users whom the requester may change: those without a permission that the requester lacks.

    Inactive users' permissions count as well, as they can be activated again. A superuser may change everybody.
    """
    if is_superuser(request):
        return User.objects.all()
    own = Permission.objects.filter(Q(user=request.user.pk) | Q(group__user=request.user.pk)).values("pk")
    more = Permission.objects.exclude(pk__in=own)
    return User.objects.filter(is_superuser=False).exclude(
        Q(user_permissions__in=more) | Q(groups__permissions__in=more)
    )


def may_manage(request: HttpRequest, user: User) -> bool:
    return manageable_users(request).filter(pk=user.pk).exists()


class UserCreationForm(AdminUserCreationForm):  # type: ignore[type-arg]
    class Meta:
        model = User
        fields = ("email", "display_name")


@admin.register(User)
class UserAdmin(DjangoUserAdmin):  # type: ignore[type-arg]
    privileges = ("is_staff", "is_superuser", "groups", "user_permissions")

    fieldsets = (
        (None, {"fields": ("email", "password", "display_name")}),
        ("Permissions", {"fields": ("is_active", *privileges)}),
        ("Dates", {"fields": ("date_joined", "last_login")}),
    )
    add_form = UserCreationForm
    add_fieldsets = ((None, {"fields": ("email", "display_name", "usable_password", "password1", "password2")}),)
    readonly_fields = ("date_joined", "last_login")
    list_display = ("email", "display_name", "is_active", "is_staff", "date_joined", "last_login")
    list_filter = ("is_active", "is_staff", "is_superuser", "groups", "date_joined")
    search_fields = ("email", "display_name")
    ordering = ("email",)
    list_per_page = 50

    def get_readonly_fields(self, request: HttpRequest, obj: User | None = None) -> tuple[str, ...]:
        return self.readonly_fields if is_superuser(request) else (*self.readonly_fields, *self.privileges)

    def has_change_permission(self, request: HttpRequest, obj: User | None = None) -> bool:
        return super().has_change_permission(request, obj) and (obj is None or may_manage(request, obj))

    def has_delete_permission(self, request: HttpRequest, obj: User | None = None) -> bool:
        return super().has_delete_permission(request, obj) and (obj is None or may_manage(request, obj))

    def changeform_view(self, request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponse:
        return self.keeping(super().changeform_view, request, *args, **kwargs)

    def delete_view(self, request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponse:
        return self.keeping(super().delete_view, request, *args, **kwargs)

    def changelist_view(self, request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponse:
        return self.keeping(super().changelist_view, request, *args, **kwargs)

    def keeping(
        self, view: Callable[..., HttpResponse], request: HttpRequest, *args: Any, **kwargs: Any
    ) -> HttpResponse:
        """Runs one of the admin's views; if it would take away the last maintainer, says so and changes nothing."""
        if request.method != "POST":
            return view(request, *args, **kwargs)
        try:
            with members.keeping_a_maintainer():
                return view(request, *args, **kwargs)
        except members.LastMaintainer as error:
            self.message_user(request, str(error), messages.ERROR)
            return redirect(request.get_full_path())

    def save_model(self, request: HttpRequest, obj: User, form: "ModelForm[User]", change: bool) -> None:
        """Saves the user. A changed address must be verified at the next sign-in; the old one stops working."""
        super().save_model(request, obj, form, change)
        if change and "email" in form.changed_data:
            obj.emailaddress_set.all().delete()


admin.site.unregister(Group)
admin.site.unregister(EmailAddress)
if settings.OIDC_ISSUER:
    from allauth.socialaccount import admin as socialaccount_admin

    for model in ("SocialAccount", "SocialApp", "SocialToken"):  # who edits links could sign in as anybody
        admin.site.unregister(getattr(socialaccount_admin, model))
admin.site.unregister(usersessions_admin.UserSession)  # whose keys are what signs people in
admin.site.unregister(mfa_admin.Authenticator)  # who edits second factors could sign in as their owner


@admin.register(Group)
class GroupAdmin(DjangoGroupAdmin):
    """Only superusers change groups, as a group's permissions apply to all its members."""

    def has_add_permission(self, request: HttpRequest) -> bool:
        return is_superuser(request)

    def has_change_permission(self, request: HttpRequest, obj: Group | None = None) -> bool:
        return is_superuser(request)

    def has_delete_permission(self, request: HttpRequest, obj: Group | None = None) -> bool:
        return is_superuser(request)


@admin.register(EmailAddress)
class EmailAddressAdmin(allauth_admin.EmailAddressAdmin):  # type: ignore[misc]
    """allauth's page with the user and the address read-only, as links already sent keep verifying the old address.

    The primary address is User.email and changes with it.
    """

    def get_readonly_fields(self, request: HttpRequest, obj: Any = None) -> tuple[str, ...]:
        return ("user", "email", "primary") if obj else ("primary",)

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return bool(super().has_change_permission(request, obj)) and (obj is None or may_manage(request, obj.user))

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return bool(super().has_delete_permission(request, obj)) and (obj is None or may_manage(request, obj.user))

    def formfield_for_foreignkey(
        self, db_field: "ForeignKey[Any, Any]", request: HttpRequest, **kwargs: Any
    ) -> "ModelChoiceField[Any] | None":
        if db_field.name == "user":
            kwargs["queryset"] = manageable_users(request)
        field: "ModelChoiceField[Any] | None" = super().formfield_for_foreignkey(db_field, request, **kwargs)
        return field

    @admin.action(description="Mark selected email addresses as verified", permissions=["change"])
    def make_verified(self, request: HttpRequest, queryset: Any) -> None:
        super().make_verified(request, queryset.filter(user__in=manageable_users(request)))
