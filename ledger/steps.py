"""The steps of a deployment, as the deployer reports them and the pages show them."""

MIGRATE = "migrate"
START = "start"
SMOKE_TEST = "smoke test"
SWITCH = "switch"
WATCH = "watch"
MARK_GOOD = "mark good"
ROLL_BACK = "roll back"

DEPLOY = (MIGRATE, START, SMOKE_TEST, SWITCH, WATCH, MARK_GOOD)  # in the order of a run that succeeds
ROLLBACK = (ROLL_BACK,)  # on Kubernetes, where rollback.sh does it
EVERY = (*DEPLOY, ROLL_BACK)
