"""The Atom feed of the incidents: https://www.rfc-editor.org/rfc/rfc4287"""

import uuid
from datetime import UTC, datetime
from typing import Any

from django.conf import settings
from django.contrib.syndication.views import Feed
from django.http import HttpRequest, HttpResponse
from django.urls import reverse
from django.utils.feedgenerator import Atom1Feed
from django.utils.xmlutils import SimplerXMLGenerator
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_safe

from statuspage import history

NAMESPACE = uuid.UUID("5c6a2a1e-6f0b-4e65-9a45-1b8e6d0f2c77")  # of the feed's ids, which must never change


@require_safe
@never_cache
def feed(request: HttpRequest) -> HttpResponse:
    """Serves the feed; 503 if the incidents are unavailable, because an empty feed would say that there are none."""
    known, _ = history.last_known()
    if known is None:
        headers = {"Retry-After": str(settings.RETRY_AFTER)}
        return HttpResponse("The incidents are unavailable. Try again later.\n", "text/plain", 503, headers=headers)
    return IncidentFeed()(request, [history.with_datetimes(each) for each in known["incidents"]])


class PlainTextAtom(Atom1Feed):
    """Atom with summaries in plain text. Django declares them as HTML, in which "<host>" would be a tag."""

    def add_item_elements(self, handler: SimplerXMLGenerator, item: dict[str, Any]) -> None:
        """Adds the summary as text in place of Django's."""
        super().add_item_elements(handler, item | {"description": None})
        handler.addQuickElement("summary", item["description"], {"type": "text"})


def identifier(*parts: object) -> str:
    """Returns a permanent id for the feed or an entry (RFC 4287, section 4.2.6)."""
    return f"urn:uuid:{uuid.uuid5(NAMESPACE, '/'.join(map(str, parts)))}"


class IncidentFeed(Feed):  # type: ignore[type-arg]
    """The feed of the incidents that it is called with."""

    feed_type = PlainTextAtom
    title = "backstagetest1 incidents"
    subtitle = "Incidents and their updates."
    author_name = "backstagetest1"  # section 4.1.1 requires an author in the feed or in each entry
    feed_guid = identifier("feed")

    def get_object(self, request: HttpRequest, incidents: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return incidents

    def link(self) -> str:
        return reverse("status")

    def items(self, incidents: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return incidents

    def item_title(self, item: Any) -> str:
        return f"{item['status'].capitalize()}: {item['title']}"

    def item_description(self, item: Any) -> str:
        return "\n\n".join(
            f"{each['at'].astimezone(UTC):%Y-%m-%d %H:%M} UTC, {each['status']}: {each['message']}"
            for each in item["updates"]
        )

    def item_link(self, item: Any) -> str:
        return reverse("incident", args=[item["id"]])

    def item_guid(self, item: Any) -> str:
        return identifier("incident", item["id"])

    def item_pubdate(self, item: Any) -> datetime:
        return item["started"]  # type: ignore[no-any-return]

    def item_updateddate(self, item: Any) -> datetime:
        return max([item["started"], *(each["at"] for each in item["updates"])])  # type: ignore[no-any-return]

    def item_categories(self, item: Any) -> list[str]:
        return [item["environment"], item["impact"]]
