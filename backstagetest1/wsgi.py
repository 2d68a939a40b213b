"""The WSGI application that gunicorn serves; gunicorn.conf.py says how."""

import os

from django.core.wsgi import get_wsgi_application

# The strictest unless told: it refuses to start without its secrets.
os.environ.setdefault("DJANGO_SETTINGS_MODULE", "settings.production")

application = get_wsgi_application()
