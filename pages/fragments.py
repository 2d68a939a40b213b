"""Pages that stay up to date while they are open, without taking away what their readers are doing.

A page marks the parts that change by themselves as pieces, in its template, each with an id:

    {% piece "flight" "production" class="stack" %}…{% endpiece %}

Its view answers by answer(), and its template extends `frame|default:"base.html"` and includes pages/live.html.
static/pages.js then asks the same address again every few seconds with the digests of the pieces that the page has, is
sent those that differ, and puts each in the place of the one with its id. So a view is written once, for both. Rules:

- Time passes in the browser. What follows from the clock alone is not part of a digest: the text of a <time> (the tag
  `when` makes those), and in an element with data-since its text and its attributes value, x and width. pages.js keeps
  those right. The server writes them too, for readers without JavaScript.
- What readers select, such as a command, stands in a piece that does not change while something runs. A piece of which
  something is selected is not swapped until it no longer is; the page says so.
- A piece may hold pieces. The outer digest does not depend on what is in the inner ones, so that only those are sent.
- The ids of the outermost pieces are the same in every answer; a piece with nothing to show is there, and empty.
- Links and buttons in a piece have ids, as has a <details>: by these the focus, and what is open, survive a swap.
- No CSRF token in a piece: it differs in each answer.
"""

import hashlib
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from django.http import HttpRequest, HttpResponse, QueryDict
from django.shortcuts import render
from django.template.loader import render_to_string
from django.utils.html import format_html, format_html_join
from django.utils.safestring import SafeString
from django_htmx.middleware import HtmxDetails

TICKING = re.compile(r'<time\b[^>]*>[^<]*|<\w+\b[^>]* data-since="[^"]*"[^>]*>[^<]*')
CLOCKS = re.compile(r' (?:value|x|width)="[^"]*"')


class HtmxRequest(HttpRequest):
    htmx: HtmxDetails  # true if htmx asks


@dataclass(frozen=True)
class Piece:
    """A part of a page that changes by itself: an element with an id. The page sends the digests that it has."""

    id: str
    tag: str
    attributes: dict[str, Any]
    content: SafeString
    inner: tuple["Piece", ...] = ()

    @cached_property
    def digest(self) -> str:
        """48 bits, in hexadecimal digits: of everything but what the clock and the inner pieces have."""
        own = str(self.content)
        for piece in self.inner:
            own = own.replace(piece.html, piece.id)
        whole = f"{self.id} {self.tag} {self.attributes} {TICKING.sub(timeless, own)}"
        return hashlib.sha256(whole.encode()).hexdigest()[:12]

    @cached_property
    def html(self) -> SafeString:
        return self.element({})

    @property
    def change(self) -> SafeString:
        """As htmx swaps it; in a <template>, as a table's row cannot stand alone."""
        return format_html("<template>{}</template>", self.element({"hx-swap-oob": "true"}))

    def element(self, more: dict[str, str]) -> SafeString:
        attributes = {"id": self.id, "data-piece": self.digest} | self.attributes | more
        pairs = format_html_join("", ' {}="{}"', attributes.items())
        return format_html("<{}{}>{}</{}>", self.tag, pairs, self.content, self.tag)


def timeless(found: re.Match[str]) -> str:
    """The element's start tag, without what the clock sets."""
    return CLOCKS.sub("", found[0].partition(">")[0])


def add(pieces: list[Piece], piece: Piece) -> SafeString:
    """Adds a piece to the page's, in place of those that are within it, and returns its element."""
    inner = tuple(each for each in pieces if each.html in piece.content)
    pieces[:] = [each for each in pieces if each not in inner]
    pieces.append(replace(piece, inner=inner))
    return pieces[-1].html


def polled(request: HtmxRequest) -> bool:
    """Whether an open page asks what has changed."""
    return bool(request.htmx) and "seen" in request.GET


def answer(request: HtmxRequest, template: str, context: dict[str, Any], status: int = 200) -> HttpResponse:
    """The page; or, to an open page that asks, the pieces that differ from those it has: 204 if none does.

    A page that cannot be shown (`status` 400 or more) has no pieces: the open page keeps what it has, and says so.
    """
    pieces: list[Piece] = []
    context = context | {"pieces": pieces}
    if not polled(request):
        return render(request, template, context, status=status)
    if status >= 400:
        return HttpResponse(status=status)
    seen = set(request.GET.getlist("seen"))
    parameters = request.GET.copy()
    del parameters["seen"]
    request.GET = QueryDict(parameters.urlencode())  # what the page links to is the same as when it was loaded
    render_to_string(template, context | {"frame": "pages/changes.html"}, request)
    changes = "\n".join(piece.change for piece in changed(pieces, seen))
    return HttpResponse(changes) if changes else HttpResponse(status=204)


def changed(pieces: Iterable[Piece], seen: set[str]) -> Iterator[Piece]:
    """The outermost pieces whose digests are not in `seen`."""
    for piece in pieces:
        if piece.digest not in seen:
            yield piece
        else:
            yield from changed(piece.inner, seen)
