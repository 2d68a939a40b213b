"""The steps of a deployment, by the names that the deployer reports and the pages show."""

MIGRATE = "migrate"
START = "start"
SMOKE_TEST = "smoke test"
SWITCH = "switch"
WATCH = "watch"
MARK_GOOD = "mark good"
ROLL_BACK = "roll back"

DEPLOY = (MIGRATE, START, SMOKE_TEST, SWITCH, WATCH, MARK_GOOD)  # of a release that proves good, in this order
ROLLBACK = (ROLL_BACK,)  # on Kubernetes, where rollback.sh carries it out
EVERY = (*DEPLOY, ROLL_BACK)
