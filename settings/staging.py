"""Staging: production with other names and other data."""

from settings import env, services
from settings.base import *  # noqa: F401,F403
from settings.base import redis_cache

ENVIRONMENT = "staging"
env.no_debug()
SECRET_KEY = env.secret_key()
SECRET_KEY_FALLBACKS = env.secret_key_fallbacks()
ALLOWED_HOSTS = env.hosts("staging.backstagetest1.com")
DATABASES = {"default": services.database("staging_user", "staging-db.example.com", "backstagetest1_staging")}
CACHES = redis_cache("redis://staging-redis.example.com:6379/1")
