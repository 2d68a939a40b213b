"""Live pages: an open page updates itself without disturbing what its reader is doing.

A template marks each part that changes by itself as a fragment with an id:

    {% fragment "in-flight" "production" class="stack" %}…{% endfragment %}

Its view answers with respond(); its template extends `layout|default:"base.html"` and includes pages/_live.html. From
then on static/pages.js requests the same address every few seconds, with the digests of the fragments that the page
has. The response holds the fragments that differ, and htmx swaps each in by its id
(https://htmx.org/attributes/hx-swap-oob/). So one view and one template serve both. The rules for templates:

- Time passes in the browser. A digest leaves out whatever depends on the clock alone: the text of a <time> (the tag
  `time` makes those), and the text, value, x and width of an element with data-since. pages.js keeps those up to date.
  The server renders them too, for readers without JavaScript.
- Text that readers select, such as a command, belongs in a fragment that stays the same during a deployment. A fragment
  that contains selected text is not swapped until the selection is cleared; the page says so.
- Fragments can be nested. The digest of the outer one ignores the inner ones, so only the inner ones are sent.
- The ids of the outermost fragments are the same in every response. A fragment with nothing to show is empty, not
  missing.
- Links, buttons and <details> in a fragment have ids: the focus and the open state survive a swap by them.
- No CSRF token in a fragment: it differs in each response.
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

CLOCK_ELEMENT = re.compile(r'<time\b[^>]*>[^<]*|<\w+\b[^>]* data-since="[^"]*"[^>]*>[^<]*')
CLOCK_ATTRIBUTE = re.compile(r' (?:value|x|width)="[^"]*"')


class HtmxRequest(HttpRequest):
    """A request with what django_htmx.middleware.HtmxMiddleware adds to it."""

    htmx: HtmxDetails  # true if htmx sent it


@dataclass(frozen=True)
class Fragment:
    """A part of a page that changes by itself: an element with an id. An open page sends the digests that it has."""

    id: str
    tag: str
    attributes: dict[str, Any]
    content: SafeString
    inner: tuple["Fragment", ...] = ()

    @cached_property
    def digest(self) -> str:
        """48 bits of SHA-256 in hexadecimal digits, over everything but clock texts and inner fragments."""
        own = str(self.content)
        for fragment in self.inner:
            own = own.replace(fragment.html, fragment.id)
        hashed = f"{self.id} {self.tag} {self.attributes} {CLOCK_ELEMENT.sub(without_clock, own)}"
        return hashlib.sha256(hashed.encode()).hexdigest()[:12]

    @cached_property
    def html(self) -> SafeString:
        """The element as the page has it."""
        return self.element({})

    @property
    def swap(self) -> SafeString:
        """The element as htmx swaps it, in a <template>, since a table row cannot stand alone."""
        return format_html("<template>{}</template>", self.element({"hx-swap-oob": "true"}))

    def element(self, more: dict[str, str]) -> SafeString:
        """The element, with `more` attributes."""
        attributes = {"id": self.id, "data-fragment": self.digest} | self.attributes | more
        pairs = format_html_join("", ' {}="{}"', attributes.items())
        return format_html("<{}{}>{}</{}>", self.tag, pairs, self.content, self.tag)


def without_clock(match: re.Match[str]) -> str:
    """Returns the element's start tag, without what the clock sets."""
    return CLOCK_ATTRIBUTE.sub("", match[0].partition(">")[0])


def add(fragments: list[Fragment], fragment: Fragment) -> SafeString:
    """Adds a fragment to those of the page, in place of those inside it, and returns its element."""
    inner = tuple(each for each in fragments if each.html in fragment.content)
    fragments[:] = [each for each in fragments if each not in inner]
    fragments.append(replace(fragment, inner=inner))
    return fragments[-1].html


def is_poll(request: HtmxRequest) -> bool:
    """Tells whether an open page asks for its changes."""
    return bool(request.htmx) and "seen" in request.GET


def respond(request: HtmxRequest, template: str, context: dict[str, Any], status: int = 200) -> HttpResponse:
    """Renders the page; or, for a poll, only the fragments whose digests the page lacks: 204 if there are none.

    A page that cannot be shown (`status` 400 or higher) has no fragments: the open page keeps what it has and says so.
    """
    fragments: list[Fragment] = []
    context = context | {"fragments": fragments}
    if not is_poll(request):
        return render(request, template, context, status=status)
    if status >= 400:
        return HttpResponse(status=status)
    seen = set(request.GET.getlist("seen"))
    parameters = request.GET.copy()
    del parameters["seen"]
    request.GET = QueryDict(parameters.urlencode())  # so that the page's links are those that it was loaded with
    render_to_string(template, context | {"layout": "pages/changes.html"}, request)
    swaps = "\n".join(fragment.swap for fragment in changed(fragments, seen))
    return HttpResponse(swaps) if swaps else HttpResponse(status=204)


def changed(fragments: Iterable[Fragment], seen: set[str]) -> Iterator[Fragment]:
    """Yields the outermost fragments whose digests are not in `seen`."""
    for fragment in fragments:
        if fragment.digest not in seen:
            yield fragment
        else:
            yield from changed(fragment.inner, seen)
