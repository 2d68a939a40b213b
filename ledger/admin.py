"""The ledger in the admin, read-only: the rules write it, and its history never changes."""

from typing import Any

from django.contrib import admin
from django.http import HttpRequest

from ledger.models import ApiToken, Deployment, Environment, Release, Step


class ReadOnly:
    def has_add_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False


class StepInline(ReadOnly, admin.TabularInline):  # type: ignore[type-arg]
    model = Step
    fields = ("position", "name", "outcome", "started", "finished", "token")


@admin.register(Environment)
class EnvironmentAdmin(ReadOnly, admin.ModelAdmin):  # type: ignore[type-arg]
    list_display = ("name", "order", "purpose", "data", "access", "deployment", "soak")


@admin.register(Release)
class ReleaseAdmin(ReadOnly, admin.ModelAdmin):  # type: ignore[type-arg]
    list_display = ("version", "short_commit", "message", "built_at", "token", "registered")
    search_fields = ("version__startswith", "commit__startswith")
    show_full_result_count = False
    list_per_page = 50


@admin.register(Deployment)
class DeploymentAdmin(ReadOnly, admin.ModelAdmin):  # type: ignore[type-arg]
    list_display = ("id", "environment", "release", "kind", "strategy", "hotfix", "status", "actor", "token", "created")
    list_filter = ("environment", "status", "strategy", "kind", "hotfix")
    list_select_related = ("environment", "release")
    search_fields = ("release__version__startswith", "release__commit__startswith")
    show_full_result_count = False
    list_per_page = 50
    inlines = (StepInline,)


@admin.register(ApiToken)
class ApiTokenAdmin(ReadOnly, admin.ModelAdmin):  # type: ignore[type-arg]
    """Tokens, without their secrets. manage.py api_token creates and revokes them, and shows a secret once."""

    list_display = ("name", "may_register", "may_take_over", "created", "expires", "revoked", "last_used")
    fields = ("name", "environments", *list_display[1:])
    search_fields = ("name",)
