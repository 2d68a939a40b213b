"""As the app's own gunicorn.conf.py, without its access log, which would cost all variants the same."""

import os

bind = os.environ["BIND"]
worker_class = "gthread"
workers = int(os.environ["WEB_CONCURRENCY"])
threads = 4
preload_app = True
keepalive = 75
control_socket_disable = True

if os.environ["BENCH_VARIANT"] == "ours":

    def on_starting(server: object) -> None:
        from metrics import store

        store.start(os.environ["METRICS_DIR"])

    def post_fork(server: object, worker: object) -> None:
        from metrics import store

        store.lease()
