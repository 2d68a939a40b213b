"""Testing: real PostgreSQL and Redis, plain HTTP, test data. For the test suite and the testing environment."""

from settings import env, services
from settings.base import *  # noqa: F401,F403
from settings.base import redis_cache

ENVIRONMENT = "testing"
env.no_debug()
SECRET_KEY = env.secret_key()
SECRET_KEY_FALLBACKS = env.secret_key_fallbacks()
ALLOWED_HOSTS = env.hosts("testing.backstagetest1.com,localhost,127.0.0.1,testserver")

DATABASES = {"default": services.database()}
CACHES = redis_cache(env.required("REDIS_URL", "redis://HOST:6379/1"))

SIGN_UP = env.choice("SIGN_UP", "open", ("open", "invited", "closed"))

HTTPS_ONLY = False
SECURE_SSL_REDIRECT = False
SECURE_HSTS_SECONDS = 0
SESSION_COOKIE_SECURE = CSRF_COOKIE_SECURE = False
SESSION_COOKIE_NAME = "session"
CSRF_COOKIE_NAME = "csrf"

SAMPLE_UPTIME = env.flag("SAMPLE_UPTIME", False)  # no thread in the background of the tests
