"""Settings that all environments share. Secure by default: dev.py and testing.py relax what they must, one by one."""

import os
import re
from pathlib import Path
from tempfile import gettempdir
from typing import Any

from csp.constants import NONE, SELF
from django.urls import reverse_lazy
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.retry import Retry

from settings import env, services

BASE_DIR = Path(__file__).resolve().parent.parent

# The instance. The image's build arguments set version and commit.
ENVIRONMENT = "development"
VERSION = env.text("APP_VERSION", "dev")
COMMIT = env.text("APP_COMMIT", "unknown")
REVISION = env.text("APP_REVISION")

DEBUG = False
ROOT_URLCONF = "backstagetest1.urls"
WSGI_APPLICATION = "backstagetest1.wsgi.application"
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"

TEST_RUNNER = "tests.support.runner.PytestRunner"
INSTALLED_APPS = [
    "accounts",
    "audit",
    "board",
    "deploy",
    "health",
    "ledger",
    "metrics",
    "pages",
    "statuspage",
    "django.contrib.admin",
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.sessions",
    "django.contrib.messages",
    "whitenoise.runserver_nostatic",
    "django.contrib.staticfiles",
    "allauth",
    "allauth.account",
    "allauth.mfa",
    "allauth.usersessions",
    "csp",
    "django_htmx",
]

MIDDLEWARE = [
    "backstagetest1.proxy.ProxyMiddleware",  # sets request id, client address and scheme; never answers itself
    "health.middleware.ProbeMiddleware",  # before the Host check and the TLS redirect
    "metrics.middleware.MetricsMiddleware",
    "ledger.api.problems.ProblemMiddleware",  # sees the errors of all below, and turns those of /api/ into JSON
    "django.middleware.security.SecurityMiddleware",
    "csp.middleware.CSPMiddleware",
    "django_permissions_policy.PermissionsPolicyMiddleware",
    "backstagetest1.bodies.BodyMiddleware",  # after what rejects or redirects without reading the body
    "backstagetest1.assets.Middleware",
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.middleware.common.CommonMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
    "django.middleware.clickjacking.XFrameOptionsMiddleware",
    "allauth.account.middleware.AccountMiddleware",
    "accounts.mfa.middleware.RequireSecondFactor",
    "accounts.sessions.SeenMiddleware",
    "django_htmx.middleware.HtmxMiddleware",
    "backstagetest1.closed.ClosedBoard",
    "backstagetest1.zone.ZoneMiddleware",
]

TEMPLATES: list[dict[str, Any]] = [
    {
        "BACKEND": "django.template.backends.django.DjangoTemplates",
        "DIRS": [BASE_DIR / "templates"],
        "APP_DIRS": True,
        "OPTIONS": {
            "context_processors": [
                "django.template.context_processors.request",
                "django.contrib.auth.context_processors.auth",
                "django.contrib.messages.context_processors.messages",
                "backstagetest1.context_processors.instance",
            ],
        },
    },
]

LANGUAGE_CODE = "en"
TIME_ZONE = "UTC"
USE_TZ = True
USE_I18N = True

# Static files are hashed and compressed at build time; media are what users upload.
STATIC_URL = "/static/"
STATIC_ROOT = Path(env.text("STATIC_ROOT", str(BASE_DIR / "staticfiles")))
STATIC_SHARED = env.text("STATIC_SHARED")  # where instances of other releases find this one's files
STATICFILES_DIRS = [BASE_DIR / "static"]
MEDIA_URL = "/media/"
MEDIA_ROOT = Path(env.text("MEDIA_ROOT", str(BASE_DIR / "media")))
STORAGES = {
    "default": {"BACKEND": "django.core.files.storage.FileSystemStorage"},
    "staticfiles": {"BACKEND": "backstagetest1.assets.Storage"},
}
FILE_UPLOAD_HANDLERS = ["accounts.uploads.LimitedUploadHandler"]
FILE_UPLOAD_PERMISSIONS = 0o644
DATA_UPLOAD_MAX_MEMORY_SIZE = 2_500_000  # bytes of a form, not counting its files

# People
AUTH_USER_MODEL = "accounts.User"
AUTHENTICATION_BACKENDS = ["accounts.backends.Backend"]
AUTH_PASSWORD_VALIDATORS = [
    {"NAME": f"django.contrib.auth.password_validation.{name}"}
    for name in (
        "UserAttributeSimilarityValidator",
        "MinimumLengthValidator",
        "CommonPasswordValidator",
        "NumericPasswordValidator",
    )
]
ACCOUNT_LOGIN_METHODS = {"email"}
ACCOUNT_SIGNUP_FIELDS = ["email*", "password1*", "password2*"]
ACCOUNT_USER_MODEL_USERNAME_FIELD = None
ACCOUNT_EMAIL_VERIFICATION = env.choice("EMAIL_VERIFICATION", "mandatory", ("mandatory", "optional", "none"))
ACCOUNT_EMAIL_SUBJECT_PREFIX = ""
ACCOUNT_EMAIL_NOTIFICATIONS = True  # owners are notified of a changed password or address
ACCOUNT_ADAPTER = "accounts.adapter.AccountAdapter"
ACCOUNT_FORMS = {
    "signup": "accounts.forms.SignupForm",
    "add_email": "accounts.forms.AddEmailForm",
    "reset_password": "accounts.forms.ResetPasswordForm",
    "reset_password_from_key": "accounts.forms.ResetPasswordKeyForm",
}
ACCOUNT_PASSWORD_RESET_TOKEN_GENERATOR = "accounts.reset.ResetTokens"
ACCOUNT_REAUTHENTICATION_REQUIRED = True  # before an address is added, removed or made primary
ACCOUNT_MAX_EMAIL_ADDRESSES = 3
ACCOUNT_RATE_LIMITS = {  # besides allauth's others, which are on
    "profile": "20/m/user",
    # By address (key): anyone can have mail sent to any address, so an address gets a limited number a day.
    "reset_password": "20/m/ip,5/m/key,10/d/key",
    "confirm_email": "1/180s/key,10/d/key",
    "manage_email": "10/m/user,100/d/user",
    "sign_on": "60/m/ip",
}

# Second factors (accounts/mfa)
REQUIRE_MFA = env.subset("REQUIRE_MFA", env.ROLES)
MFA_ADAPTER = "accounts.mfa.adapter.MFAAdapter"
MFA_SUPPORTED_TYPES = ["totp", "webauthn", "recovery_codes"]
MFA_PASSKEY_LOGIN_ENABLED = not env.flag("SSO_ONLY", False)  # a passkey is both password and second factor
MFA_TOTP_ISSUER = "backstagetest1"
MFA_TOTP_TOLERANCE = 1  # also the code before and after, as clocks differ (RFC 6238, section 5.2)
MFA_RATE_LIMITS = {"webauthn_login": "60/m/ip"}  # a sign-in counts twice; an office has one address
MFA_FORMS = {
    "authenticate": "accounts.mfa.forms.AuthenticateForm",
    "reauthenticate": "accounts.mfa.forms.ReauthenticateForm",
    "activate_totp": "accounts.mfa.forms.ActivateTOTPForm",
    "add_webauthn": "accounts.mfa.forms.AddPasskeyForm",
    "authenticate_webauthn": "accounts.mfa.forms.AuthenticatePasskeyForm",
    "login_webauthn": "accounts.mfa.forms.LoginPasskeyForm",
    "reauthenticate_webauthn": "accounts.mfa.forms.ReauthenticatePasskeyForm",
}
# Who may sign up: anybody, whoever has an invitation, or nobody; and with addresses of which domains, all without any.
SIGN_UP = env.choice("SIGN_UP", "invited", ("open", "invited", "closed"))
SIGN_UP_DOMAINS = [each.lower().lstrip("@") for each in env.words("SIGN_UP_DOMAINS")]
INVITATION_DAYS = min(365, int(env.number("INVITATION_DAYS", 7, minimum=1)))  # until an invitation expires

# Sign-on by OpenID Connect (accounts/sso). Without an issuer, none of its code is imported.
OIDC_ISSUER = env.issuer("OIDC_ISSUER")
OIDC_CLIENT_ID = env.text("OIDC_CLIENT_ID")
OIDC_CLIENT_SECRET = env.text("OIDC_CLIENT_SECRET")
OIDC_NAME = env.text("OIDC_NAME", "single sign-on")
OIDC_ROLES = env.claim_roles("OIDC_ROLES")
SSO_ONLY = env.flag("SSO_ONLY", False)
if OIDC_ISSUER and not OIDC_CLIENT_ID:
    raise env.ConfigError("OIDC_ISSUER is set, and requires OIDC_CLIENT_ID. See .env.example.")
if SSO_ONLY and not OIDC_ISSUER:
    raise env.ConfigError("SSO_ONLY is true, and requires OIDC_ISSUER: nobody could sign in. See .env.example.")
if SSO_ONLY:
    SIGN_UP = "closed"
if OIDC_ISSUER:
    INSTALLED_APPS += ["allauth.socialaccount", "allauth.socialaccount.providers.openid_connect"]
    SOCIALACCOUNT_ADAPTER = "accounts.sso.adapter.SignOnAdapter"
    SOCIALACCOUNT_EMAIL_VERIFICATION = "none"  # the provider has verified the address
    SOCIALACCOUNT_LOGIN_ON_GET = True  # a form would be stopped by the CSP, as it leads to another site
    SOCIALACCOUNT_REQUESTS_TIMEOUT = 4  # seconds
    SOCIALACCOUNT_PROVIDERS = {
        "openid_connect": {
            "provider_class": "accounts.sso.provider.Provider",
            "APPS": [
                {
                    "provider_id": "oidc",
                    "name": OIDC_NAME,
                    "client_id": OIDC_CLIENT_ID,
                    "secret": OIDC_CLIENT_SECRET,
                    "settings": {"server_url": OIDC_ISSUER, "oauth_pkce_enabled": True},
                }
            ],
        }
    }
LOGIN_URL = reverse_lazy("account_login")
LOGIN_REDIRECT_URL = "/"
ADMIN_URL = env.path("ADMIN_URL", "admin/")
SITE_URL = env.site("SITE_URL")  # what links in mail start with; by default the request's host

# Mail
DEFAULT_FROM_EMAIL = SERVER_EMAIL = env.sender("DEFAULT_FROM_EMAIL", "noreply@backstagetest1.com")
EMAIL_HOST = env.host("EMAIL_HOST", "localhost")
EMAIL_PORT = env.port("EMAIL_PORT", 587)
EMAIL_HOST_USER = env.text("EMAIL_HOST_USER")
EMAIL_HOST_PASSWORD = env.text("EMAIL_HOST_PASSWORD")
EMAIL_USE_TLS = env.flag("EMAIL_USE_TLS", True)
EMAIL_TIMEOUT = 10

# Sessions outlive the cache: a Redis outage costs one query per request, and signs nobody out.
SESSION_ENGINE = "django.contrib.sessions.backends.cached_db"

# Transport and browser. HTTPS_ONLY=false is for a stack on localhost without a certificate.
HTTPS_ONLY = env.flag("HTTPS_ONLY", True)
TRUSTED_PROXIES = env.networks("TRUSTED_PROXIES", "127.0.0.1,::1,unix")
SECURE_SSL_REDIRECT = HTTPS_ONLY
SECURE_HSTS_SECONDS = 31_536_000 if HTTPS_ONLY else 0
SECURE_HSTS_INCLUDE_SUBDOMAINS = HTTPS_ONLY
SECURE_HSTS_PRELOAD = HTTPS_ONLY
SESSION_COOKIE_SECURE = CSRF_COOKIE_SECURE = HTTPS_ONLY
SESSION_COOKIE_NAME = "__Host-session" if HTTPS_ONLY else "session"
CSRF_COOKIE_NAME = "__Host-csrf" if HTTPS_ONLY else "csrf"
CSRF_COOKIE_HTTPONLY = True
SECURE_REFERRER_POLICY = "same-origin"
SECURE_CROSS_ORIGIN_OPENER_POLICY = "same-origin"
X_FRAME_OPTIONS = "DENY"
CSRF_TRUSTED_ORIGINS = env.origins("CSRF_TRUSTED_ORIGINS")
CONTENT_SECURITY_POLICY = {
    "DIRECTIVES": {
        "default-src": [NONE],
        "script-src": [SELF],
        "style-src": [SELF],
        "img-src": [SELF, "data:"],  # data: for icons of the admin and the style sheet
        "font-src": [SELF],
        "connect-src": [SELF],
        "form-action": [SELF],
        "base-uri": [NONE],
        "frame-ancestors": [NONE],
        "manifest-src": [SELF],
    }
}
PERMISSIONS_POLICY: dict[str, list[str]] = {
    name: [] for name in ("camera", "geolocation", "microphone", "payment", "usb", "display-capture")
}

# With a database per colour, the URL of each, by colour (deploy/databases); otherwise empty.
DATABASE_URLS = services.colours()
PG_DUMP = env.text("PG_DUMP")  # the pg_dump with which the schema is copied; by default one that is installed

# health/: the checks; all times are in seconds. A check that was healthy may go without an answer for HEALTH_DOWN_AFTER
# before it counts as down: one late answer on a busy machine is not an outage.
HEALTH_CHECKS = {
    "database": "health.checks.Database",
    "cache": "health.checks.Cache",
    "migrations": "health.checks.Migrations",
    # Optional: "storage": "health.checks.Storage", "disk": "health.checks.Disk"
}
HEALTH_READY = ["database", "migrations"]  # not the cache: the app works without it
HEALTH_CHECK_TIMEOUT = env.number("HEALTH_CHECK_TIMEOUT", 0.8, minimum=0.01)
HEALTH_CACHE_SECONDS = env.number("HEALTH_CACHE_SECONDS", 1)
HEALTH_DOWN_AFTER = env.number("HEALTH_DOWN_AFTER", 3)
HEALTH_MIN_FREE_MB = env.number("HEALTH_MIN_FREE_MB", 200)  # megabytes, for the check disk
# A container has its own temporary folder; elsewhere, user and address distinguish the instances on a machine.
HEALTH_DRAIN_FILE = env.text(
    "HEALTH_DRAIN_FILE",
    f"{gettempdir()}/backstagetest1-{os.getuid()}-{re.sub('[^0-9A-Za-z]+', '-', env.text('BIND') or 'default')}.drain",
)
HEALTH_READY_FILE = f"{HEALTH_DRAIN_FILE}.ready"  # created when the instance is first ready

# metrics/: who may read /metrics, the upper bounds of the buckets of http_request_duration_seconds (seconds), and the
# collectors that run at each scrape with their deadline (seconds).
METRICS_TOKEN = env.text("METRICS_TOKEN")
METRICS_BUCKETS = env.ascending("METRICS_BUCKETS", "0.005,0.01,0.025,0.05,0.1,0.25,0.3,0.5,1,2.5,5,10")
METRICS_COLLECTOR_TIMEOUT = env.number("METRICS_COLLECTOR_TIMEOUT", 0.5, minimum=0.01)
METRICS_COLLECTORS = [
    "metrics.collectors.app_info",
    "metrics.collectors.active_users",
    "metrics.collectors.cache_hit_ratio",
    "metrics.process.process",
    "metrics.resources.container_memory",
    "metrics.resources.media_disk",
    "health.collector.health_checks",
    # In one thread of each worker, and so with one connection to the database
    (
        "metrics.collectors.database",
        "ledger.metrics.in_progress",
        "ledger.metrics.locks",
        "statuspage.uptime.uptime_samples",
    ),
]

if DATABASE_URLS:
    METRICS_COLLECTORS.append("deploy.metrics.databases")

# The Prometheus that the board and the deployer ask (metrics/prometheus.py). environments.toml may name others.
PROMETHEUS_TOKEN = env.text("PROMETHEUS_TOKEN")
PROMETHEUS_URL = env.prometheus("PROMETHEUS_URL", PROMETHEUS_TOKEN)

# backstagetest1/telemetry: traces go to an OpenTelemetry collector, errors to Sentry. Each is off if it is not set.
OTLP_HEADERS = env.headers("OTEL_EXPORTER_OTLP_HEADERS")
OTLP_ENDPOINT = env.collector("OTEL_EXPORTER_OTLP_ENDPOINT", secret=bool(OTLP_HEADERS))
OTEL_SERVICE_NAME = env.text("OTEL_SERVICE_NAME", "backstagetest1")
OTEL_TRACES_SAMPLER_ARG = env.share("OTEL_TRACES_SAMPLER_ARG", 1)
SENTRY_DSN = env.dsn("SENTRY_DSN")
for _path, _on in (
    ("backstagetest1.telemetry.errors.Middleware", SENTRY_DSN),
    ("backstagetest1.telemetry.traces.Middleware", OTLP_ENDPOINT),
):
    if _on:  # before the metrics, which record the trace, and after the probes
        MIDDLEWARE.insert(MIDDLEWARE.index("metrics.middleware.MetricsMiddleware"), _path)

# Seconds that a 503 names in Retry-After while the database is unavailable.
RETRY_AFTER = 30

# Who sees the board and the other pages of the ledger: everybody, without people's names; or members alone.
BOARD = env.choice("BOARD", "public", ("public", "members"))

# The file that lists the environments, and whether this instance checks the health of the others.
ENVIRONMENTS_FILE = Path(env.text("ENVIRONMENTS_FILE", str(BASE_DIR / "environments.toml")))
WATCH_ENVIRONMENTS = env.flag("WATCH_ENVIRONMENTS", False)
SIMULATE_ENVIRONMENTS = False  # in settings.dev alone; see statuspage/simulation.py
SAMPLE_UPTIME = env.flag("SAMPLE_UPTIME", True)
COMPARE_URL = env.comparison("COMPARE_URL")
MIGRATION_BLOCK_LIMIT = env.number("MIGRATION_BLOCK_LIMIT", 5, minimum=0.1)  # seconds; deploy/blocking.py

# The ledger that manage.py deploy and rollback record in: another instance's API, or the database of these settings.
LEDGER_URL = env.private_site("LEDGER_URL")
LEDGER_TOKEN = env.text("LEDGER_TOKEN")

# Rate limits of the API: requests per minute, by token and by client address. The cache counts them.
API_RATE_PER_TOKEN = int(env.number("API_RATE_PER_TOKEN", 120, minimum=1))
API_RATE_PER_ADDRESS = int(env.number("API_RATE_PER_ADDRESS", 300, minimum=1))

# How long the approval of a deployment is valid, in hours. The database gets it at the next migration.
APPROVAL_HOURS = env.number("APPROVAL_HOURS", 24, minimum=0.01)

# How many days the audit log keeps its entries; 0 keeps them for ever.
AUDIT_RETENTION_DAYS = env.days("AUDIT_RETENTION_DAYS", 365)

# What `manage.py demo_data` loads besides people: functions that take the profile's name and return a line to print, or
# None. They are given by path because accounts imports no other app.
DEMO_DATA = ["ledger.demo.load", "statuspage.demo.load"]

# The function that returns the names of the environments in which a role can be held; by path for the same reason.
ROLE_ENVIRONMENTS = "ledger.queries.environment_names"


def redis_cache(default_url: str) -> dict[str, Any]:
    """Returns CACHES for Redis. It fails open: while Redis is down, reads are misses and writes are lost."""
    return {
        "default": {
            "BACKEND": "backstagetest1.cache.RedisCache",
            "LOCATION": services.redis_url(default_url),
            "OPTIONS": {
                # Seconds. Set explicitly, because redis-py's defaults have changed from none to five seconds.
                "SOCKET_CONNECT_TIMEOUT": 0.5,
                "SOCKET_TIMEOUT": 0.5,
                # A connection that a restarted server has closed is reopened; a timeout is not retried.
                "CONNECTION_POOL_KWARGS": {"retry": Retry(NoBackoff(), 1, (RedisConnectionError,))},
                "BREAKER_SECONDS": 2,  # how long a server that did not answer is skipped
            },
        }
    }


def logging_config(level: str, formatter: str) -> dict[str, Any]:
    """Returns LOGGING with one handler on standard error: JSON lines (`json`) or lines for people (`plain`)."""
    return {
        "version": 1,
        "disable_existing_loggers": False,
        "filters": {"request_id": {"()": "backstagetest1.logs.RequestIdFilter"}},
        "formatters": {
            "json": {"()": "backstagetest1.logs.JsonFormatter"},
            "plain": {"format": "{levelname:<8}{name}: {message}", "style": "{"},
        },
        "handlers": {
            "default": {
                "class": "logging.StreamHandler",
                "formatter": formatter,
                "filters": ["request_id"],
            }
        },
        "root": {"handlers": ["default"], "level": level},
        # Django's own handlers would print everything twice, and mail stack traces to nobody.
        "loggers": {name: {"handlers": [], "propagate": True} for name in ("django", "django.server")},
    }


LOG_LEVEL = env.choice("LOG_LEVEL", "INFO", ("DEBUG", "INFO", "WARNING", "ERROR"))
LOGGING = logging_config(LOG_LEVEL, "json")
