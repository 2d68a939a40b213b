# The image of backstagetest1, in three stages: the libraries, the prepared app, and the final image.
#   docker build --build-arg APP_VERSION=0.1.0 --build-arg APP_COMMIT=$(git rev-parse HEAD) -t backstagetest1 .
# A code change rebuilds only the second stage and two copies; the libraries come from the build cache.

FROM python:3.11-slim AS libraries
WORKDIR /build
COPY requirements.txt ./
# Wheels only, each verified against its hash: no compiler is needed, and no code runs that is not locked. The
# libraries' tests, type stubs and translations are removed, as the site does not use them. Bytecode is not checked
# against its source, as neither changes in an image. Without the column tables behind the ^^^^ in tracebacks it is
# smaller and loads faster.
ENV PYTHONNODEBUGRANGES=1
RUN --mount=type=cache,target=/root/.cache/pip \
    python -m venv --without-pip /opt/venv \
 && pip --python /opt/venv/bin/python install --quiet --disable-pip-version-check --root-user-action ignore \
      --require-hashes --only-binary :all: --no-compile -r requirements.txt \
 && find /opt/venv \( -name '*.pyi' -o -name '*.po' -o -name '*.mo' ! -path '*/locale/en/*' \) -delete \
 && find /opt/venv -type d -name tests -prune -exec rm -rf {} + \
 && /opt/venv/bin/python -m compileall -q -j 0 --invalidation-mode unchecked-hash /opt/venv/lib

FROM libraries AS app
ENV PATH=/opt/venv/bin:$PATH PYTHONDONTWRITEBYTECODE=1 PYTHONTZPATH=/usr/share/zoneinfo
WORKDIR /app
COPY . .
# The settings require secrets, so this command generates throw-away ones.
# The parts of htmx that no page uses are left out, as the app examines every static file when it starts.
# The error pages that nginx serves are rendered from the app's templates. The app's bytecode is checked against its
# source, so that another gunicorn.conf.py can be mounted over this one.
RUN export DJANGO_SETTINGS_MODULE=settings.production DATABASE_URL=sqlite://:memory: \
 && SECRET_KEY=$(python -c 'import secrets; print(secrets.token_urlsafe(50))') \
 && export SECRET_KEY \
 && python manage.py collectstatic --noinput --verbosity 0 -i ext -i 'htmx-4*' -i 'htmax-4*' \
 && mkdir errors \
 && python -c 'import django, pathlib, django.template.loader as loader; \
django.setup(); \
[pathlib.Path("errors", name).write_text(loader.render_to_string(name)) \
 for name in ("404.html", "413.html", "429.html", "503.html")]' \
 && rm requirements.txt \
 && python -m compileall -q -j 0 --invalidation-mode checked-hash .

FROM python:3.11-slim
# A numeric user, so that Kubernetes can verify that it is not root. Volumes are mounted on these folders, and a new
# volume takes its owner from them.
RUN groupadd --gid 10001 app \
 && useradd --uid 10001 --gid app --no-log-init --no-create-home --home-dir /tmp --shell /usr/sbin/nologin app \
 && install -d -o app -g app -m 0755 /app/media /srv/static /run/web \
 && install -d -o app -g app -m 0750 /run/secrets /srv/secrets/app /srv/secrets/migrate /srv/secrets/db \
    /srv/secrets/db_green /srv/secrets/redis /srv/secrets/prometheus /srv/secrets/alertmanager
COPY --from=libraries /opt/venv /opt/venv
COPY --from=app /app /app
WORKDIR /app
# The app writes only to /tmp and its volumes, so the root file system can be read-only.
ENV PATH=/opt/venv/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    PYTHONTZPATH=/usr/share/zoneinfo \
    DJANGO_SETTINGS_MODULE=settings.production \
    BIND=0.0.0.0:8000 \
    METRICS_DIR=/tmp/metrics
USER 10001:10001
EXPOSE 8000
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=5s --start-period=30s --retries=3 \
    CMD ["python", "-m", "health", "--url", "http://127.0.0.1:8000/health/ready/"]
# Without a shell, so that gunicorn is process 1 and receives the stop signal.
CMD ["gunicorn", "--config", "gunicorn.conf.py", "backstagetest1.wsgi"]

# Last, as they change with every build.
ARG APP_VERSION=dev
ARG APP_COMMIT=unknown
ARG APP_CREATED=
ENV APP_VERSION=$APP_VERSION APP_COMMIT=$APP_COMMIT
LABEL org.opencontainers.image.title="backstagetest1" \
      org.opencontainers.image.description="A Django web app with its operations built in." \
      org.opencontainers.image.licenses=MIT \
      org.opencontainers.image.version=$APP_VERSION \
      org.opencontainers.image.revision=$APP_COMMIT \
      org.opencontainers.image.created=$APP_CREATED
