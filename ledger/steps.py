"""The steps of a deployment, by the names under which the deployer reports them and the pages show them."""

MIGRATE = "migrations"
START = "bring up"
SMOKE_TEST = "smoke test"
SWITCH = "switch"
WATCH = "watch"
KEEP = "keep"
GO_BACK = "go back"

DEPLOY = (MIGRATE, START, SMOKE_TEST, SWITCH, WATCH, KEEP)  # of a release that proves good, in this order
ROLLBACK = (GO_BACK,)  # of one on Kubernetes, which rollback.sh carries out
EVERY = (*DEPLOY, GO_BACK)
