"""What staff write: incidents, and updates to them."""

from datetime import datetime

from django.db import transaction
from django.http import HttpRequest
from django.utils import timezone

import audit
from audit.actions import Action
from statuspage import history
from statuspage.models import Incident, IncidentUpdate


def report(
    incident: Incident, message: str, author: str, at: datetime | None = None, *, request: HttpRequest | None = None
) -> Incident:
    """Opens an unsaved incident with its first update, at `at` or now, and returns it.

    `author` is shown; `request`, if there is one, says to the audit log who it was.

    Raises ValidationError if a text breaks the model's rules.
    """
    incident.started = at or timezone.now()
    if incident.status == Incident.Status.RESOLVED:
        incident.resolved = incident.started
    with transaction.atomic():
        incident.full_clean()
        incident.save()
        add_update(incident, message, author, incident.started)
        note(Action.INCIDENT_OPENED, incident, author, request)
    history.invalidate()
    return incident


def update(
    key: int, status: str, message: str, author: str, at: datetime | None = None, *, request: HttpRequest | None = None
) -> Incident:
    """Adds an update to the incident with the primary key `key`, at `at` or now, and returns the incident.

    An update after the resolution reopens the incident, unless it says resolved as well; then the time of the first
    resolution stays. Raises Incident.DoesNotExist, or ValidationError if a text breaks the model's rules.
    """
    at = at or timezone.now()
    with transaction.atomic():
        incident = Incident.objects.select_for_update().get(pk=key)
        incident.status = status
        incident.resolved = (incident.resolved or at) if status == Incident.Status.RESOLVED else None
        incident.save()
        add_update(incident, message, author, at)
        resolved = status == Incident.Status.RESOLVED
        note(Action.INCIDENT_RESOLVED if resolved else Action.INCIDENT_UPDATED, incident, author, request)
    history.invalidate()
    return incident


def note(action: Action, incident: Incident, author: str, request: HttpRequest | None) -> None:
    """Records in the audit log what was done to the incident."""
    environment = incident.environment.name if incident.environment else ""
    target = f"incident {incident.pk}"
    details = {"title": incident.title, "status": incident.status}
    actor = "" if request else author
    audit.record(action, actor=actor, environment=environment, target=target, details=details, request=request)


def add_update(incident: Incident, message: str, author: str, at: datetime) -> None:
    """Saves an update with the incident's status. Raises ValidationError if a text breaks the model's rules."""
    row = IncidentUpdate(incident=incident, at=at, status=incident.status, message=message, author=author)
    row.full_clean()
    row.save()
