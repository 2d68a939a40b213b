"""Static files: this release's own, and the hashed ones of other releases. Pages that are still open in browsers need
those, and so does the time in which two releases serve, when a page of one may ask the other for its style sheet.

Where nginx is in front, it has them (scripts/prepare.py). Where it is not, STATIC_SHARED names a folder that all
instances see: each brings its own files there when it starts, and looks there for those that it does not have.
"""

import logging
import os
import re
import tempfile
import time
from pathlib import Path
from typing import Any

from django.conf import settings
from django.core.files.storage import FileSystemStorage
from django.http import Http404, HttpRequest, HttpResponseBase
from django.views.decorators.http import require_safe
from django.views.static import serve
from whitenoise.middleware import WhiteNoiseMiddleware
from whitenoise.storage import CompressedManifestStaticFilesStorage

from metrics import accept

logger = logging.getLogger(__name__)

HASHED = re.compile(r"(?:[\w-][\w.-]*/)*[\w-][\w.-]*\.[0-9a-f]{12}\.[a-z0-9]+", re.ASCII)
KEPT = 30 * 86_400  # seconds from the last start of a release that has the file


class Storage(CompressedManifestStaticFilesStorage):  # type: ignore[misc]
    """WhiteNoise's, with its manifest beside STATIC_ROOT and not in it: all that is in it is served to everybody."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        root = Path(settings.STATIC_ROOT)
        self.manifest_name = f"{root.name}.json"
        super().__init__(*args, manifest_storage=FileSystemStorage(root.parent), **kwargs)


class Middleware(WhiteNoiseMiddleware):  # type: ignore[misc]
    """WhiteNoise's, which takes any coding that Accept-Encoding names: here it sees only those that are not refused."""

    @staticmethod
    def serve(static_file: Any, request: HttpRequest) -> HttpResponseBase:
        accepted = accept.codings(request.META.get("HTTP_ACCEPT_ENCODING", ""))
        request.META["HTTP_ACCEPT_ENCODING"] = ", ".join(name for name in ("gzip", "br") if name in accepted)
        response: HttpResponseBase = WhiteNoiseMiddleware.serve(static_file, request)
        return response


def share() -> None:
    """Brings this release's files to STATIC_SHARED, each at once, by rename(2). The service runs without it, too."""
    if not settings.STATIC_SHARED:
        return
    source, target = Path(settings.STATIC_ROOT), Path(settings.STATIC_SHARED)
    try:
        for path in source.rglob("*"):
            name = path.relative_to(source)
            if not HASHED.fullmatch(str(name)):
                continue
            place = target / name
            if place.exists():
                os.utime(place)
                continue
            place.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.NamedTemporaryFile(dir=place.parent, prefix=".", delete=False) as new:
                new.write(path.read_bytes())
            os.chmod(new.name, 0o644)
            os.replace(new.name, place)
        for path in target.rglob("*"):
            if path.is_file() and time.time() - path.stat().st_mtime > KEPT:
                path.unlink(missing_ok=True)
    except OSError as error:
        logger.warning("Static files are not shared with other releases: %s", error)


@require_safe
def of_another_release(request: HttpRequest, name: str) -> HttpResponseBase:
    """What WhiteNoise, which stands before it, does not have."""
    if not settings.STATIC_SHARED or not HASHED.fullmatch(name):
        raise Http404
    response = serve(request, name, document_root=settings.STATIC_SHARED)
    response["Cache-Control"] = "max-age=315360000, public, immutable"
    return response
