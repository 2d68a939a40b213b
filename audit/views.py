"""The audit log's page and its export, for whoever holds audit.view_entry."""

import csv
from collections.abc import Iterator
from typing import Any

from django.contrib.auth.decorators import login_required, permission_required
from django.db.models import QuerySet
from django.http import HttpRequest, HttpResponse, StreamingHttpResponse
from django.shortcuts import redirect, render
from django.utils import timezone
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_safe

from audit import table
from audit.forms import EntryFilters
from audit.models import Entry

PAGE = 50  # entries
EXPORT = 50_000  # entries of one file, so that a worker is not busy with it for minutes


@require_safe
@never_cache
@login_required
@permission_required("audit.view_entry", raise_exception=True)
def entries(request: HttpRequest) -> HttpResponse:
    """Shows the filtered log in pages; 400 with the errors if a filter is invalid. An invalid cursor is dropped."""
    form = EntryFilters(request.GET)
    if not form.is_valid():
        return render(request, "audit/entries.html", {"form": form, "page": None}, status=400)
    filters = form.filters()
    newer = request.GET.get("newer")
    try:
        page = Entry.objects.matching(**filters).page(PAGE, newer or request.GET.get("older"), newer=bool(newer))
    except ValueError:
        parameters = request.GET.copy()
        for name in ("newer", "older"):
            parameters.pop(name, None)
        return redirect(f"{request.path}?{parameters.urlencode()}")
    rows = [{"entry": each, "label": table.label(each), "details": table.details(each)} for each in page.rows]
    context = {"form": form, "page": page, "rows": rows, "filtered": any(filters.values()), "limit": EXPORT}
    return render(request, "audit/entries.html", context)


@require_safe
@never_cache
@login_required
@permission_required("audit.view_entry", raise_exception=True)
def export(request: HttpRequest) -> HttpResponse | StreamingHttpResponse:
    """Sends the newest EXPORT entries that match as CSV; 400 with the page if a filter is invalid."""
    form = EntryFilters(request.GET)
    if not form.is_valid():
        return render(request, "audit/entries.html", {"form": form, "page": None}, status=400)
    response = StreamingHttpResponse(lines(Entry.objects.matching(**form.filters())), "text/csv; charset=utf-8")
    response["Content-Disposition"] = f'attachment; filename="audit-{timezone.now():%Y-%m-%d}.csv"'
    return response


class Line:
    """A file for csv.writer whose write() returns the line."""

    def write(self, line: str) -> str:
        return line


def lines(found: QuerySet[Entry]) -> Iterator[str]:
    """Yields the lines of the file. The last one says so if there are more entries than EXPORT."""
    writer: Any = csv.writer(Line())
    yield writer.writerow(table.COLUMNS)
    last = None
    for last in table.each(found, EXPORT):
        yield writer.writerow(table.row(last))
    if last and found.filter(time__lte=last.time).exclude(time=last.time, pk__gte=last.pk).exists():
        yield writer.writerow([f"Only the newest {EXPORT} entries; choose a shorter period for the rest."])
