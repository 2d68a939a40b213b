"""Staging: production in all but its names and its data."""

from settings import env
from settings.base import *  # noqa: F401,F403
from settings.base import redis_cache

ENVIRONMENT = "staging"
env.no_debug()
SECRET_KEY = env.secret_key()
ALLOWED_HOSTS = env.hosts("staging.backstagetest1.com")
DATABASES = {"default": env.database("staging_user", "staging-db.example.com", "backstagetest1_staging")}
CACHES = redis_cache("redis://staging-redis.example.com:6379/1")
