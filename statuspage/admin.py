"""Incidents in the admin, read-only: staff report them on the status page, where they see what others will see."""

from django.contrib import admin

from ledger.admin import ReadOnly
from statuspage.models import Incident, IncidentUpdate


class UpdateInline(ReadOnly, admin.TabularInline):  # type: ignore[type-arg]
    """The updates of an incident."""

    model = IncidentUpdate
    fields = ("at", "status", "message", "author")


@admin.register(Incident)
class IncidentAdmin(ReadOnly, admin.ModelAdmin):  # type: ignore[type-arg]
    """Incidents, with their updates and authors."""

    list_display = ("title", "environment", "impact", "status", "started", "resolved")
    list_filter = ("environment", "impact", "status")
    list_select_related = ("environment",)
    inlines = (UpdateInline,)
