"""Development: SQLite, the in-process cache and mock data. Requires no variables and no services."""

from settings import env
from settings.base import *  # noqa: F401,F403
from settings.base import BASE_DIR, LOG_LEVEL, STORAGES, logging_config

ENVIRONMENT = "development"
SIMULATE_ENVIRONMENTS = True  # the mock data's other environments answer, and the pages call them simulated
DEBUG = env.flag("DEBUG", True)
SECRET_KEY = "development-only: every other environment requires a key of its own"
# HOST is the address that ./run serve listens on.
ALLOWED_HOSTS = ["localhost", "127.0.0.1", "[::1]", *env.words("ALLOWED_HOSTS"), *env.words("HOST")]

DATABASES = {
    "default": {
        "ENGINE": "django.db.backends.sqlite3",
        "NAME": BASE_DIR / "db.sqlite3",
        # Writers wait for each other instead of failing when a read becomes a write.
        "OPTIONS": {
            "transaction_mode": "IMMEDIATE",
            "timeout": 5,
            "init_command": "PRAGMA journal_mode=WAL; PRAGMA synchronous=NORMAL",
        },
    }
}
CACHES = {"default": {"BACKEND": "metrics.cache.LocMemCache"}}

# Plain HTTP on localhost
SECURE_SSL_REDIRECT = False
SECURE_HSTS_SECONDS = 0
SESSION_COOKIE_SECURE = CSRF_COOKIE_SECURE = False
SESSION_COOKIE_NAME = "session"
CSRF_COOKIE_NAME = "csrf"

STORAGES = STORAGES | {"staticfiles": {"BACKEND": "django.contrib.staticfiles.storage.StaticFilesStorage"}}
WHITENOISE_USE_FINDERS = True  # from the source folders, also with DEBUG=false: nothing is collected here
SIGN_UP = env.choice("SIGN_UP", "open", ("open", "invited", "closed"))
ACCOUNT_EMAIL_VERIFICATION = env.choice("EMAIL_VERIFICATION", "optional", ("mandatory", "optional", "none"))
EMAIL_BACKEND = "django.core.mail.backends.console.EmailBackend"
LOGGING = logging_config(LOG_LEVEL, "plain")
