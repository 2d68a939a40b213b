"""The steps of a deployment, as the deployer reports them and the pages show them."""

MIGRATE = "migrate"
PREPARE_DATABASE = "prepare database"  # with a database per colour, instead of migrating the one there is
START = "start"
SMOKE_TEST = "smoke test"
SWITCH_DATABASE = "switch database"
SWITCH = "switch"
WATCH = "watch"
MARK_GOOD = "mark good"
ROLL_BACK = "roll back"

DEPLOY = (MIGRATE, START, SMOKE_TEST, SWITCH, WATCH, MARK_GOOD)  # in the order of a run that succeeds
PER_COLOUR = (PREPARE_DATABASE, START, SMOKE_TEST, SWITCH_DATABASE, SWITCH, WATCH, MARK_GOOD)
ROLLBACK = (ROLL_BACK,)  # on Kubernetes, where rollback.sh does it
EVERY = (*DEPLOY, ROLL_BACK)
