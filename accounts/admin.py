"""The admin's pages about people. allauth's own page about e-mail addresses (primary, verified) is there as well."""

from typing import Any

from allauth.account.decorators import secure_admin_login
from django.contrib import admin
from django.contrib.auth.admin import UserAdmin as DjangoUserAdmin
from django.contrib.auth.forms import AdminUserCreationForm
from django.forms import ModelForm
from django.http import HttpRequest, HttpResponse
from django.shortcuts import redirect

from accounts.models import User

# Sign-in and password change go through the pages that everybody uses, with their rate limits and notices.
admin.site.login = secure_admin_login(admin.site.login)  # type: ignore[method-assign]


def password_change(request: HttpRequest, extra_context: dict[str, Any] | None = None) -> HttpResponse:
    return redirect("account_change_password")


admin.site.password_change = password_change  # type: ignore[method-assign,assignment]
admin.site.site_header = admin.site.site_title = "backstagetest1"


class UserCreationForm(AdminUserCreationForm):  # type: ignore[type-arg]
    class Meta:
        model = User
        fields = ("email", "display_name")


@admin.register(User)
class UserAdmin(DjangoUserAdmin):  # type: ignore[type-arg]
    fieldsets = (
        (None, {"fields": ("email", "password", "display_name")}),
        ("Permissions", {"fields": ("is_active", "is_staff", "is_superuser", "groups", "user_permissions")}),
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

    def save_model(self, request: HttpRequest, obj: User, form: "ModelForm[User]", change: bool) -> None:
        """A new address has to be verified, at the next sign-in; the old one no longer signs anybody in."""
        super().save_model(request, obj, form, change)
        if change and "email" in form.changed_data:
            obj.emailaddress_set.all().delete()
