"""The WSGI application that gunicorn serves; gunicorn.conf.py says how."""

import os
import sys

from django.core.exceptions import ImproperlyConfigured
from django.core.wsgi import get_wsgi_application

# The strictest by default: it does not start without its secrets.
os.environ.setdefault("DJANGO_SETTINGS_MODULE", "settings.production")

try:
    application = get_wsgi_application()
except ImproperlyConfigured as reason:
    sys.exit(str(reason))
