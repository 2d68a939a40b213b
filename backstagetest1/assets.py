"""Static files: this release's own, and the hashed ones of other releases.

Pages that are still open in browsers need the files of the release they came from. While two releases serve at once, a
page of one may also request its style sheet from the other. Behind nginx, nginx serves them all (scripts/prepare.py).
Elsewhere, STATIC_SHARED names a folder that all instances can access: each copies its own files there when it starts,
and serves from there what it does not have itself.
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
KEPT = 30 * 86_400  # seconds after the last start of a release that has the file


class Storage(CompressedManifestStaticFilesStorage):  # type: ignore[misc]
    """WhiteNoise's storage, with its manifest beside STATIC_ROOT instead of in it, where everything is public."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        root = Path(settings.STATIC_ROOT)
        self.manifest_name = f"{root.name}.json"
        super().__init__(*args, manifest_storage=FileSystemStorage(root.parent), **kwargs)


class Middleware(WhiteNoiseMiddleware):  # type: ignore[misc]
    """WhiteNoise's middleware, made to respect codings that Accept-Encoding excludes (q=0)."""

    @staticmethod
    def serve(static_file: Any, request: HttpRequest) -> HttpResponseBase:
        """Serves the file with an encoding that the client accepts: WhiteNoise only looks for its name."""
        accepted = accept.codings(request.META.get("HTTP_ACCEPT_ENCODING", ""))
        request.META["HTTP_ACCEPT_ENCODING"] = ", ".join(name for name in ("gzip", "br") if name in accepted)
        response: HttpResponseBase = WhiteNoiseMiddleware.serve(static_file, request)
        return response


def share() -> None:
    """Copies this release's files to STATIC_SHARED, each atomically, by rename(2), and removes files that are too old.

    A failure is logged only: the service works without it.
    """
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
        logger.warning("Static files could not be shared with other releases: %s", error)


@require_safe
def of_another_release(request: HttpRequest, name: str) -> HttpResponseBase:
    """Serves a hashed file from STATIC_SHARED that WhiteNoise, which comes first, does not have. Raises Http404."""
    if not settings.STATIC_SHARED or not HASHED.fullmatch(name):
        raise Http404
    response = serve(request, name, document_root=settings.STATIC_SHARED)
    response["Cache-Control"] = "max-age=315360000, public, immutable"
    return response
