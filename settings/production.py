"""Production. It would rather not start than start unsafe."""

from settings import env, services
from settings.base import *  # noqa: F401,F403
from settings.base import redis_cache

# Every environment of a name of your own runs these settings, and so does a stack on a laptop (docker-compose.yml).
ENVIRONMENT = env.label("ENVIRONMENT", "production")
if ENVIRONMENT in ("development", "testing"):
    SIGN_UP = env.choice("SIGN_UP", "open", ("open", "invited", "closed"))
env.no_debug()
SECRET_KEY = env.secret_key()
SECRET_KEY_FALLBACKS = env.secret_key_fallbacks()
ALLOWED_HOSTS = env.hosts("backstagetest1.com,www.backstagetest1.com")
DATABASES = {"default": services.database("prod_user", "prod-db.example.com", "backstagetest1_production")}
CACHES = redis_cache("redis://prod-redis.example.com:6379/1")
