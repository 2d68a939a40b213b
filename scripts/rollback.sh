#!/usr/bin/env bash
# Rolls a cluster back to an earlier version with nothing but bash (3.2 or newer) and kubectl (1.20 or newer), for when
# nothing else works. See docs/operations.md, and `rollback.sh --help` for its options.
#
# The dollars in single quotes are variables of Go templates: https://pkg.go.dev/text/template
# shellcheck disable=SC2016
set -euo pipefail
export LC_ALL=C # [a-z] matches these letters only, and tr works on bytes

readonly OK=0 USAGE=2 LOCKED=3 REFUSED=4 ROLLED_BACK=5 NEEDS_HELP=6 INTERRUPTED=130 # exit codes
readonly APP=backstagetest1
readonly POLL_SECONDS=1
readonly LOOK='To see what is running: rollback.sh --list'
readonly REASON_LENGTH=500 # characters, the ledger's limit
# The same rule as in ledger/versions.py; a test compares the two.
readonly VERSION='[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}'
readonly TIME='^[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}Z$'

# What manage.py deploy reads and writes as well. A test compares both languages' values.
readonly LEASE=backstagetest1-deploy LEASE_SECONDS=60
readonly GOOD=backstagetest1/verified-good BAD=backstagetest1/withdrawn BEFORE=backstagetest1/before
readonly SCHEMA_BREAK=backstagetest1/schema-break LIVE_SINCE=backstagetest1/live-since
readonly PACE=backstagetest1/pace # minReadySeconds, maxSurge and maxUnavailable as they are to be again
readonly CLOSE=backstagetest1/close-connections # of pods; the others are of Deployments
readonly BY_HAND=backstagetest1/by-hand PURPOSE=backstagetest1/purpose
readonly CAUSE=kubernetes.io/change-cause REVISION=deployment.kubernetes.io/revision HASH=pod-template-hash
readonly COMMANDS=backstagetest1-bluegreen # the Job of manage.py bluegreen; its CronJobs' names begin with it
readonly OWN_DATABASE=DATABASE_COLOUR # the variable that names the database that was prepared for a release
readonly DRAIN_SECONDS=8 # until the pods that have lost the traffic have answered what they were asked
readonly LOST_LOG='unable to retrieve container logs' # printed like a log once the kubelet has removed the container

# The reasons for which a waiting container will not start by itself. A test compares them with the Python target's.
# https://kubernetes.io/docs/concepts/workloads/pods/pod-lifecycle/#container-states
readonly FATAL_WAITING_REASONS='
  CrashLoopBackOff
  CreateContainerConfigError
  CreateContainerError
  ErrImageNeverPull
  ErrImagePull
  ImageInspectError
  ImagePullBackOff
  InvalidImageName
  RunContainerError
'

# The checks before anything is changed, each a function check_NAME: those that tell where to look, and the others. A
# test compares their names, and the rights (verb and resource), with deploy/targets/kubernetes/preflight.py.
readonly FIRST_CHECKS='deployment container service'
readonly CHECKS='several paused replicas rollout autoscaler quota rights references'
readonly RIGHTS='patch deployments.apps' BLUE_GREEN_RIGHTS='patch services'
readonly MARKING_RIGHTS='patch replicasets.apps
patch cronjobs.batch' # without which it only warns

# What kubectl says if the API server, or etcd or a kubelet behind it, did not answer; and what shows that it did, or
# never will. A test compares them with the Python target's.
readonly NO_CONNECTION='connection to the server .* was refused|Unable to connect to the |connection re(fused|set)'
readonly NO_ANSWER='\((ServiceUnavailable|(Server)?Timeout|TooManyRequests)\)|etcdserver: |currently unable to handle'
readonly CUT_OFF='unexpected EOF|client connection lost|close 1006|error dialing backend|deadline exceeded|i/o timeout'
readonly FINAL='x509|getting credentials|command terminated with exit code'
readonly PATIENCE_SECONDS=60 # for which what is asked of it is repeated

# What is read from the cluster: one record a line, its fields separated by US. Free text is printed as a quoted Go
# string, which contains no control character, so no text can shift the fields or end the record.
readonly US=$'\037'

# Every template starts with these variables. Functions put others in front: $image, $deployment and $current.
readonly VARIABLES='{{$us := "\x1f"}}{{$app := "'$APP'"}}
{{- $good := "'$GOOD'"}}{{$bad := "'$BAD'"}}{{$schema_break := "'$SCHEMA_BREAK'"}}{{$live_since := "'$LIVE_SINCE'"}}
{{- $by_hand := "'$BY_HAND'"}}{{$purpose := "'$PURPOSE'"}}{{$pace := "'$PACE'"}}
{{- $cause := "'$CAUSE'"}}{{$revision := "'$REVISION'"}}{{$hash := "'$HASH'"}}{{$own := "'$OWN_DATABASE'"}}'

readonly SERVICE='
{{- with .spec.selector.colour}}{{.}}{{end}}{{$us}}
{{- with .spec.ports}}{{(index . 0).port}}{{end}}{{$us}}
{{- if .spec.selector}}selector{{end}}'
readonly NAMES='{{range .items}}{{.metadata.name}} {{end}}'
readonly HOSTS='{{range .spec.rules}}{{with .host}}{{.}} {{end}}{{end}}'
readonly REPLICAS='{{.spec.replicas}}'
readonly CONTAINER_IMAGE='{{range .spec.template.spec.containers}}{{if eq .name $app}}{{.image}}{{end}}{{end}}'
readonly DEPLOYMENT='{{.metadata.name}}{{$us}}'$CONTAINER_IMAGE

# `index` fails on annotations that are missing, hence the `or`: no key of metadata looks like an annotation's.
readonly CURRENT_REVISION='{{with index (or .metadata.annotations .metadata) $revision}}{{.}}{{end}}'
readonly REVISIONS='
{{- range .items}}{{$set := .}}{{$notes := or .metadata.annotations .metadata}}
{{- range .metadata.ownerReferences}}{{if and (eq .kind "Deployment") (eq .name $deployment)}}
  {{- with index $notes $live_since}}{{printf "%q" .}}{{end}}{{$us}}
  {{- $set.metadata.creationTimestamp}}{{$us}}
  {{- .name}}{{$us}}
  {{- with index $notes $revision}}{{printf "%q" .}}{{end}}{{$us}}
  {{- $set.metadata.name}}{{$us}}
  {{- index $set.metadata.labels $hash}}{{$us}}
  {{- range $set.spec.template.spec.containers}}{{if eq .name $app}}{{printf "%q" .image}}{{end}}{{end}}{{$us}}
  {{- range $set.spec.template.spec.containers}}{{if eq .name $app}}
    {{- range .envFrom}}{{with .configMapRef}}{{.name}} {{end}}{{end}}
  {{- end}}{{end}}{{$us}}
  {{- with index $notes $good}}{{printf "%q" .}}{{end}}{{$us}}
  {{- with index $notes $bad}}{{printf "%q" .}}{{end}}{{$us}}
  {{- with index $notes $schema_break}}{{printf "%q" .}}{{end}}{{$us}}
  {{- if eq (print (index $notes $revision)) $current}}current{{end}}{{$us}}
  {{- with index $notes $cause}}{{printf "%q" .}}{{end}}{{"\n"}}
{{- end}}{{end}}
{{- end}}'

# What the pods of a template cannot start without, as facts of the kind "name".
readonly REFERENCES='{{define "names"}}
  {{- with .configMap}}{{if not .optional}}name configmap/{{.name}}{{"\n"}}{{end}}{{end}}
  {{- with .secret}}{{if not .optional}}name secret/{{or .secretName .name}}{{"\n"}}{{end}}{{end}}
  {{- with .configMapRef}}{{if not .optional}}name configmap/{{.name}}{{"\n"}}{{end}}{{end}}
  {{- with .secretRef}}{{if not .optional}}name secret/{{.name}}{{"\n"}}{{end}}{{end}}
  {{- with .configMapKeyRef}}{{if not .optional}}name configmap/{{.name}}{{"\n"}}{{end}}{{end}}
  {{- with .secretKeyRef}}{{if not .optional}}name secret/{{.name}}{{"\n"}}{{end}}{{end}}
{{- end}}{{define "container"}}
  {{- range .envFrom}}{{template "names" .}}{{end}}
  {{- range .env}}{{with .valueFrom}}{{template "names" .}}{{end}}{{end}}
{{- end}}{{define "pod"}}
  {{- with .serviceAccountName}}name serviceaccount/{{.}}{{"\n"}}{{end}}
  {{- range .volumes}}{{template "names" .}}
    {{- with .projected}}{{range .sources}}{{template "names" .}}{{end}}{{end}}
    {{- with .persistentVolumeClaim}}name persistentvolumeclaim/{{.claimName}}{{"\n"}}{{end}}
  {{- end}}
  {{- range .initContainers}}{{template "container" .}}{{end}}
  {{- range .containers}}{{template "container" .}}{{end}}
{{- end}}'
readonly NEEDED=$REFERENCES'{{with .spec.template.spec}}{{template "pod" .}}{{end}}'

# All that the checks look at, by its first field. $moving is the Deployment that gets the version.
readonly FACTS=$REFERENCES'
{{- range .items}}{{$name := .metadata.name}}
  {{- if and (eq .kind "Service") (eq $name $app)}}
    {{- range $key, $value := .spec.selector}}selector {{$key}}={{$value}}{{"\n"}}{{end}}
  {{- else if eq .kind "HorizontalPodAutoscaler"}}
    {{- if eq .spec.scaleTargetRef.name $moving}}autoscaler {{$name}} {{.spec.maxReplicas}}{{"\n"}}{{end}}
  {{- else if eq .kind "ResourceQuota"}}
    {{- if not (or .spec.scopes .spec.scopeSelector)}}{{with .status}}{{$used := .used}}
      {{- range $what, $hard := .hard}}quota {{$name}} {{$what}} {{$hard}} {{index $used $what}}{{"\n"}}{{end}}
    {{- end}}{{end}}
  {{- else if eq .kind "Deployment"}}
    {{- "deployment "}}{{$name}} {{.spec.replicas}} ,
    {{- range $key, $value := .spec.template.metadata.labels}}{{$key}}={{$value}},{{end}}{{"\n"}}
    {{- if eq $name $moving}}
      {{- with .spec.paused}}paused{{"\n"}}{{end}}
      {{- with .spec.template.spec}}
        {{- template "pod" .}}
        {{- range .containers}}
          {{- with .resources}}
            {{- range $what, $much := .requests}}need requests.{{$what}} {{$much}}{{"\n"}}{{end}}
            {{- range $what, $much := .limits}}need limits.{{$what}} {{$much}}{{"\n"}}{{end}}
          {{- end}}
        {{- end}}
      {{- end}}
    {{- end}}
  {{- end}}
{{- end}}'
readonly RULES='{{with .status}}{{if .incomplete}}incomplete{{else}}
  {{- range .resourceRules}}
    {{- range .verbs}}{{.}} {{end}}{{$us}}
    {{- range .apiGroups}}{{or . "core"}} {{end}}{{$us}}
    {{- range .resources}}{{.}} {{end}}{{"\n"}}
  {{- end}}
{{- end}}{{end}}'
readonly ROLLOUT='
{{- .metadata.generation}}{{$us}}
{{- with .status.observedGeneration}}{{.}}{{else}}0{{end}}{{$us}}
{{- .spec.replicas}}{{$us}}
{{- with .status.replicas}}{{.}}{{else}}0{{end}}{{$us}}
{{- with .status.updatedReplicas}}{{.}}{{else}}0{{end}}{{$us}}
{{- with .status.availableReplicas}}{{.}}{{else}}0{{end}}'
readonly OWN='{{range .spec.template.spec.containers}}{{if eq .name $app}}{{range .env}}{{if eq .name $own}}
  {{- with .value}}{{.}}{{end}}
{{- end}}{{end}}{{end}}{{end}}'
# Of the pods of a Job: the exit code, why the container waits, and whether it has begun.
readonly COMMAND='{{range .items}}{{with .status}}
  {{- range .containerStatuses}}{{if eq .name $app}}
    {{- with .state.terminated}}{{printf "%v" .exitCode}}{{end}}{{$us}}
    {{- with .state.waiting}}{{.reason}}{{end}}{{$us}}
    {{- with .state.running}}is running{{end}}
  {{- end}}{{end}}
{{- end}}{{end}}'
readonly CONFIG_MAPS='{{range .spec.template.spec.containers}}{{if eq .name $app}}
  {{- range .envFrom}}{{with .configMapRef}}{{.name}} {{end}}{{end}}
{{- end}}{{end}}'
# By jsonpath, which prints a list as JSON: of each CronJob its name and where its environment comes from.
readonly TASK='.spec.jobTemplate.spec.template.spec.containers[?(@.name=="'$APP'")].envFrom'
readonly TASKS='{range .items[*]}{.metadata.name} {'$TASK'}{"\n"}{end}'
readonly PROGRESS='{{range .status.conditions}}{{if eq .type "Progressing"}}{{.reason}}{{end}}{{end}}'
readonly SPEED='
{{- with index (or .metadata.annotations .metadata) $pace}}{{printf "%q" .}}{{end}}{{$us}}
{{- with .spec.minReadySeconds}}{{.}}{{else}}0{{end}}
{{- with .spec.strategy}}{{with .rollingUpdate}} {{.maxSurge}} {{.maxUnavailable}}{{end}}{{end}}'
readonly FULL_SPEED='0 100% 0' PACE_FORMAT='^([0-9]+) ([0-9]+%?) ([0-9]+%?)$'
readonly REPLICA_FAILURE='{{range .status.conditions}}{{if eq .type "ReplicaFailure"}}
  {{- "  "}}{{.reason}}: {{.message}}{{"\n"}}
{{- end}}{{end}}'

readonly PODS='
{{- range .items}}{{$pod := .}}{{if not .metadata.deletionTimestamp}}
{{- range .spec.containers}}{{if and (eq .name $app) (eq .image $image)}}
  {{- $pod.metadata.name}}{{$us}}
  {{- range $pod.status.conditions}}{{if eq .type "Ready"}}{{.status}}{{end}}{{end}}{{$us}}
  {{- range $pod.status.containerStatuses}}{{if eq .name $app}}
    {{- .restartCount}}{{$us}}
    {{- with .state.waiting}}{{.reason}}{{end}}{{$us}}
    {{- with .state.waiting}}{{with .message}}{{printf "%q" .}}{{end}}{{end}}{{$us}}
    {{- with .lastState.terminated}}code {{.exitCode}} ({{.reason}}){{end}}
  {{- end}}{{end}}{{"\n"}}
{{- end}}{{end}}
{{- end}}{{end}}'
readonly EVENTS='{{range .items}}
  {{- "  "}}{{.reason}}: {{.message}}{{"\n"}}
{{- end}}'

readonly LOCK='
{{- .metadata.resourceVersion}}{{$us}}
{{- with .spec.holderIdentity}}{{printf "%q" .}}{{end}}{{$us}}
{{- with .spec.acquireTime}}{{.}}{{end}}{{$us}}
{{- with .spec.renewTime}}{{.}}{{end}}{{$us}}
{{- with .spec.leaseDurationSeconds}}{{.}}{{end}}{{$us}}
{{- with index (or .metadata.annotations .metadata) $by_hand}}{{printf "%q" .}}{{end}}{{$us}}
{{- with index (or .metadata.annotations .metadata) $purpose}}{{printf "%q" .}}{{end}}'

# Run in a pod by its own Python: asks for a page as visitors do, with each public host, and prints the statuses.
# Where a NetworkPolicy keeps the pods from the Service, or there is none to ask, the pod asks itself.
readonly PAGE='
import http.client, sys
service, *hosts = sys.argv[1:]
ways = [(service.split(":")[0], int(service.split(":")[1]))] if service else []
for host in hosts:
    status = 0
    for way in [*ways, ("127.0.0.1", 8000)]:
        try:
            link = http.client.HTTPConnection(*way, timeout=3)
            link.request("GET", "/", headers={"Host": host, "X-Forwarded-Proto": "https", "Connection": "close"})
            status = link.getresponse().status
            break
        except (OSError, http.client.HTTPException):
            ways = []
    print("page", host, status)
'

usage() {
  cat <<'EOF'
Usage: rollback.sh <previous_version> [namespace]
       rollback.sh --list | --previous | --to-revision NAME  [namespace]

Rolls back to a version that ran before, with the settings that it had, and waits until it serves. Without a version,
lists what is in the cluster's history and, on a terminal, asks which one to roll back to. The namespace defaults to
"default".

options:
  --list                 list the versions to roll back to and exit
  --previous             roll back to the revision that was live before this one and was verified good
  --to-revision NAME     roll back to this revision, as --list names it; a revision is a version with its settings
  --dry-run              print each command and have the cluster validate it without changing anything
  -y, --yes              do not ask for confirmation, not even in production
  --reason TEXT          what was wrong (one line, 500 characters): the change cause, recorded in the ledger. The
                         revision that is left stops being a rollback target
  --keep                 with --reason: the revision that is left was not at fault and stays a rollback target
  --timeout SECONDS      how long the version may take to become ready (default: 180)
  --context NAME         kubectl context (default: the current one)
  -n, --namespace NAME   the namespace, as an option
  --image IMAGE          full image name, for a version that is no longer in the history
  --force                roll back even during a rollout, without room in a quota, or to a version that does not fit the
                         database schema
  -h, --help             show this help and exit

examples:
  scripts/rollback.sh 1.4.0 backstagetest1-production
  scripts/rollback.sh --list backstagetest1-staging
  scripts/rollback.sh --previous backstagetest1-production --yes --reason "sign-in is broken"
  scripts/rollback.sh 1.4.0 backstagetest1-staging --dry-run

exit codes:
  0    success
  2    usage error
  3    someone else holds the lock
  4    refused; nothing was changed
  5    the version failed; the one before it is still serving
  6    failed; someone has to step in
  130  interrupted; the last line says in which state

With LEDGER_URL and LEDGER_TOKEN set, the rollback is recorded in the ledger. A ledger that is down never delays it.
EOF
}

main() {
  exec 4>&2 # for what has to be seen, also while the words of a failure are not
  phase=checks locked='' shown='' hurried='' environment=''
  choose_colours
  parse "$@"
  trap finish EXIT
  trap interrupted INT TERM HUP
  connect
  inspect
  if [[ $list ]]; then
    list_versions
    return
  fi
  choose_target
  check
  look_up
  confirm
  acquire_lock
  roll_back
  verify
  settle
}

# Parse

parse() { # Sets target, namespace and the options.
  local option
  target='' namespace='' list='' previous='' to_revision='' keep='' dry='' yes='' force=''
  context='' explicit_image='' given_reason='' timeout=180
  while (($#)); do
    case $1 in
      --help | -h) usage && exit $OK ;;
      --list) list=1 ;;
      --previous) previous=1 ;;
      --keep) keep=1 ;;
      --dry-run) dry=1 ;;
      --yes | -y) yes=1 ;;
      --force) force=1 ;;
      --timeout=* | --context=* | --image=* | --reason=* | --namespace=* | --to-revision=*)
        option=$1
        shift
        set -- "${option%%=*}" "${option#*=}" "$@"
        continue
        ;;
      --timeout) value "$@" && timeout=$2 && shift ;;
      --context) value "$@" && context=$2 && shift ;;
      --image) value "$@" && explicit_image=$2 && shift ;;
      --to-revision) value "$@" && to_revision=$2 && shift ;;
      --reason) value "$@" && given_reason=$2 && shift ;;
      --namespace | -n) value "$@" && namespace=$2 && shift ;;
      '') misused 'Empty argument. Is a variable unset?' ;; # or the namespace would be taken for the version
      -*) misused "Unknown option $1." ;;
      *) positional "$1" ;;
    esac
    shift
  done
  if [[ ($list || $previous || $to_revision) && $target ]]; then # rollback.sh NAMESPACE --list
    [[ ! $namespace ]] || misused "--list, --previous and --to-revision take no version."
    namespace=$target target=''
  fi
  namespace=${namespace:-default}
  reason=$(one_line "$given_reason" $REASON_LENGTH)
  validate
}
value() { # value OPTION [VALUE...]
  [[ ${2+set} ]] || misused "$1 requires a value."
}
positional() {
  if [[ ! $target && ! $list && ! $previous && ! $to_revision ]]; then
    target=$1
  elif [[ ! $namespace ]]; then
    namespace=$1
  else
    misused "Unexpected argument: $1."
  fi
}
validate() {
  [[ ! $target ]] || validate_version
  [[ $namespace =~ ^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$ ]] ||
    misused "'$namespace' is not a valid namespace; expected lower-case letters, digits and dashes."
  [[ $timeout =~ ^[1-9][0-9]{0,4}$ ]] || misused "--timeout $timeout is not valid; expected seconds, such as 180."
  [[ ! $explicit_image || $explicit_image =~ ^[A-Za-z0-9][A-Za-z0-9._/:@-]*$ ]] ||
    misused "--image '$explicit_image' is not a valid image; expected its full name, such as host/team/app:1.4.0."
  [[ ! $to_revision || $to_revision =~ ^[a-z0-9-]{1,63}$ ]] ||
    misused "--to-revision '$to_revision' is not valid; expected a revision as --list names it."
  [[ ! $to_revision || (! $previous && ! $explicit_image) ]] ||
    misused '--to-revision cannot be combined with --previous or --image; choose one.'
  [[ ! $context || $context != -* ]] || misused "--context '$context' is not a valid context."
  if [[ $explicit_image && $target && $(tag_of "$explicit_image") != "$target" && $explicit_image != *@* ]]; then
    misused "--image $explicit_image is not version $target; the tag must be the version."
  fi
  if [[ ! $target && ! $list && ! $previous && ! $to_revision && ! -t 0 ]]; then
    usage >&2
    exit $USAGE
  fi
}
validate_version() {
  [[ $target =~ ^$VERSION$ ]] || misused "'$target' is not a valid version;" \
    "expected an image tag of at most 64 letters, digits, '_', '.' and '-', such as 1.4.0."
  [[ $target != latest ]] ||
    misused "'latest' is not a valid version, as it names no single build; expected a tag such as 1.4.0."
}

# Inspect

connect() { # One request tells whether the cluster is reachable; kubectl would make five first, to discover its API.
  local answer
  command -v kubectl >/dev/null || refuse 'kubectl not found; install it.'
  shown_context=${context:-$(kubectl config current-context 2>/dev/null || echo 'none; the default configuration')}
  if ! answer=$(kubectl --request-timeout=5s ${context:+"--context=$context"} get --raw /version 2>&1); then
    case $answer in
      *orbidden*) ;; # It is reachable; what else may be forbidden shows next.
      *) unreachable "$answer"$'\n' ;;
    esac
  fi
}
unreachable() { # unreachable [ERROR]
  refuse "${1:-}The cluster is unreachable. Check the context ($shown_context) and the network."
}
inspect() { # Sets colour, port, deployment (the one with the traffic), running_..., history and suggested.
  local found
  found=$(fields "$SERVICE" service $APP --ignore-not-found) || unreachable
  IFS=$US read -r colour port selector <<<"$found"
  deployment=$APP${colour:+-$colour}
  found=$(fields "$DEPLOYMENT" deployment "$deployment" --ignore-not-found) || unreachable
  running_image=${found#*"$US"}
  run_checks "$FIRST_CHECKS"
  running=$(tag_of "$running_image")
  idle_colour=''
  if [[ $colour ]]; then idle_colour=$(other_colour); fi
  history=$(revisions || true)
  running_set=$(current_set "$deployment") running_hash='' running_settings=''
  if find_set "$running_set"; then running_hash=$its_hash running_settings=$its_settings; fi
  suggested=$(previous_good) suggested_version=''
  if find_set "$suggested"; then suggested_version=$its_version; fi
}
other_colour() { if [[ $colour == blue ]]; then printf green; else printf blue; fi; }
revisions() { # Prints the revisions that the cluster remembers, the one that became live last first.
  # A Deployment gives a revision a new number each time it becomes current. Two colours count each for itself, and
  # traffic moves between them without a new revision; so there the annotation counts, or else the creation.
  local name current live created rest
  for name in ${colour:-$APP} $idle_colour; do
    if [[ $colour ]]; then name=$APP-$name; fi
    current=$(fields "$CURRENT_REVISION" deployment "$name" 2>/dev/null) || continue
    fields "{{\$deployment := \"$name\"}}{{\$current := \"$current\"}}$REVISIONS" replicasets -l "app=$APP"
  done | while IFS=$US read -r live created rest; do
    live=${live//\"/}
    [[ $created =~ $TIME ]] || continue
    [[ $live =~ $TIME ]] || live=$created
    printf '%s\n' "$live$US$created$US$rest"
  done | if [[ $colour ]]; then sort -r; else sort -t "$US" -k 4.2,4nr; fi
}
next_revision() { # Reads one line of the history and sets its_... from it. Fails at the end.
  IFS=$US read -r its_start its_creation its_deployment its_number its_set its_hash its_image its_settings its_good \
    its_bad its_break its_current its_cause && [[ $its_start ]] || return 1
  its_number=${its_number//\"/} its_image=${its_image//\"/} its_good=${its_good//\"/} its_break=${its_break//\"/}
  its_version=$(tag_of "$its_image")
  its_settings=${its_settings% } its_settings=${its_settings##*[ -]} # the hash in the ConfigMap's name
  its_name=${colour:+${its_deployment##*-}-}${its_number:-?}
  # Marks name the pods that they are about, as `kubectl rollout undo` and the controller copy annotations to others.
  [[ $its_good == "$its_version $its_hash" ]] || its_good=''
  its_bad=${its_bad#\"} its_bad=${its_bad%\"} its_left=''
  if [[ $its_bad == "$its_hash "* ]]; then
    its_bad=${its_bad#* } its_left=${its_bad%% *} its_bad=${its_bad#"$its_left"}
    its_bad=$(unquoted "${its_bad# }")
  else
    its_bad=''
  fi
}
find_set() { # find_set REPLICASET: sets its_... of that revision. Fails if the history has none.
  [[ $1 ]] || return 1
  while next_revision; do
    if [[ $its_set == "$1" ]]; then return 0; fi
  done <<<"$history"
  return 1
}
current_set() { # current_set DEPLOYMENT: prints its ReplicaSet
  while next_revision; do
    if [[ $its_current && $its_deployment == "$1" ]]; then
      printf '%s' "$its_set"
      return
    fi
  done <<<"$history"
}
previous_good() { # Prints the ReplicaSet to roll back to: verified good, not running, and live last.
  # One that a rollback left is not returned to while there is another, so that two rollbacks in a row go further back.
  # Once every other one was left without being at fault, they come again, the one that was left first before others.
  local first='' found=''
  while next_revision; do
    [[ $its_good && $its_set != "$running_set" ]] || continue
    if is_copy; then continue; fi
    if [[ ! $its_left ]]; then
      printf '%s' "$its_set"
      return
    fi
    if [[ ! $first || $its_left < $first ]]; then first=$its_left found=$its_set; fi
  done <<<"$history"
  printf '%s' "$found"
}
is_copy() { # Whether the other colour has the same of what is running.
  [[ $its_deployment != "$deployment" && $its_image == "$running_image" && $its_settings == "$running_settings" ]]
}
best_set() { # best_set VERSION: prints its ReplicaSet that is not running: verified good, or else the last
  local found=''
  while next_revision; do
    [[ $its_version == "$1" && $its_set != "$running_set" ]] || continue
    if [[ $its_good ]]; then
      printf '%s' "$its_set"
      return
    fi
    if [[ ! $found ]]; then found=$its_set; fi
  done <<<"$history"
  if [[ $1 != "$running" ]]; then printf '%s' "$found"; fi # other settings of what runs must have been good
}
list_versions() {
  local state colour_of
  say "Namespace $namespace, context $shown_context, deployment/$deployment:"
  headline "$(printf '%-9s %-20s %-10s %-6s %-14s %s' REVISION VERSION SETTINGS AGE STATE 'CHANGE CAUSE')"
  while next_revision; do
    colour_of='' state='not verified'
    if [[ $its_left && ! $its_good ]]; then state='withdrawn' colour_of=$red; fi
    if [[ $its_good ]]; then state='verified good' colour_of=$green; fi
    if [[ $its_set == "$running_set" ]]; then
      state="running${its_good:+, good}" colour_of=$green
    fi
    printf '%-9s %-20s %-10s %-6s ' "$its_name" "$its_version" "${its_settings:--}" "$(age "$its_start")"
    printf '%s%-14s%s %s\n' "$colour_of" "$state" "$plain" "$(cause_of_change)"
    [[ $its_left && $its_set != "$running_set" ]] || continue
    say "          left $(age "$its_left") ago${its_bad:+: $its_bad}"
  done <<<"$history"
  if [[ $suggested ]] && find_set "$suggested"; then
    say "Rollback target: $its_version, revision $its_name (rollback.sh --previous $namespace)"
    if [[ $its_left ]]; then say '  Every other verified revision was left by a rollback, this one first.'; fi
  else
    say 'Rollback target: none. No other revision was verified good.'
  fi
}
cause_of_change() { # Prints the change cause, or what sets the revision apart from the one before it: if that has the
  # same image, the cause was only copied from it.
  local image=$its_image deployment=$its_deployment creation=$its_creation settings=$its_settings cause=$its_cause
  local before='' found=''
  while next_revision; do
    if [[ $its_deployment == "$deployment" && $its_creation < $creation && $its_creation > $before ]]; then
      before=$its_creation found=''
      if [[ $its_image == "$image" && $its_cause == "$cause" ]]; then
        found='pod template only'
        if [[ $its_settings != "$settings" ]]; then found="settings only, before: ${its_settings:-none}"; fi
      fi
    fi
  done <<<"$history"
  cause=$(unquoted "$cause")
  printf '%s' "${found:-${cause:--}}"
}

# Check

choose_target() { # Sets target and target_set, the ReplicaSet that has it; empty for an image that the history lacks.
  local answer=''
  target_set=''
  if [[ $previous ]]; then
    [[ $suggested ]] || refuse "No revision other than the running one ($running) was verified good in $namespace." \
      "Choose one from: rollback.sh --list $namespace."
    target_set=$suggested
  elif [[ $to_revision ]]; then
    target_set=$(named_set "$to_revision")
    [[ $target_set ]] || refuse "Revision $to_revision is not in the history of $namespace." \
      "Choose one from: rollback.sh --list $namespace."
  elif [[ ! $target ]]; then
    list_versions
    read -r -p "Which version? [${suggested_version:-none}] " answer || true
    target=$answer
    if [[ ! $answer ]]; then target_set=$suggested; fi
    [[ $target || $target_set ]] || refuse 'No version given.'
    if [[ $target ]]; then validate_version; fi
  fi
  if [[ ! $target_set ]]; then target_set=$(best_set "$target"); fi
  if find_set "$target_set"; then target=$its_version; fi
  headline "Rolling back to version: $target"
  say "  namespace $namespace, context $shown_context, deployment/$deployment, now $running"
  if [[ $given_reason != "$reason" ]]; then
    say "  The reason was trimmed to one line of at most $REASON_LENGTH characters: $reason"
  fi
}
named_set() { # named_set NAME: prints the ReplicaSet of a revision, by its name in the list or its pod-template-hash
  while next_revision; do
    if [[ $its_name == "$1" || $its_hash == "$1" ]]; then
      printf '%s' "$its_set"
      return
    fi
  done <<<"$history"
}
check() { # Refuses what cannot work. Sets moving (the Deployment that gets the target) and what find_target() sets.
  local complete=''
  find_target
  if is_complete "$deployment"; then complete=1; fi
  check_not_live "$complete"
  check_image
  check_schema
  check_database
  moving=$deployment
  if [[ $colour ]]; then
    moving=$APP-$idle_colour
    [[ $(fields "$CONTAINER_IMAGE" deployment "$moving" || true) ]] ||
      refuse "No other colour to roll back to: deployment/$moving does not exist or has no container $APP."
  fi
  # The colour that gets the target has it already, or gets its template, with a hash that is not known yet.
  if [[ $target_deployment != "$moving" ]]; then target_hash=''; fi
  # manage.py deploy ran all checks before it began, and its rollback must be fast.
  if [[ ${DEPLOY_CHECKED:-} ]]; then run_checks 'paused replicas'; else run_checks "$CHECKS"; fi
  [[ $verified ]] || warn "$target has not been verified good in $namespace"
  if [[ $writes_move ]]; then
    say "  The writes return from the database of $running once the traffic has; no row is lost."
  else
    say '  The database is left as it is; a rollback does not undo migrations.'
  fi
}
find_target() { # Sets target_image and other target_..., verified, last_live, remembered and known.
  last_live='' known='' remembered=''
  while next_revision; do
    case "$known " in *" $its_version "*) ;; *) known="$known $its_version" ;; esac
    [[ $its_version == "$target" ]] || continue
    remembered=1
    if [[ $last_live < $its_start ]]; then last_live=$its_start; fi
  done <<<"$history"
  target_image='' target_hash='' target_deployment='' target_settings='' target_left='' verified=''
  if find_set "$target_set" && [[ ! $explicit_image || $explicit_image == "$its_image" ]]; then
    target_image=$its_image target_hash=$its_hash target_deployment=$its_deployment target_settings=$its_settings
    target_left=$its_left target_name=$its_name verified=$its_good
    say "  revision $its_name${target_settings:+, settings $target_settings}, live $(age "$its_start") ago"
    if [[ $target_image == "$running_image" ]]; then
      say "  The version stays: only its settings differ${target_settings:+ ($target_settings, now $running_settings)}."
      say '  Secrets have no history: it gets those of today.'
    fi
  else
    target_set='' target_image=$explicit_image
  fi
}
check_not_live() { # check_not_live COMPLETE
  if [[ $target_set && $target_set == "$running_set" && ($1 || ! $force) ]]; then
    refuse "Revision $its_name is already live in deployment/$deployment." \
      "List the others: rollback.sh --list $namespace."
  fi
  [[ ! $target_set && $target == "$running" ]] || return 0
  [[ ! $explicit_image || $explicit_image == "$running_image" ]] || return 0
  if [[ $1 || ! $force ]]; then
    refuse "$target is already live in deployment/$deployment, and no other settings of it were verified good." \
      "List the others: rollback.sh --list $namespace."
  fi
  target_image=$running_image
}
check_image() {
  [[ $target_image ]] || refuse "Version $target is not in the history of $namespace, which has:$known." \
    "If it is still in the registry, pass its full image: --image $(repository_of "$running_image"):$target."
}
check_schema() {
  local floor unless=''
  floor=$(schema_floor)
  [[ $floor && ! $force ]] || return 0
  if [[ ! $remembered ]]; then unless=' unless it is newer (the history does not say)'; fi
  refuse "The database has the migrations of $floor, which $target cannot run on$unless;" \
    "a rollback does not undo them. Choose $floor or a newer version, or override with --force."
}
schema_floor() { # Prints a version whose migrations the target cannot run on, if there is one.
  # The target must have been live since; one that the history has forgotten is not assumed to fit.
  local broken all='' floor=''
  while next_revision; do
    if [[ $its_break =~ ^$VERSION$ && $its_break != "$target" ]]; then all="$all $its_break"; fi
  done <<<"$history"
  for broken in $all; do
    if [[ ! $remembered ]]; then floor=$broken; fi
    while next_revision; do
      if [[ $its_version == "$broken" && $its_creation > $last_live ]]; then floor=$broken; fi
    done <<<"$history"
  done
  printf '%s' "$floor"
}
check_database() { # With a database per colour: sets own_database, the target's own, and writes_move, if they shall.
  # A release that was left and has a database of its own is not rolled back to: it needs the writes there.
  local running_database
  own_database='' writes_move=''
  [[ $colour && $(kube get cronjob $COMMANDS-rollback --ignore-not-found -o name 2>/dev/null || true) ]] || return 0
  if [[ $target_set ]]; then own_database=$(fields "$OWN" replicaset "$target_set" || true); fi
  running_database=$(fields "$OWN" replicaset "$running_set" 2>/dev/null || true)
  if [[ $own_database == "$running_database" ]]; then return 0; fi # other settings of one release, say
  if [[ $own_database && $target_left && ! $force ]]; then
    refuse "$target was left by a rollback, and needs the writes in the $own_database database, its own." \
      "Deploy it again: manage.py deploy $target --database per-colour; or override with --force."
  fi
  # manage.py deploy moves the writes by itself.
  if [[ $running_database && ! ${DEPLOY_CHECKED:-} ]]; then writes_move=1; fi
}
run_checks() { # run_checks NAMES: each refuses, and says what was expected and what to do
  local name facts=''
  if [[ $1 != "$FIRST_CHECKS" ]]; then # what may not be read is not checked
    facts=$(fields "{{\$moving := \"$moving\"}}$FACTS" \
      deployments,services,horizontalpodautoscalers,resourcequotas 2>/dev/null || true)
  fi
  for name in $1; do "check_$name"; done
}
facts() { printf '%s\n' "$facts" | sed -n "s/^$1 //p"; } # facts KIND: prints them without their first field
check_deployment() {
  local names
  if [[ $found ]]; then return 0; fi
  names=$(fields "$NAMES" deployments 2>/dev/null || true)
  names=${names:-none }
  refuse "Deployment $deployment not found in namespace $namespace (context $shown_context)," \
    "which has: ${names% }. Pass the right namespace: rollback.sh VERSION NAMESPACE [--context NAME]."
}
check_container() {
  [[ $running_image ]] || refuse "deployment/$deployment has no container named $APP. Apply the manifests first."
}
check_service() {
  [[ $selector ]] ||
    refuse "Service $APP with a selector not found in namespace $namespace. Apply the manifests first."
}
check_several() {
  local name replicas labels pair others=''
  while read -r name replicas labels; do
    if [[ ! $name || $name == "$deployment" || $replicas == 0 ]]; then continue; fi
    for pair in $(facts selector); do
      if [[ $labels != *",$pair,"* ]]; then continue 2; fi
    done
    others="$others and deployment/$name"
  done <<<"$(facts deployment)"
  [[ ! $others ]] || refuse "service/$APP selects the pods of ${others# and } as well;" \
    "expected those of deployment/$deployment alone. Delete the other, or scale it to 0."
}
check_paused() {
  [[ $'\n'$facts$'\n' != *$'\n'paused$'\n'* ]] || refuse "deployment/$moving is paused." \
    "Resume it first: $(kubectl_here) rollout resume deployment/$moving."
}
check_replicas() {
  if [[ ${wanted:-} != 0 || $colour ]]; then return 0; fi
  refuse "deployment/$deployment is scaled to 0, so $target could not be verified." \
    "Scale it up first: $(kubectl_here) scale deployment/$deployment --replicas=3."
}
check_rollout() { # A rollout that is stuck is what this script is for; pods that are not ready are no rollout.
  if [[ $complete || $force || ${DEPLOY_LOCK_HOLDER:-} ]]; then return 0; fi
  if ((observed >= generation && all <= updated)) || [[ $(fields "$REPLICA_FAILURE" deployment "$deployment") ]] ||
    [[ $(failure_reason "$deployment" "$running_image" "$running_hash") ]] || ! is_progressing "$deployment"; then
    return 0
  fi
  refuse "A rollout to $running is in progress in deployment/$deployment" \
    "($updated of $wanted updated, $available available). Wait for it to finish, or override it with --force."
}
check_autoscaler() {
  local name most
  while read -r name most; do
    [[ ! $name ]] || ((most >= wanted)) || refuse "horizontalpodautoscaler/$name allows deployment/$moving at most" \
      "$most pods; expected $wanted. Raise its maxReplicas first."
  done <<<"$(facts autoscaler)"
}
check_quota() { # One more pod at a time is enough; without any, a rollout that is under way makes room by itself.
  local name what hard used need most now
  if [[ ! $complete || $force ]]; then return 0; fi
  while read -r name what hard used; do
    [[ $name ]] || continue
    need=$(pod_needs "$what") most=$(thousandths "$hard") now=$(thousandths "$used")
    if [[ $most && $now ]] && ((need > 0 && now + need > most)); then
      refuse "resourcequota/$name has no room for 1 more pod: $what is used up to $used of $hard." \
        "Raise it, or make room, first; or override it with --force."
    fi
  done <<<"$(facts quota)"
}
pod_needs() { # pod_needs RESOURCE: prints how much of it, in thousandths, a quota counts for one pod
  local what much sum=0
  case $1 in pods | count/pods) printf 1000 && return ;; esac
  while read -r what much; do
    if [[ $what == "$1" || $what == "requests.$1" ]]; then sum=$((sum + $(thousandths "$much" || echo 0))); fi
  done <<<"$(facts need)"
  printf '%s' "$sum"
}
thousandths() { # thousandths QUANTITY: such as 2, 100m or 256Mi; nothing for the forms that the API server seldom uses
  local number=${1%%[!0-9]*} suffix
  suffix=${1#"$number"}
  case ${number:+$suffix} in
    m) printf '%s' "$number" ;;
    '') [[ ! $number ]] || printf '%s' "${number}000" ;;
    k | M | G | T) printf '%s' "$((number * 1000 * 1000 ** $(power "$suffix")))" ;;
    Ki | Mi | Gi | Ti) printf '%s' "$((number * 1000 * 1024 ** $(power "${suffix%i}")))" ;;
  esac
}
power() { case $1 in [kK]) printf 1 ;; M) printf 2 ;; G) printf 3 ;; T) printf 4 ;; esac }
check_rights() {
  local rules right needed=$RIGHTS lacking=''
  rules=$(printf '{"apiVersion":"authorization.k8s.io/v1","kind":"SelfSubjectRulesReview","spec":{"namespace":"%s"}}' \
    "$namespace" | kube create --validate=false -f - -o "go-template=$VARIABLES$RULES" 2>/dev/null) || return 0
  if [[ ! $rules || $rules == incomplete ]]; then return 0; fi
  if [[ $colour ]]; then needed=$needed$'\n'$BLUE_GREEN_RIGHTS; fi
  while read -r right; do
    is_granted "$right" "$rules" || lacking="$lacking, $right"
  done <<<"$needed"
  [[ ! $lacking ]] || refuse "Missing rights in namespace $namespace: ${lacking#, }. Have them granted;" \
    "docs/deploying.md lists all."
  while read -r right; do
    is_granted "$right" "$rules" || warn "Missing right in namespace $namespace: $right"
  done <<<"$MARKING_RIGHTS"
}
is_granted() { # is_granted "VERB RESOURCE.GROUP" RULES
  local verb=${1% *} resource=${1#* } group=core verbs groups resources
  case $resource in *.*) group=${resource#*.} resource=${resource%%.*} ;; esac
  while IFS=$US read -r verbs groups resources; do
    if [[ " $verbs" == *' * '* || " $verbs" == *" $verb "* ]] &&
      [[ " $groups" == *' * '* || " $groups" == *" $group "* ]] &&
      [[ " $resources" == *' * '* || " $resources" == *" $resource "* ]]; then return 0; fi
  done <<<"$2"
  return 1
}
check_references() {
  local names name there missing='' who="deployment/$moving"
  if [[ $target_set ]]; then # it comes back with the ConfigMaps and Secrets that it had
    facts=$(fields "$NEEDED" replicaset "$target_set" 2>/dev/null || true) who="revision $target_name ($target)"
  fi
  names=$(facts name | sort -u)
  [[ $names ]] || return 0
  # shellcheck disable=SC2086 # one word each
  there=$(kube get $names -o name --ignore-not-found 2>&1) || [[ $there == *'cannot get resource'* ]] || return 0
  for name in $names; do
    if [[ $'\n'$there$'\n' != *$'\n'"$name"$'\n'* && $there != *"cannot get resource \"${name%%/*}s\""* ]]; then
      missing="$missing, $name"
    fi
  done
  [[ ! $missing ]] || refuse "New pods could not start: namespace $namespace lacks ${missing#, }, which" \
    "$who names. Create it first."
}
look_up() { # Sets environment and production, by environments.toml if it has the namespace, else by its name.
  local file=${ENVIRONMENTS_FILE:-${BASH_SOURCE[0]%/*}/../environments.toml}
  local line name='' last='' its_namespace='' its_context='' places=' '
  environment='' production=''
  if [[ -r $file ]]; then
    while IFS= read -r line; do
      if [[ $line =~ ^\[([a-z0-9.-]+)\] ]]; then
        if [[ $its_namespace == "$namespace" && (! $context || ! $its_context || $its_context == "$context") ]]; then
          environment=${environment:-$name}
        fi
        if [[ ${BASH_REMATCH[1]} != *.* ]]; then last=$name name=${BASH_REMATCH[1]} its_context=''; fi
        its_namespace=''
      elif [[ $line =~ ^production\ *=\ *true ]]; then
        places="$places$name "
      elif [[ $line =~ ^(namespace|context)\ *=\ *[\"\']([A-Za-z0-9._/:@-]*)[\"\'] ]]; then
        case ${BASH_REMATCH[1]} in
          namespace) its_namespace=${BASH_REMATCH[2]} ;;
          context) its_context=${BASH_REMATCH[2]} ;;
        esac
      fi
    done < <(cat "$file" && printf '\n[end]\n')
    if [[ $places == ' ' ]]; then places=" $last "; fi # as ledger/environments.py has it
  fi
  if [[ $namespace == *prod* || $environment && $places == *" $environment "* ]]; then production=1; fi
  environment=${LEDGER_ENVIRONMENT:-${environment:-${namespace##*-}}}
}
confirm() { # Asks before production is touched.
  local answer=''
  if [[ ! $production || $yes || $dry ]]; then return 0; fi
  [[ -t 0 ]] || refuse "$namespace is a production namespace, and there is no terminal to confirm on; pass --yes."
  read -r -p "Type the namespace to confirm: " answer || true
  [[ $answer == "$namespace" ]] || refuse 'Not confirmed.'
}

# Roll back

roll_back() {
  if [[ $colour ]]; then
    start_idle_colour
    if [[ ! $dry ]] && ! ask_pages; then stop_idle_colour; fi
    phase=switching
    say "Switching service/$APP from $colour to $idle_colour"
    switch_traffic "$idle_colour" || fail $NEEDS_HELP "Could not switch the traffic; see above. $running is serving."
    switched_at=$SECONDS
  else
    replace_pods
  fi
}
replace_pods() { # Rolling: pods of the target replace the others.
  phase=moving
  set_template "$deployment" "$target_set" "$target_image" "rollback to $target${reason:+: $reason}" || rejected
  hurry "$deployment"
  if [[ ! $dry ]] && ! wait_until_ready "$deployment" "$target_image" "$target_hash"; then restore_template; fi
}
start_idle_colour() { # Blue-green: the target becomes ready without traffic.
  local idle_image replicas same=''
  idle_image=$(fields "$CONTAINER_IMAGE" deployment "$moving") # one a line, so that each one's failure counts
  idle_replicas=$(fields "$REPLICAS" deployment "$moving")
  replicas=$(fields "$REPLICAS" deployment "$deployment")
  ((replicas > 0)) || replicas=1
  phase=idle
  if [[ $target_set ]]; then
    if [[ $(current_set "$moving") == "$target_set" ]]; then same=1; fi
  elif [[ $idle_image == "$target_image" ]]; then
    same=1
  fi
  if [[ ! $same ]] || ((idle_replicas < replicas)); then
    say "Starting $target as deployment/$moving alongside $running"
    if [[ $own_database ]]; then target_hash=''; fi # template_of() changes it
    set_template "$moving" "$target_set" "$target_image" "rollback to $target${reason:+: $reason}" "$replicas" ||
      rejected
    hurry "$moving"
  fi
  if [[ ! $dry ]] && ! wait_until_ready "$moving" "$target_image" "$target_hash"; then stop_idle_colour; fi
}
rejected() {
  phase=checks
  refuse 'The cluster rejected the change; see above.'
}
set_template() { # set_template DEPLOYMENT REPLICASET IMAGE CAUSE [REPLICAS]: the ReplicaSet's, or else the image alone
  # One write, so a new revision gets the annotations.
  local live=null notes template
  if [[ $2 ]]; then
    template=$(template_of "$2" "$1") || return 1
  else
    template="{\"spec\":{\"containers\":[{\"name\":\"$APP\",\"image\":$(json "$3")}]}}"
  fi
  if [[ ! $colour ]]; then live=$(json "$(now)"); fi # a colour becomes live when the traffic moves
  notes="\"$CAUSE\":$(json "$4"),\"$BEFORE\":null,\"$LIVE_SINCE\":$live"
  change patch deployment "$1" --type=strategic -p \
    "{\"metadata\":{\"annotations\":{$notes}},\"spec\":{${5:+\"replicas\":$5,}\"template\":$template}}"
}
template_of() { # template_of REPLICASET DEPLOYMENT: prints its pod template as a patch that replaces the Deployment's
  # https://github.com/kubernetes/community/blob/master/contributors/devel/sig-api-machinery/strategic-merge-patch.md
  local template
  template=$(kube get replicaset "$1" -o 'jsonpath={.spec.template}') || return 1
  if [[ $template != '{"'* ]]; then
    say "Cannot read the pod template of replicaset/$1." >&2
    return 1
  fi
  template=$(printf '%s' "$template" | sed "s/\"$HASH\":\"[^\"]*\",//; s/,\"$HASH\":\"[^\"]*\"//")
  if [[ $colour ]]; then
    template=$(printf '%s' "$template" | sed "s/\"colour\":\"[a-z]*\"/\"colour\":\"${2##*-}\"/g")
    # Its database may have been prepared for another release since: it reads the one that takes the writes.
    template=$(printf '%s' "$template" | sed "s/\(\"name\":\"$OWN_DATABASE\"\),\"value\":\"[a-z]*\"/\1/")
  fi
  printf '{"$patch":"replace",%s' "${template#\{}"
}
hurry() { # hurry DEPLOYMENT: has all its pods start at once, as visitors meet bad ones meanwhile
  # Each pod that is ready replaces another at once: none is taken away before. Where a quota or the nodes have no room
  # for all, the Deployment's controller goes on as the others end. An earlier run that was killed left the annotation.
  local saved pace
  IFS=$US read -r saved pace <<<"$(fields "$SPEED" deployment "$1" || true)"
  saved=$(unquoted "$saved")
  if [[ $pace == "$FULL_SPEED" && $saved =~ $PACE_FORMAT ]]; then pace=$saved; fi
  [[ $pace =~ $PACE_FORMAT ]] || return 0 # as with the strategy Recreate
  if set_pace "$1" "$FULL_SPEED" "$(json "$pace")"; then
    hurried=$1 usual_pace=$pace
  else
    warn 'Could not start all pods at once; they are replaced one by one'
  fi
}
slow_down() { # Restores what hurry() changed.
  local name=$hurried
  [[ $hurried && ! $dry ]] || return 0
  hurried=''
  set_pace "$name" "$usual_pace" null ||
    warn "Could not restore the pace of deployment/$name; the next rollback or deployment does"
}
set_pace() { # set_pace DEPLOYMENT PACE JSON: the last is the annotation that says how to restore it, or null
  local ready surge unavailable limits
  read -r ready surge unavailable <<<"$2"
  limits="{\"maxSurge\":$(int_or_percent "$surge"),\"maxUnavailable\":$(int_or_percent "$unavailable")}"
  change patch deployment "$1" --type=merge -p "{\"metadata\":{\"annotations\":{\"$PACE\":$3}},$(
    printf '"spec":{"minReadySeconds":%s,"strategy":{"rollingUpdate":%s}}}' "$ready" "$limits"
  )"
}
int_or_percent() { if [[ $1 == *% ]]; then json "$1"; else printf '%s' "$1"; fi; }
switch_traffic() { # switch_traffic COLOUR: also records since when that colour is live, and moves the clients
  local left=$colour marked=1
  if [[ $1 == "$colour" ]]; then left=$idle_colour; fi
  change annotate deployment "$APP-$1" --overwrite "$LIVE_SINCE=$(now)" ||
    warn "Could not mark deployment/$APP-$1 as live"
  # No selector moves connections that clients keep: the pods close them with their next answers. The mark comes first,
  # so that an interruption leaves no client on the wrong pods.
  if ! annotate_pods "$1" "$CLOSE-" || ! annotate_pods "$left" "$CLOSE=$(now)"; then
    warn "Could not mark the pods of $left; clients that keep their connections may stay on them"
    marked=''
  fi
  if ! select_colour $APP "$1"; then
    annotate_pods "$left" "$CLOSE-" || true
    return 1
  fi
  if [[ $marked && ! $dry ]]; then
    say "  The pods of $left close each connection that clients keep with its next answer." \
      'Not checked: that all clients have moved.'
  fi
}
annotate_pods() { # annotate_pods COLOUR ANNOTATION
  change annotate pods -l "app=$APP,colour=$1" --overwrite "$2"
}
select_colour() { # select_colour SERVICE COLOUR
  change patch service "$1" --type=merge -p "{\"spec\":{\"selector\":{\"colour\":$(json "$2")}}}"
}
wait_until_ready() { # wait_until_ready DEPLOYMENT IMAGE [HASH]: fails when it does not become ready, and sets why
  # Sets new_set and new_hash: what the Deployment's controller has made of the template.
  local start=$SECONDS held_up='' looked
  why='' new_set='' new_hash=${3:-}
  while true; do
    looked=$SECONDS
    renew_lock
    if is_complete "$1"; then
      learn_set "$1"
      progress "$updated of $wanted replicas updated, $available available ($((SECONDS - start)) s)"
      end_progress
      return 0
    fi
    if ((SECONDS - start >= 3 && ${updated:-0} < ${wanted:-0})) && [[ ! $held_up ]]; then
      held_up=$(fields "$REPLICA_FAILURE" deployment "$1" 2>/dev/null || true)
      [[ ! $held_up ]] || warn "Not all pods can start at once; the others follow as room becomes free:"$'\n'"$held_up"
    fi
    progress "${updated:-?} of ${wanted:-?} replicas updated, ${available:-?} available" \
      "($((SECONDS - start)) of $timeout s)"
    if [[ ! $new_hash ]] && ((${observed:-0} >= ${generation:-1})); then learn_set "$1"; fi
    why=$(failure_reason "$1" "$2" "$new_hash")
    if ((SECONDS - looked > 5)); then start=$((start + SECONDS - looked)); fi # an API server that is down delays them
    if [[ ! $why ]] && ((SECONDS - start >= timeout)); then why="not ready after $timeout s"; fi
    if [[ $why ]]; then
      end_progress
      return 1
    fi
    sleep $POLL_SECONDS
  done
}
learn_set() { # learn_set DEPLOYMENT
  local found
  found=$(revisions || true)
  if [[ $found ]]; then history=$found; fi
  new_set=$(current_set "$1")
  if find_set "$new_set"; then new_hash=$its_hash; fi
}
is_complete() { # is_complete DEPLOYMENT: as for `kubectl rollout status`; sets what it looks at
  IFS=$US read -r generation observed wanted all updated available <<<"$(
    fields "$ROLLOUT" deployment "$1" 2>/dev/null || true
  )"
  [[ ${generation:-} ]] || return 1
  ((observed >= generation && updated >= wanted && all <= updated && available >= updated))
}
is_progressing() { # is_progressing DEPLOYMENT: whether its controller has not given up
  [[ $(fields "$PROGRESS" deployment "$1") != ProgressDeadlineExceeded ]]
}
failure_reason() { # failure_reason DEPLOYMENT IMAGE [HASH]: prints why its pods will not become ready, if they will not
  local name ready restarts waiting message exited
  while IFS=$US read -r name ready restarts waiting message exited; do
    if [[ $waiting && $FATAL_WAITING_REASONS == *" $waiting"$'\n'* ]]; then
      printf 'pod %s: %s %s' "$name" "$waiting" "$(unquoted "$message")"
      return
    fi
    if [[ $ready != True && ${restarts:-0} != 0 && $exited ]]; then
      printf 'pod %s exited with %s; restarts: %s' "$name" "$exited" "$restarts"
      return
    fi
  done <<<"$(pods "$1" "$2" "${3:-}" 2>/dev/null || true)"
}
pods() { # pods DEPLOYMENT IMAGE [HASH]: prints name, ready, restarts, waiting reason, message, exit of each that is not
  # ending. Without the hash of its revision, those of the image.
  fields "{{\$image := \"$2\"}}$PODS" pods -l "app=$APP${colour:+,colour=${1##*-}}${3:+,$HASH=$3}"
}

# Verify

verify() { # Asks /health/ and pages whether the target serves; brings back what ran before if it does not.
  phase=verifying
  if [[ $dry ]]; then return 0; fi
  if { verify_through_service || verify_in_pod; } && ask_pages "${port:+$APP:$port}"; then return 0; fi
  if [[ $colour ]]; then switch_back; else restore_template; fi
}
verify_through_service() { # Fails if the API server may not ask the Service, or gets no good answer.
  local answer path attempt
  [[ $port ]] || return 1
  for attempt in 1 2 3 4 5; do # the Service's endpoints follow its selector and the pods a moment later
    for path in health/ health/ready/; do
      if answer=$(get_raw "/api/v1/namespaces/$namespace/services/http:$APP:$port/proxy/$path"); then
        if [[ $attempt != 5 ]] && ! is_target "$answer"; then break; fi
        passed "service/$APP" "$path" "$answer"
        return 0
      fi
      # RBAC or a NetworkPolicy may keep the API server from the pods.
      case $answer in *orbidden* | *imeout* | *imed\ out* | *deadline*) return 1 ;; esac
    done
    sleep $POLL_SECONDS
  done
  return 1
}
get_raw() { # get_raw PATH: prints the answer; fails if there is none, or if it says degraded, which readiness tolerates
  local answer
  answer=$(kube --request-timeout=5s get --raw "$1" 2>&1) || { printf '%s' "$answer" && return 1; }
  printf '%s' "$answer"
  [[ $answer != *'"degraded"'* ]]
}
verify_in_pod() { # Has a pod ask itself; fails and sets why if it does not serve.
  local pod path answer
  pod=$(ready_pod)
  if [[ ! $pod ]]; then
    why="no pod of $target is ready"
    return 1
  fi
  for path in health/ health/ready/; do
    if answer=$(kube exec "$pod" -c $APP -- python -m health --json --url "http://127.0.0.1:8000/$path" 2>&1) &&
      [[ $answer != *'"degraded"'* ]]; then
      passed "pod $pod" "$path" "$answer"
      if [[ $path != health/ ]]; then warn '/health/ is degraded (see above), but /health/ready/ passes'; fi
      return 0
    fi
    say "  pod $pod, /$path: $answer"
  done
  case $answer in
    *unhealthy* | *'answers 5'*)
      why="pod $pod reports: $answer"
      return 1
      ;;
  esac
  warn '/health/ could not be queried; relying on the readiness of the pods alone'
}
ready_pod() { pods "$moving" "$target_image" "$new_hash" | sed -n "/${US}True$US/{s/$US.*//p;q;}"; }
ask_pages() { # ask_pages [SERVICE:PORT]: asks for a page with the public hosts. Fails and sets why if none gets one.
  # /health/ does not tell: it is answered whatever the Host. One host may be newer than the settings that come back.
  local hosts pod word host status rest good='' bad=''
  hosts=$(fields "$HOSTS" ingress $APP --ignore-not-found 2>/dev/null) || return 0
  [[ $hosts ]] || return 0
  pod=$(ready_pod)
  [[ $pod ]] || return 0
  # shellcheck disable=SC2086 # one word for each host
  while read -r word host status rest; do
    [[ $word == page && $status =~ ^[0-9]+$ ]] || continue
    if ((status >= 200 && status < 400)); then good="$good $host"; else bad="$bad, $host: $status"; fi
  done <<<"$(kube exec "$pod" -c $APP -- python -c "$PAGE" "${1:-}" $hosts 2>&1 || true)"
  if [[ $good ]]; then
    say "  pages answer with the host$good"
    [[ ! $bad ]] || warn "Pages fail with the host ${bad#, }"
  elif [[ $bad ]]; then
    why="pages fail with the public host (${bad#, })"
    return 1
  else
    warn 'No page could be requested with the public host'
  fi
}
passed() { # passed WHO PATH ANSWER
  say "  $1 answers /$2: $3"
  is_target "$3" || warn "it reports version $(reported_version "$3"), not $target"
}
is_target() { # is_target ANSWER: whether it reports the target's version, or none
  local reported
  reported=$(reported_version "$1")
  [[ ! $reported || $reported == "$target" ]]
}
reported_version() { printf '%s' "$1" | sed -n 's/.*"version": *"\([^"]*\)".*/\1/p'; }

# Undo what failed. Each of these ends the script.

restore_template() { # Rolling: pods of the running revision that are still there serve meanwhile.
  local failure=$why
  explain "$deployment" "$target_image" "$new_hash"
  mark_target_bad "failed: $failure"
  phase=restoring
  say "Restoring $running"
  if set_template "$deployment" "$running_set" "$running_image" "rollback to $target failed" &&
    wait_until_ready "$deployment" "$running_image" "$running_hash"; then
    fail $ROLLED_BACK "$target did not become ready: $failure. $running is still serving. $(next_step)"
  fi
  is_complete "$deployment" || true
  if [[ ${available:-0} != 0 ]]; then
    fail $NEEDS_HELP "$target did not become ready: $failure. $available of $wanted replicas are serving." \
      "$running could not be restored: $why. $(next_step)"
  fi
  fail $NEEDS_HELP "$target did not become ready: $failure. $running could not be restored: $why." \
    "Nothing is serving. $(next_step)"
}
stop_idle_colour() { # Blue-green, before the traffic moved.
  explain "$moving" "$target_image" "$new_hash"
  phase=restoring
  forget_before "$moving"
  mark_target_bad "failed: $why"
  change scale deployment "$moving" --replicas="$idle_replicas" || true
  fail $ROLLED_BACK "$target did not become ready: $why. $running kept all traffic and is serving. $(next_step)"
}
switch_back() { # Blue-green, after the traffic moved.
  phase=restoring
  switch_traffic "$colour" ||
    fail $NEEDS_HELP "$target is not serving: $why. The traffic could not be switched back; see above." \
      "Next: $(kubectl_here) get pods -l app=$APP"
  forget_before "$moving"
  mark_target_bad "failed: $why"
  fail $ROLLED_BACK "$target is not serving: $why. The traffic is back on $running. $(next_step)"
}
next_step() { printf 'Next: rollback.sh --list %s' "$namespace"; }
fail() { # fail CODE MESSAGE...
  record failed
  die "$@"
}
explain() { # explain DEPLOYMENT IMAGE [HASH]: shows which of its pods are not ready, with their events and logs
  local name ready rest
  fields "$REPLICA_FAILURE" deployment "$1" 2>/dev/null || true # as when a quota is used up, and there is no pod
  while IFS=$US read -r name ready rest; do
    [[ $name && $ready != True ]] || continue
    headline "Pod $name is not ready:"
    fields "$EVENTS" events --field-selector "involvedObject.name=$name,type=Warning" 2>/dev/null | tail -n 5 || true
    last_log "$name" | sed 's/^/  | /'
  done <<<"$(pods "$1" "$2" "${3:-}" 2>/dev/null || true)"
}
last_log() { # last_log POD: tries twice, as in a crash loop one container's log goes while the next one's comes
  local previous text
  for previous in true false true false; do
    text=$(kube logs "$1" -c $APP --previous=$previous --tail=400 2>/dev/null) || continue
    if [[ $text == "$LOST_LOG"* ]]; then
      sleep $POLL_SECONDS
    elif [[ $text ]]; then
      printf '%s\n' "$text" | telling_lines
      return 0
    fi
  done
  kube logs "$1" -c $APP --tail=20 2>&1 || true # or why there is none
}
telling_lines() { # Prints the last 20 lines that are not of probes or of requests without a server error.
  sed -e '/"logger": *"django\.request"/{' -e '/"message": *"[A-Za-z ]*: \/health\//d' -e '}' \
    -e '/"logger": *"gunicorn\.access"/{' -e '/"status": *5[0-9][0-9]/!d' -e '/"path": *"\/health\//d' -e '}' |
    tail -n 20
}

# Settle

settle() { # Marks what was left, shows the pods, records the rollback. The lock is released at the exit.
  if [[ $colour ]]; then
    show_in_preview "$colour"
    forget_before "$deployment"
  fi
  mark_left
  mark_live
  set_cronjobs
  return_writes
  trap '' INT TERM HUP
  kube get pods -l "app=$APP${colour:+,colour=$idle_colour}" || true
  record succeeded
  if [[ $dry ]]; then
    say 'Dry run: the cluster accepts the changes. Nothing was changed.'
  else
    printf '%sRollback completed successfully%s\n' "$green" "$plain"
  fi
}
show_in_preview() { # show_in_preview COLOUR: the one without traffic, if there is a preview
  [[ $(kube get service "$APP-preview" --ignore-not-found -o name || true) ]] || return 0
  select_colour "$APP-preview" "$1" || warn "Could not point service/$APP-preview to $1"
}
set_cronjobs() { # The scheduled tasks run the version that is live, with its ConfigMaps.
  local maps tasks map name from container failed=''
  if [[ $target_set ]]; then
    maps=$(fields "$CONFIG_MAPS" replicaset "$target_set" || true)
  else
    maps=$(fields "$CONFIG_MAPS" deployment "$moving" || true)
  fi
  tasks=$(patiently kube get cronjobs -l "app=$APP-tasks" -o "jsonpath=$TASKS") || failed=' all of them'
  while read -r name from; do
    [[ $name ]] || continue
    container="\"name\":\"$APP\",\"image\":$(json "$target_image")"
    for map in $maps; do # the name of a ConfigMap ends in a hash of its content
      from=$(printf '%s' "$from" | sed "s/\"name\":\"${map%-*}-[a-z0-9]*\"/\"name\":\"$map\"/")
    done
    container="{$container${from:+,\"envFrom\":$from}}"
    change patch cronjob "$name" --type=strategic -p "$(
      printf '{"spec":{"jobTemplate":{"spec":{"template":{"spec":{"containers":[%s]}}}}}}' "$container"
    )" || failed="$failed cronjob/$name"
  done <<<"$tasks"
  [[ ! $failed ]] || warn "These CronJobs keep their version and settings:$failed. To set the version:" \
    "$(kubectl_here) set image cronjobs -l app=$APP-tasks $APP=$target_image"
}
return_writes() { # With a database per colour: moves the writes back from the one of the release that was left.
  # Last, as the target can run on either, and the release that was left on its own alone. Whatever fails here, the
  # target serves and no write is lost.
  local code='' log left
  [[ $writes_move ]] || return 0
  say 'Moving the writes back to the database that they came from'
  if [[ $dry ]]; then
    say "  would run: $(command_here rollback)"
    return 0
  fi
  phase=writes
  left=$((switched_at + DRAIN_SECONDS - SECONDS))
  if ((left > 0)); then sleep "$left"; fi # requests in flight
  if ! end_command || ! create_command rollback; then
    writes_stay 'The Job could not be created; see above'
  elif ! wait_for_command; then
    end_command || true
    writes_stay "job/$COMMANDS: $why"
  else
    log=$(kube logs "job/$COMMANDS" -c $APP --tail=5 2>&1 || true)
    printf '%s\n' "$log" | sed 's/^/  | /'
    case $code$log in
      0* | 6*' takes the writes. '*) ;; # the latter: what was written since has not arrived at the other one yet
      [345]*) writes_stay 'They were not moved; see above' ;; # another command is at work; refused; undone
      *)
        fail $NEEDS_HELP "$target has the traffic, but the database may not take writes: manage.py bluegreen rollback" \
          "exited with code $code; see above. Next: $(command_here recover)"
        ;;
    esac
  fi
}
create_command() { # create_command COMMAND: creates the Job from the CronJob of this command of manage.py bluegreen
  local template
  template=$(patiently kube get cronjob "$COMMANDS-$1" -o 'jsonpath={.spec.jobTemplate}') || return 1
  template=$(printf '%s' "${template#\{}" | sed "s/\"metadata\":{/&\"name\":\"$COMMANDS\",/") # the first, the Job's
  printf '{"apiVersion":"batch/v1","kind":"Job",%s\n' "$template" | kube create --validate=false -f - >/dev/null
}
wait_for_command() { # Sets code, the Job's exit code. Fails and sets why if it does not come to its end.
  local start=$SECONDS waiting state
  why=''
  while true; do
    renew_lock
    IFS=$US read -r code waiting state <<<"$(fields "$COMMAND" pods -l "job-name=$COMMANDS" 2>/dev/null || true)"
    if [[ $code ]]; then
      end_progress
      return 0
    fi
    if [[ $waiting && $FATAL_WAITING_REASONS == *" $waiting"$'\n'* ]]; then why=$waiting; fi
    if ((SECONDS - start >= timeout)); then why="not done after $timeout s"; fi
    if [[ $why ]]; then
      end_progress
      return 1
    fi
    progress "job/$COMMANDS ${state:-is starting} ($((SECONDS - start)) of $timeout s)"
    sleep $POLL_SECONDS
  done
}
end_command() { # Ends the Job that another run has left: its command returns the writes to where they were.
  local start=$SECONDS
  change delete job $COMMANDS --ignore-not-found --cascade=foreground --wait=false || return 1
  while [[ $(patiently kube get job $COMMANDS --ignore-not-found -o name) ]]; do
    ((SECONDS - start < 90)) || return 1 # its grace period is over then
    renew_lock
    sleep $POLL_SECONDS
  done
}
writes_stay() { # writes_stay WHY
  warn "The writes stay in the database of $running, where $target works as well. $1. To move them:" \
    "$(command_here rollback)"
}
command_here() { printf '%s create job bluegreen-%s --from=cronjob/%s-%s' "$(kubectl_here)" "$1" $COMMANDS "$1"; }
mark_left() { # Records when and why the revision was left; with a reason, it stops being a rollback target.
  [[ $running_set && $running_set != "$target_set" ]] || return 0
  if [[ $reason && ! $keep ]]; then
    mark_bad "$running_set" "$running_hash" "$reason"
  elif [[ ! $target_left ]]; then # else the rollback that left the target is undone, which tells nothing of this one
    note "$running_set" "$BAD=$running_hash $(now) ${reason:-by ${owner%% *}}"
  fi
}
mark_live() { # What is live is not left any more. Another colour's copy of a good template is as good.
  local set
  for set in "$target_set" "${new_set:-}"; do
    if [[ $set && $target_left ]]; then note "$set" "$BAD-"; fi
  done
  if [[ $verified && ${new_set:-} && $new_set != "$target_set" ]]; then
    note "$new_set" "$GOOD=$target $new_hash"
    if [[ $own_database ]]; then note "$target_set" "$GOOD-"; fi # as a rollback to it would lead to the same again
  fi
}
mark_target_bad() { # mark_target_bad WHY
  if [[ $target_set ]] && find_set "$target_set"; then mark_bad "$target_set" "$its_hash" "$1"; fi
  if [[ ${new_set:-} && $new_set != "$target_set" ]]; then mark_bad "$new_set" "$new_hash" "$1"; fi
}
mark_bad() { # mark_bad REPLICASET HASH WHY: --previous never rolls back to it
  note "$1" "$GOOD-" "$BAD=$2 $(now) $3"
}
note() { # note REPLICASET ANNOTATION...
  change annotate replicaset "$@" --overwrite || warn "Could not mark replicaset/$1"
}
forget_before() { # forget_before DEPLOYMENT: no run of manage.py deploy goes on there
  change annotate deployment "$1" "$BEFORE-" || warn "Could not remove $BEFORE from deployment/$1"
}

# The end, whatever it is

finish() { # Releases the lock, and says what state an unexpected failure leaves.
  local code=$?
  trap - EXIT INT TERM HUP
  end_progress
  slow_down
  release_lock
  case $code in
    [02-6] | 130) exit "$code" ;; # any other is of a command that was not expected to fail, and has said why
  esac
  if [[ $phase == checks ]]; then refuse 'Failed; see above.'; fi
  die $NEEDS_HELP "Failed while rolling back to $target; see above. $LOOK $namespace"
}
interrupted() {
  end_progress
  trap '' INT TERM HUP
  case $phase in
    checks) die $INTERRUPTED 'Interrupted. Nothing was changed.' ;;
    idle)
      die $INTERRUPTED "Interrupted. $running still has all traffic; deployment/$moving is starting $target" \
        "without traffic. To resume, run the same command again."
      ;;
    moving)
      die $INTERRUPTED "Interrupted. deployment/$moving is between $running and $target; pods that are ready serve." \
        "To resume, run the same command with --force; to return: rollback.sh $running $namespace --force"
      ;;
    switching) die $INTERRUPTED "Interrupted while switching the traffic from $running to $target. $LOOK $namespace" ;;
    verifying) die $INTERRUPTED "Interrupted. $target has the traffic but was not verified. $LOOK $namespace" ;;
    restoring) die $INTERRUPTED "Interrupted while restoring $running. $LOOK $namespace" ;;
    writes)
      die $INTERRUPTED "Interrupted. $target has the traffic and was verified. The writes may still be in the" \
        "database of $running, where it works as well. To move them: $(command_here rollback)"
      ;;
  esac
}

# The lock: a Lease, shared with manage.py deploy. https://kubernetes.io/docs/concepts/architecture/leases/

acquire_lock() { # Sets owner, and locked once the lock is ours. Without the right to Leases it only warns.
  local found version holder since renewed seconds by_hand purpose held
  owner="$(one_line "${USER:-$(id -un)}" 50 | tr ' ' '-')@$(hostname 2>/dev/null || echo unknown) rollback.sh $$"
  if ! found=$(fields "$LOCK" lease $LEASE --ignore-not-found 2>&1); then
    warn "The lock cannot be read; continuing without it: $found"
    return 0
  elif [[ ! $found ]]; then
    create_lock
    return 0
  fi
  IFS=$US read -r version holder since renewed seconds by_hand purpose <<<"$found"
  holder=$(unquoted "$holder") purpose=$(unquoted "$purpose")
  # manage.py deploy runs this script under the lock that it holds already.
  if [[ $holder && $holder == "${DEPLOY_LOCK_HOLDER:-}" ]]; then return 0; fi
  held="the lock since ${since:-an unknown time}${purpose:+ for: $purpose}"
  seconds=${seconds:-$LEASE_SECONDS} renewed=$(epoch "${renewed:-1970-01-01T00:00:00Z}")
  if [[ $by_hand == '"true"' ]] || [[ $holder && $(($(epoch "$(now)") - renewed)) -le $seconds ]]; then
    die $LOCKED "${holder:-Someone} has held $held.
Wait for it to be released, or break it if you are sure: $(kubectl_here) delete lease $LEASE
Nothing was changed."
  fi
  if [[ $holder ]]; then warn "Taking over from $holder, who held $held and has stopped renewing it"; fi
  if [[ $dry ]]; then return 0; fi
  if ! found=$(lease "$version" | kube replace --validate=false -f - 2>&1); then lost_race " ($found)"; fi
  locked=1
}
create_lock() {
  local answer
  if [[ $dry ]]; then return 0; fi
  if answer=$(lease | kube create --validate=false -f - 2>&1); then
    locked=1
    return 0
  fi
  case $answer in *AlreadyExists* | *'already exists'*) lost_race ;; esac
  warn "The lock cannot be acquired; continuing without it: $answer"
}
lost_race() { die $LOCKED "Someone else has just taken the lock. Try again. Nothing was changed.${1:-}"; }
lease() { # lease [RESOURCE VERSION]: prints the Lease; with a resource version, only one of two writers succeeds
  local time
  time=$(json "$(micro_time)")
  printf '{"apiVersion":"coordination.k8s.io/v1","kind":"Lease","metadata":{"name":"%s"' $LEASE
  printf ',"annotations":{"%s":%s}%s}' $PURPOSE "$(json "rollback to $target")" "${1:+,\"resourceVersion\":\"$1\"}"
  printf ',"spec":{"holderIdentity":%s,"leaseDurationSeconds":%s' "$(json "$owner")" $LEASE_SECONDS
  printf ',"acquireTime":%s,"renewTime":%s}}\n' "$time" "$time"
}
renew_lock() { # Every ten seconds at most.
  [[ $locked ]] || return 0
  ((SECONDS - ${renewed_at:-0} >= 10)) || return 0
  renewed_at=$SECONDS
  patch_lock renewTime "$(micro_time)" || warn 'Could not renew the lock'
}
release_lock() {
  [[ $locked ]] || return 0
  locked=''
  patch_lock holderIdentity '' || true
}
patch_lock() { # patch_lock FIELD VALUE: only while the lock is ours; the "test" of RFC 6902 makes that one step
  local ours step
  ours="{\"op\":\"test\",\"path\":\"/spec/holderIdentity\",\"value\":$(json "$owner")}"
  step="{\"op\":\"replace\",\"path\":\"/spec/$1\",\"value\":$(json "$2")}"
  kube patch lease $LEASE --type=json -p "[$ours,$step]" >/dev/null 2>&1
}

# The ledger, if there is one. Whatever it answers, the rollback is done.

record() { # record RESULT
  local strategy=rolling revision=''
  local id body http='' answer=''
  [[ ${LEDGER_URL:-} && ! $dry ]] || return 0
  if [[ $colour ]]; then strategy=blue-green; fi
  if find_set "$target_set"; then revision=$its_hash; fi
  body="\"environment\":$(json "$environment"),\"release\":\"$target\",\"strategy\":\"$strategy\",\"kind\":\"rollback\""
  body="{$body,\"revision\":\"$revision\",\"actor\":$(json "${owner%% *}"),\"reason\":$(json "$reason")}"
  if ! can_record || ! api deployments "$body"; then
    warn "This rollback is not in the ledger: $(problem)
The ledger still shows the version before it. docs/operations.md says how to record it by hand."
    return 0
  fi
  id=$(printf '%s' "$answer" | sed -n 's/^[^0-9]*"id": *\([0-9][0-9]*\).*/\1/p')
  if [[ $id ]] && api "deployments/$id/start" '{}' && api "deployments/$id/finish" "{\"result\":\"$1\"}"; then
    say "Recorded in the ledger as deployment $id."
  else
    warn "Deployment $id is in the ledger but could not be marked as $1: $(problem)
It blocks the next deployment to $environment until it is finished; docs/api.md says how."
  fi
}
can_record() { # Sets answer if not.
  if [[ ! ${LEDGER_TOKEN:-} ]]; then
    answer='LEDGER_TOKEN is not set'
  elif ! command -v curl >/dev/null; then
    answer='curl not found; install it'
  elif ! is_private "$LEDGER_URL"; then
    answer='LEDGER_URL is invalid: expected https://, because over http:// anyone in between can read the token'
  else
    return 0
  fi
  return 1
}
is_private() { # is_private URL: whether nobody in between can read what is sent there
  local host=${1#http://}
  host=${host%%[/?#\\]*}
  host=${host##*@}
  case $1 in
    https://*) return 0 ;;
    http://*) [[ $host =~ ^(localhost|127(\.[0-9]+){3}|\[::1\])(:[0-9]+)?$ ]] ;;
    *) return 1 ;;
  esac
}
api() { # api PATH JSON: sets answer and http, its status. The token goes to standard input: command lines are public.
  answer=$(printf 'header = "Authorization: Bearer %s"\n' "$(printf '%s' "$LEDGER_TOKEN" | tr -cd '!-~')" |
    curl --silent --show-error --connect-timeout 1 --max-time 3 --config - -H 'Content-Type: application/json' \
      --data "$2" --write-out '\n%{http_code}' "${LEDGER_URL%/}/api/$1" 2>&1) || true
  http=${answer##*$'\n'} answer=${answer%$'\n'*}
  [[ $http == 2?? ]]
}
problem() { # Prints the last answer for people: the problem's detail (RFC 9457), or what curl says.
  local detail=${answer#*\"detail\": \"}
  if [[ $detail == "$answer" ]]; then
    detail=$(printf '%s' "$answer" | tr '\n' ' ' | cut -c 1-200)
  else
    detail=${detail%%\"*}
  fi
  case $http in
    '' | 000) printf '%s.' "${detail:-no answer}" ;;
    3??) printf 'HTTP %s, a redirect; set LEDGER_URL to its final address.' "$http" ;;
    *) printf 'HTTP %s: %s' "$http" "${detail:-no details}" ;;
  esac
}

# kubectl

kube() { kubectl --request-timeout=20s ${context:+"--context=$context"} "--namespace=$namespace" "$@"; }
kubectl_here() { printf '%s' "kubectl${context:+ --context=$context} --namespace=$namespace"; }
fields() { # fields TEMPLATE KIND [NAME] [OPTION...]
  local template=$1
  shift
  patiently kube get "$@" -o "go-template=$VARIABLES$template"
}
patiently() { # patiently COMMAND...: repeats it for a minute while the API server does not answer
  # A refusal is an answer. For what may be done twice: reads, and changes, each of which says how something shall be.
  # Before the first change nothing is waited for.
  local error until=$((SECONDS + PATIENCE_SECONDS))
  while ! { error=$("$@" 2>&1 >&3 3>&-); } 3>&1; do
    if [[ $phase == checks || $error =~ $FINAL || ! $error =~ $NO_CONNECTION|$NO_ANSWER|$CUT_OFF ]] ||
      ((SECONDS >= until)); then
      printf '%s\n' "$error" >&2
      return 1
    fi
    printf '  The API server does not answer: %s; trying again, %s s left\n' "${error##*$'\n'}" $((until - SECONDS)) >&4
    sleep $POLL_SECONDS
  done
  [[ ! $error ]] || printf '%s\n' "$error" >&2
}
change() { # change KUBECTL_ARGUMENT...: changes the cluster; with --dry-run says so, and has the server validate it
  if [[ $dry ]]; then
    say "  would run: $(kubectl_here) $(shell_quoted "$@")"
    kube "$@" --dry-run=server >/dev/null
  else
    patiently kube "$@" >/dev/null
  fi
}
tag_of() { # tag_of IMAGE: prints the version in its name; a digest alone is its own
  local name=${1##*/}
  case ${name%%@*} in
    *:*) name=${name%%@*} && printf '%s' "${name#*:}" ;;
    *) printf '%s' "${name#*@}" ;;
  esac
}
repository_of() { # repository_of IMAGE: prints its name with the registry, without tag and digest
  local name=${1%%@*} last
  last=${name##*/}
  printf '%s' "${name%"$last"}${last%%:*}"
}

# Messages

choose_colours() {
  bold='' red='' green='' yellow='' plain=''
  if [[ -t 1 && -t 2 && -z ${NO_COLOR:-} && ${TERM:-dumb} != dumb ]]; then
    bold=$'\033[1m' red=$'\033[31m' green=$'\033[32m' yellow=$'\033[33m' plain=$'\033[0m'
  fi
}
say() { printf '%s\n' "$*"; }
headline() { printf '%s%s%s\n' "$bold" "$*" "$plain"; }
warn() { printf '%sWarning: %s%s\n' "$yellow" "$*" "$plain" >&2; }
die() { # die CODE MESSAGE...
  local code=$1
  shift
  printf '%s%s%s\n' "$red" "$*" "$plain" >&2
  exit "$code"
}
refuse() { die $REFUSED "$*" 'Nothing was changed.'; }
misused() { die $USAGE "$*" 'See rollback.sh --help. Nothing was changed.'; }
progress() { # progress MESSAGE...: one line that changes on a terminal, else a line each time the message changes
  if [[ -t 1 ]]; then
    printf '\r\033[K  %s' "$*"
  elif [[ $* != "$shown" ]]; then
    printf '  %s\n' "$*"
  fi
  shown=$*
}
end_progress() {
  if [[ -t 1 && $shown ]]; then printf '\n'; fi
  shown=''
}

# Text

one_line() { # one_line TEXT CHARACTERS: made to fit, as clean() of settings/text.py does; no text is refused
  local text broken character=$'[^\x80-\xbf][\x80-\xbf]*' head tail
  # Control characters and line breaks become spaces; surrogates, noncharacters and direction overrides go.
  text=$(printf '%s' "$1" | tr '\001-\037\177' ' ' | sed $'s/\xc2[\x80-\x9f]/ /g; s/\xe2\x80[\xa8\xa9]/ /g
    s/\xe2\x80[\xaa-\xae]//g; s/\xe2\x81[\xa6-\xa9]//g; s/\xed[\xa0-\xbf][\x80-\xbf]//g
    s/\xef\xb7[\x90-\xaf]//g; s/\xef\xbf[\xbe\xbf]//g; s/[\xf0-\xf4][\x8f\x9f\xaf\xbf]\xbf[\xbe\xbf]//g')
  broken=$(printf '%s' "$text" | sed $'s/[\xc2-\xdf][\x80-\xbf]/ /g; s/\xe0[\xa0-\xbf][\x80-\xbf]/ /g
    s/[\xe1-\xef][\x80-\xbf][\x80-\xbf]/ /g; s/\xf0[\x90-\xbf][\x80-\xbf][\x80-\xbf]/ /g
    s/[\xf1-\xf3][\x80-\xbf][\x80-\xbf][\x80-\xbf]/ /g; s/\xf4[\x80-\x8f][\x80-\xbf][\x80-\xbf]/ /g' |
    tr -d '\001-\177')
  if [[ $broken ]]; then text=$(printf '%s' "$text" | tr -d '\200-\377'); fi # not UTF-8, which JSON has to be
  text=$(printf '%s' "$text" | sed 's/^ *//; s/ *$//')
  if (($(printf '%s' "$text" | tr -d '\200-\277' | wc -c) > $2)); then
    head=$(($2 / 2)) tail=$((($2 - 1) / 2)) # a regular expression repeats 255 times at most
    text=$(printf '%s' "$text" | sed "s/^\(\($character\)\{$head\}\($character\)\{$tail\}\).*/\1/; s/ *\$//")…
  fi
  printf '%s' "$text"
}
json() { # json TEXT: prints it as a JSON string
  printf '"%s"' "$(printf '%s' "$1" | tr '\001-\037\177' ' ' | sed 's/\\/\\\\/g; s/"/\\"/g')"
}
unquoted() { # unquoted GO_STRING: prints its text; what cannot be printed stays escaped, as a terminal needs it
  printf '%s' "$1" | sed 's/^"//; s/"$//; s/\\"/"/g; s/\\\\/\\/g'
}
shell_quoted() { # shell_quoted WORD...: prints them as one command, quoted where the shell needs it
  local word all='' quote="'" quoted="'\\''"
  for word; do
    case $word in
      *[!A-Za-z0-9_./:=@-]* | '') all="$all '${word//$quote/$quoted}'" ;;
      *) all="$all $word" ;;
    esac
  done
  printf '%s' "${all# }"
}

# Times are RFC 3339 in UTC, counted in seconds since 1970: GNU's and BSD's date have nothing else in common.

now() { date -u +%Y-%m-%dT%H:%M:%SZ; }
micro_time() { date -u +%Y-%m-%dT%H:%M:%S.000000Z; }
epoch() { # epoch TIME
  local date=${1%%T*} time=${1#*T} year month day days
  year=${date%%-*} month=${date#*-} day=${date##*-} time=${time%%[.Z]*}
  month=$((10#${month%%-*})) day=$((10#$day)) year=$((10#$year))
  if ((month < 3)); then year=$((year - 1)) month=$((month + 12)); fi
  days=$((365 * year + year / 4 - year / 100 + year / 400 + (153 * (month - 3) + 2) / 5 + day - 1 - 719468))
  printf '%s' $((days * 86400 + 10#${time:0:2} * 3600 + 10#${time:3:2} * 60 + 10#${time:6:2}))
}
age() { # age TIME
  local seconds=$(($(epoch "$(now)") - $(epoch "$1")))
  if ((seconds < 120)); then
    printf '%ss' "$seconds"
  elif ((seconds < 7200)); then
    printf '%sm' $((seconds / 60))
  elif ((seconds < 172800)); then
    printf '%sh' $((seconds / 3600))
  else
    printf '%sd' $((seconds / 86400))
  fi
}

main "$@"
