"""What staff write: incidents, and updates to them."""

from datetime import datetime

from django.db import transaction
from django.utils import timezone

from statuspage import history
from statuspage.models import Incident, IncidentUpdate


def report(incident: Incident, message: str, author: str, at: datetime | None = None) -> Incident:
    """Opens an unsaved incident with its first update, at `at` or now, and returns it.

    Raises ValidationError if a text breaks the model's rules.
    """
    incident.started = at or timezone.now()
    if incident.status == Incident.Status.RESOLVED:
        incident.resolved = incident.started
    with transaction.atomic():
        incident.full_clean()
        incident.save()
        add_update(incident, message, author, incident.started)
    history.invalidate()
    return incident


def update(key: int, status: str, message: str, author: str, at: datetime | None = None) -> Incident:
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
    history.invalidate()
    return incident


def add_update(incident: Incident, message: str, author: str, at: datetime) -> None:
    """Saves an update with the incident's status. Raises ValidationError if a text breaks the model's rules."""
    row = IncidentUpdate(incident=incident, at=at, status=incident.status, message=message, author=author)
    row.full_clean()
    row.save()
