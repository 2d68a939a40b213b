#!/usr/bin/env bash
# Brings back an earlier version with bash (3.2 or newer) and kubectl (1.20 or newer) alone: for when nothing else works.
# docs/operations.md explains it. `rollback.sh --help` says how it is called.
set -euo pipefail
export LC_ALL=C # [a-z] is these letters alone, and tr takes bytes

readonly APP=backstagetest1 LEASE=backstagetest1-deploy LEASE_SECONDS=60
readonly GOOD=backstagetest1/verified-good GONE=backstagetest1/withdrawn BEFORE=backstagetest1/before
readonly BREAK=backstagetest1/schema-break BY_HAND=backstagetest1/by-hand PURPOSE=backstagetest1/purpose
readonly LIVE=backstagetest1/live-since
readonly CAUSE=kubernetes.io/change-cause REVISION=deployment.kubernetes.io/revision
readonly DONE=0 USAGE=2 LOCKED=3 REFUSED=4 WENT_BACK=5 NEEDS_A_PERSON=6 INTERRUPTED=130
readonly POLL=1 # seconds between two looks
readonly TEXT=500 # characters of a reason that the ledger takes
# The rule for versions is that of ledger/versions.py; a test compares the two.
readonly VERSION='[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}'
# What kubectl prints is read by fields. Anybody's text comes as a Go string, {{printf "%q"}}, which holds no control
# character; so this one separates fields, and a line break separates records.
readonly US=$'\037'

usage() {
  cat <<'EOF'
Usage: rollback.sh <previous_version> [namespace]
       rollback.sh --list | --previous  [namespace]

Rolls back to a version that ran before, and waits until it serves. Without a version it lists the versions that the
cluster remembers and, on a terminal, asks which one. The namespace is "default" unless given.

  --list            list the versions to roll back to, and change nothing
  --previous        roll back to the version that was live before this one and was verified good
  --dry-run         print each command and have the cluster validate it, without changing anything
  --yes             do not ask for confirmation, not even for production
  --reason TEXT     why; kept as the change cause, and in the ledger (one line, 500 characters)
  --timeout SECONDS how long the version may take to become ready (default 180)
  --context NAME    the kubectl context (default: the current one)
  --image IMAGE     the full image name, for a version that the cluster no longer remembers
  --force           roll back even during a rollout, or to a version that does not fit the database schema
  --help

examples:
  scripts/rollback.sh 1.4.0 backstagetest1-production
  scripts/rollback.sh --list backstagetest1-staging
  scripts/rollback.sh --previous backstagetest1-production --yes --reason "sign-in is broken"
  scripts/rollback.sh 1.4.0 backstagetest1-staging --dry-run

exit codes: 0 done; 2 wrong usage; 3 somebody else holds the lock; 4 refused before anything was changed;
  5 the version did not become ready, and the previous one serves; 6 failed, and needs a person;
  130 interrupted: the last line says what state it left.
With LEDGER_URL and LEDGER_TOKEN set, the rollback is recorded in the ledger. A ledger that is down never delays it.
EOF
}

# What people see

if [[ -t 1 && -t 2 && -z ${NO_COLOR:-} && ${TERM:-dumb} != dumb ]]; then
  bold=$'\033[1m' red=$'\033[31m' green=$'\033[32m' yellow=$'\033[33m' plain=$'\033[0m'
else
  bold='' red='' green='' yellow='' plain=''
fi
say() { printf '%s\n' "$*"; }
head_line() { printf '%s%s%s\n' "$bold" "$*" "$plain"; }
warn() { printf '%sWarning: %s%s\n' "$yellow" "$*" "$plain" >&2; }
die() { # die CODE MESSAGE...
  local code=$1
  shift
  printf '%s%s%s\n' "$red" "$*" "$plain" >&2
  exit "$code"
}
misused() { die $USAGE "$* See rollback.sh --help. Nothing was changed."; }
progress() { # on a terminal one line that changes, else a line for each news
  if [[ -t 1 ]]; then
    printf '\r\033[K  %s' "$*"
    shown=$*
  elif [[ $* != "${shown:-}" ]]; then
    printf '  %s\n' "$*"
    shown=$*
  fi
}
progress_ends() {
  if [[ -t 1 && ${shown:-} ]]; then printf '\n'; fi
  shown=''
}

# kubectl

context='' namespace=default dry=''
kube() { kubectl --request-timeout=20s ${context:+"--context=$context"} "--namespace=$namespace" "$@"; }
change() { # a command that changes the cluster; says so, and with --dry-run lets the server check it only
  if [[ $dry ]]; then
    say "  would run: kubectl${context:+ --context=$context} --namespace=$namespace $(words "$@")"
    kube "$@" --dry-run=server >/dev/null
  else
    kube "$@" >/dev/null
  fi
}
words() { # quoted where the shell would need it
  local word all='' quote="'" quoted="'\\''"
  for word; do
    case $word in
      *[!A-Za-z0-9_./:=@-]* | '') all="$all '${word//$quote/$quoted}'" ;;
      *) all="$all $word" ;;
    esac
  done
  printf '%s' "${all# }"
}
escaped() { # as the inside of a JSON string
  printf '%s' "$1" | tr '\001-\037\177' ' ' | sed 's/\\/\\\\/g; s/"/\\"/g'
}
unquoted() { # the text of a Go string; what cannot be printed stays escaped, which is what a terminal should get
  printf '%s' "$1" | sed 's/^"//; s/"$//; s/\\"/"/g; s/\\\\/\\/g'
}
one_line() { # one_line TEXT CHARACTERS: TEXT made to fit, as clean() of settings/text.py does it, so that it stops nothing
  local text broken character=$'[^\x80-\xbf][\x80-\xbf]*'
  # Control characters and line breaks become spaces; surrogates, noncharacters and direction overrides go.
  text=$(printf '%s' "$1" | tr '\001-\037\177' ' ' | sed $'s/\xc2[\x80-\x9f]/ /g; s/\xe2\x80[\xa8\xa9]/ /g
    s/\xe2\x80[\xaa-\xae]//g; s/\xe2\x81[\xa6-\xa9]//g; s/\xed[\xa0-\xbf][\x80-\xbf]//g
    s/\xef\xb7[\x90-\xaf]//g; s/\xef\xbf[\xbe\xbf]//g; s/[\xf0-\xf4][\x8f\x9f\xaf\xbf]\xbf[\xbe\xbf]//g')
  broken=$(printf '%s' "$text" | sed $'s/[\xc2-\xdf][\x80-\xbf]/ /g; s/\xe0[\xa0-\xbf][\x80-\xbf]/ /g
    s/[\xe1-\xef][\x80-\xbf][\x80-\xbf]/ /g; s/\xf0[\x90-\xbf][\x80-\xbf][\x80-\xbf]/ /g
    s/[\xf1-\xf3][\x80-\xbf][\x80-\xbf][\x80-\xbf]/ /g; s/\xf4[\x80-\x8f][\x80-\xbf][\x80-\xbf]/ /g' | tr -d '\001-\177')
  if [[ $broken ]]; then text=$(printf '%s' "$text" | tr -d '\200-\377'); fi # not UTF-8, which JSON must be
  text=$(printf '%s' "$text" | sed 's/^ *//; s/ *$//')
  if (($(printf '%s' "$text" | tr -d '\200-\277' | wc -c) > $2)); then
    text=$(printf '%s' "$text" | sed "s/^\(\($character\)\{$(($2 / 2))\}\($character\)\{$((($2 - 1) / 2))\}\).*/\1/; s/ *\$//")…
  fi
  printf '%s' "$text"
}
annotation() { # annotation KIND NAME KEY: empty if there is none
  kube get "$1" "$2" -o "go-template={{with .metadata.annotations}}{{with index . \"$3\"}}{{.}}{{end}}{{end}}"
}
tag_of() { # the version in an image's name; a digest alone is its own
  local name=${1##*/}
  case ${name%%@*} in
    *:*) name=${name%%@*} && printf '%s' "${name#*:}" ;;
    *) printf '%s' "${name#*@}" ;;
  esac
}
repository_of() { # the image's name without tag and digest, with its registry
  local name=${1%%@*} last
  last=${name##*/}
  printf '%s' "${name%"$last"}${last%%:*}"
}

readonly TIME='^[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}Z$'
# Times are RFC 3339 in UTC, and counted as seconds since 1970: GNU's and BSD's date agree on nothing else.
now() { date -u +%Y-%m-%dT%H:%M:%SZ; }
epoch() {
  local date=${1%%T*} time=${1#*T} year month day days
  year=${date%%-*} month=${date#*-} day=${date##*-} time=${time%%[.Z]*}
  month=$((10#${month%%-*})) day=$((10#$day)) year=$((10#$year))
  if ((month < 3)); then year=$((year - 1)) month=$((month + 12)); fi
  days=$((365 * year + year / 4 - year / 100 + year / 400 + (153 * (month - 3) + 2) / 5 + day - 1 - 719468))
  printf '%s' $((days * 86400 + 10#${time:0:2} * 3600 + 10#${time:3:2} * 60 + 10#${time:6:2}))
}
age() {
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

# What runs, and what ran

reach() { # one request, without the five of kubectl's discovery: a cluster that does not answer is known in ten seconds
  local said
  if ! said=$(kubectl --request-timeout=5s ${context:+"--context=$context"} get --raw /version 2>&1); then
    case $said in
      *orbidden*) ;; # it is there, and what is needed is asked next
      *) die $REFUSED "$said
The cluster is unreachable. Check the context ($shown_context) and the network. Nothing was changed." ;;
    esac
  fi
}
look() { # sets colour, deployment (the one that has the traffic), image, running, container_found
  local answer
  colour=$(kube get service "$APP" --ignore-not-found -o 'go-template={{with .spec.selector.colour}}{{.}}{{end}}') ||
    die $REFUSED "The cluster is unreachable: see above. Check the context ($shown_context) and the network. Nothing was changed."
  deployment=$APP${colour:+-$colour}
  answer=$(kube get deployment "$deployment" --ignore-not-found -o name) ||
    die $REFUSED "The cluster is unreachable: see above. Nothing was changed."
  if [[ ! $answer ]]; then
    die $REFUSED "Deployment $deployment not found in the namespace $namespace (context $shown_context), which has: $(
      kube get deployments -o 'go-template={{range .items}}{{.metadata.name}} {{end}}' 2>/dev/null || true
    ). Name the right one: rollback.sh VERSION NAMESPACE [--context NAME]. Nothing was changed."
  fi
  image=$(image_of "$deployment")
  [[ $image ]] || die $REFUSED "deployment/$deployment has no container named $APP. Nothing was changed."
  running=$(tag_of "$image")
}
image_of() {
  kube get deployment "$1" -o "go-template={{range .spec.template.spec.containers}}{{if eq .name \"$APP\"}}{{.image}}{{end}}{{end}}"
}
other_colour() { if [[ $colour == blue ]]; then printf green; else printf blue; fi; }

# shellcheck disable=SC2016 # these are variables of Go templates: https://pkg.go.dev/text/template
noted() { printf '{{with $set.metadata.annotations}}{{with index . "%s"}}{{printf "%%q" .}}{{end}}{{end}}' "$1"; }
# shellcheck disable=SC2016
# One line for each revision, what became live last comes first:
# live since, created, deployment, revision, image, verified, withdrawn, schema break, current, change cause
# A Deployment numbers a revision anew each time it becomes current. Two colours count each for itself, and traffic moves
# between them without a new revision: that is what the annotation is for. Without it, a revision was live from its creation.
revisions() {
  local name current live created rest
  for name in $APP ${colour:+"$APP-blue" "$APP-green"}; do
    [[ $name != "$APP" || ! $colour ]] || continue
    current=$(annotation deployment "$name" $REVISION 2>/dev/null) || continue
    kube get replicasets -l "app=$APP" -o "go-template={{range .items}}{{\$set := .}}{{range .metadata.ownerReferences}}{{if and (eq .kind \"Deployment\") (eq .name \"$name\")}}$(
      printf "%s$US"'{{$set.metadata.creationTimestamp}}'"$US{{.name}}$US%s$US%s$US%s$US%s$US%s$US"'{{with $set.metadata.annotations}}{{if eq (print (index . "%s")) "%s"}}current{{end}}{{end}}'"$US%s" \
        "$(noted $LIVE)" "$(noted $REVISION)" \
        "{{range \$set.spec.template.spec.containers}}{{if eq .name \"$APP\"}}{{printf \"%q\" .image}}{{end}}{{end}}" \
        "$(noted $GOOD)" "$(noted $GONE)" "$(noted $BREAK)" $REVISION "$current" "$(noted $CAUSE)"
    ){{\"\\n\"}}{{end}}{{end}}{{end}}"
  done | while IFS=$US read -r live created rest; do
    live=${live//\"/}
    [[ $created =~ $TIME ]] || continue
    [[ $live =~ $TIME ]] || live=$created
    printf '%s\n' "$live$US$created$US$rest"
  done | if [[ $colour ]]; then sort -r; else sort -t "$US" -k 4.2,4nr; fi
}
fields() { # reads the next revision; sets live, name, revision, its_image, good, gone, breaks, current, cause, version
  IFS=$US read -r live created name revision its_image good gone breaks current cause || return 1
  revision=${revision//\"/} its_image=${its_image//\"/} good=${good//\"/} breaks=${breaks//\"/}
  version=$(tag_of "$its_image")
}
versions() { # prints the history for people
  local live created name revision its_image good gone breaks current cause version state
  printf '%s%-9s %-20s %-6s %-14s %s%s\n' "$bold" REVISION VERSION AGE STATE 'CHANGE CAUSE' "$plain"
  while fields; do
    [[ $live ]] || continue
    if [[ $current && $name == "$deployment" && $good == "$version" ]]; then
      state="${green}running, good${plain} "
    elif [[ $current && $name == "$deployment" ]]; then
      state="${green}running${plain}       "
    elif [[ $good == "$version" ]]; then
      state="${green}verified good${plain} "
    elif [[ $gone ]]; then
      state="${red}rolled back${plain}   "
    else
      state='not verified  '
    fi
    cause=$(unquoted "$cause")
    printf '%-9s %-20s %-6s %s %s\n' "${revision:-?}${colour:+ ${name##*-}}" "$version" "$(age "$live")" "$state" "${cause:--}"
  done <<<"$past"
}
find_previous() { # sets suggested: what was live last, was verified good, and does not run
  local live created name revision its_image good gone breaks current cause version
  suggested=''
  while fields; do
    if [[ $version != "$running" && $good == "$version" && ! $suggested ]]; then suggested=$version; fi
  done <<<"$past"
}
find_version() { # sets found_image, verified, known and floor for $target, by when it was live last
  local live created name revision its_image good gone breaks current cause version found_time='' all='' broken
  found_image='' verified='' known='' floor=''
  while fields; do
    if [[ $breaks =~ ^$VERSION$ ]]; then all="$all $breaks"; fi
    case " $known " in *" $version "*) ;; *) known="$known $version" ;; esac
    [[ $version == "$target" ]] || continue
    if [[ ! $found_image ]]; then found_image=$its_image; fi
    if [[ $found_time < $live ]]; then found_time=$live; fi
    if [[ $good == "$target" ]]; then verified=1; fi
  done <<<"$past"
  # A release that was live for the last time before one of these came, or that is too long ago to be in the history,
  # does not fit the schema.
  for broken in $all; do
    if [[ $broken == "$target" ]]; then
      continue
    elif [[ ! $found_image ]]; then
      floor=$broken
    else
      while fields; do
        if [[ $version == "$broken" && $created > $found_time ]]; then floor=$broken; fi
      done <<<"$past"
    fi
  done
}

# The lock: a Lease, as manage.py deploy takes it. https://kubernetes.io/docs/concepts/architecture/leases/

locked='' owner="$(one_line "${USER:-$(id -un)}" 50 | tr ' ' '-')@$(hostname 2>/dev/null || echo unknown) rollback.sh $$"
lease() { # lease HOLDER PURPOSE [RESOURCE VERSION]: the Lease as YAML
  printf 'apiVersion: coordination.k8s.io/v1\nkind: Lease\nmetadata:\n  name: %s\n' $LEASE
  if [[ ${3:-} ]]; then printf '  resourceVersion: "%s"\n' "$3"; fi
  printf '  annotations: {%s: "%s"}\n' $PURPOSE "$(escaped "$2")"
  printf 'spec: {holderIdentity: "%s", leaseDurationSeconds: %s, acquireTime: "%s", renewTime: "%s"}\n' \
    "$(escaped "$1")" $LEASE_SECONDS "$(micro)" "$(micro)"
}
micro() { date -u +%Y-%m-%dT%H:%M:%S.000000Z; }
lock() {
  local said who since renewed seconds by_hand version purpose
  said=$(kube get lease $LEASE --ignore-not-found -o "go-template={{.metadata.resourceVersion}}$US{{with .spec.holderIdentity}}{{printf \"%q\" .}}{{end}}$US{{with .spec.acquireTime}}{{.}}{{end}}$US{{with .spec.renewTime}}{{.}}{{end}}$US{{with .spec.leaseDurationSeconds}}{{.}}{{end}}$US{{with .metadata.annotations}}{{with index . \"$BY_HAND\"}}{{printf \"%q\" .}}{{end}}{{end}}$US{{with .metadata.annotations}}{{with index . \"$PURPOSE\"}}{{printf \"%q\" .}}{{end}}{{end}}" 2>&1) || {
    warn "The lock cannot be read, so others are not kept out: $said"
    return 0
  }
  if [[ ! $said ]]; then
    if [[ $dry ]]; then return 0; fi
    if said=$(lease "$owner" "$purpose_text" | kube create --validate=false -f - 2>&1); then
      locked=1
      return 0
    fi
    case $said in
      *AlreadyExists* | *'already exists'*) die $LOCKED "Somebody else has just taken the lock. Try again. Nothing was changed." ;;
    esac
    warn "The lock cannot be taken, so others are not kept out: $said"
    return 0
  fi
  IFS=$US read -r version who since renewed seconds by_hand purpose <<<"$said"
  who=$(unquoted "$who") purpose=$(unquoted "$purpose")
  # manage.py deploy rolls back by this script, under the lock that it holds already
  if [[ $who && $who == "${DEPLOY_LOCK_HOLDER:-}" ]]; then return 0; fi
  if [[ $by_hand == '"true"' || ($who && $(($(epoch "$(now)") - $(epoch "${renewed:-1970-01-01T00:00:00Z}"))) -le ${seconds:-$LEASE_SECONDS}) ]]; then
    die $LOCKED "${who:-Somebody} has held the lock since ${since:-an unknown time}${purpose:+ for: $purpose}.
Wait for it, or break it if you are sure: kubectl${context:+ --context=$context} --namespace=$namespace delete lease $LEASE
Nothing was changed."
  fi
  if [[ $who ]]; then warn "$who had held the lock since ${since:-an unknown time}${purpose:+ for: $purpose}, and no longer renews it: its process has died"; fi
  if [[ $dry ]]; then return 0; fi
  if ! said=$(lease "$owner" "$purpose_text" "$version" | kube replace --validate=false -f - 2>&1); then
    die $LOCKED "Somebody else has just taken the lock. Try again. Nothing was changed. ($said)"
  fi
  locked=1
}
renew() { # at most every ten seconds; another's lock is left alone
  [[ $locked ]] || return 0
  ((SECONDS - ${renewed_at:-0} >= 10)) || return 0
  renewed_at=$SECONDS
  kube patch lease $LEASE --type=json -p "[{\"op\":\"test\",\"path\":\"/spec/holderIdentity\",\"value\":\"$(escaped "$owner")\"},{\"op\":\"replace\",\"path\":\"/spec/renewTime\",\"value\":\"$(micro)\"}]" >/dev/null 2>&1 ||
    warn 'The lock could not be renewed'
}
unlock() {
  [[ $locked ]] || return 0
  locked=''
  kube patch lease $LEASE --type=json -p "[{\"op\":\"test\",\"path\":\"/spec/holderIdentity\",\"value\":\"$(escaped "$owner")\"},{\"op\":\"replace\",\"path\":\"/spec/holderIdentity\",\"value\":\"\"}]" >/dev/null 2>&1 || true
}

# The rollout

pods_of() { # pods_of DEPLOYMENT IMAGE: a line for each pod that is not ending: name, ready, restarts, waiting, message, ended
  kube get pods -l "app=$APP${colour:+,colour=${1##*-}}" -o "go-template={{range .items}}{{if not .metadata.deletionTimestamp}}{{\$pod := .}}{{range .spec.containers}}{{if and (eq .name \"$APP\") (eq .image \"$2\")}}{{\$pod.metadata.name}}$US{{range \$pod.status.conditions}}{{if eq .type \"Ready\"}}{{.status}}{{end}}{{end}}$US{{range \$pod.status.containerStatuses}}{{if eq .name \"$APP\"}}{{.restartCount}}$US{{with .state.waiting}}{{.reason}}$US{{with .message}}{{printf \"%q\" .}}{{end}}{{else}}$US{{end}}$US{{with .lastState.terminated}}{{.reason}} {{.exitCode}}{{end}}{{end}}{{end}}{{\"\\n\"}}{{end}}{{end}}{{end}}{{end}}"
}
hopeless() { # hopeless DEPLOYMENT IMAGE: why its pods will not get ready; empty if they may
  local name ready restarts waiting message ended
  while IFS=$US read -r name ready restarts waiting message ended; do
    case $waiting in
      CrashLoopBackOff | ErrImagePull | ImagePullBackOff | InvalidImageName | ErrImageNeverPull | ImageInspectError | \
        CreateContainerConfigError | CreateContainerError | RunContainerError)
        printf 'pod %s: %s %s' "$name" "$waiting" "$(unquoted "$message")"
        return
        ;;
    esac
    if [[ $ready != True && ${restarts:-0} != 0 && $ended ]]; then
      printf 'pod %s ended (%s) and was restarted %s times' "$name" "$ended" "$restarts"
      return
    fi
  done <<<"$(pods_of "$1" "$2" 2>/dev/null || true)"
}
state_of() { # state_of DEPLOYMENT: generation, observed, wanted, all, updated, available, paused
  kube get deployment "$1" -o "go-template={{.metadata.generation}}$US{{with .status.observedGeneration}}{{.}}{{else}}0{{end}}$US{{.spec.replicas}}$US{{with .status.replicas}}{{.}}{{else}}0{{end}}$US{{with .status.updatedReplicas}}{{.}}{{else}}0{{end}}$US{{with .status.availableReplicas}}{{.}}{{else}}0{{end}}$US{{with .spec.paused}}paused{{end}}"
}
is_complete() { # is_complete DEPLOYMENT: as `kubectl rollout status` has it; sets wanted, updated, available
  local generation observed all
  IFS=$US read -r generation observed wanted all updated available paused <<<"$(state_of "$1" 2>/dev/null || true)"
  [[ ${generation:-} ]] || return 1
  ((observed >= generation && updated >= wanted && all <= updated && available >= updated))
}
wait_for() { # wait_for DEPLOYMENT IMAGE: 0 when all is ready; else 1, and why is set
  local began=$SECONDS
  why=''
  while true; do
    renew
    if is_complete "$1"; then
      progress "$updated of $wanted replicas are updated and $available available, after $((SECONDS - began)) s"
      progress_ends
      return 0
    fi
    progress "${updated:-?} of ${wanted:-?} replicas are updated, ${available:-?} available ($((SECONDS - began)) of $timeout s)"
    why=$(hopeless "$1" "$2")
    if [[ ! $why ]] && ((SECONDS - began >= timeout)); then why="not ready after $timeout s"; fi
    if [[ $why ]]; then
      progress_ends
      return 1
    fi
    sleep $POLL
  done
}
last_words() { # last_words POD: in a crash loop one container's log goes while the next one's comes, so it looks twice
  local previous text
  for previous in true false true false; do
    text=$(kube logs "$1" -c $APP --previous=$previous --tail=20 2>/dev/null) || continue
    if [[ $text == 'unable to retrieve container logs'* ]]; then
      sleep 1
    elif [[ $text ]]; then
      printf '%s\n' "$text"
      return 0
    fi
  done
  kube logs "$1" -c $APP --tail=20 2>&1 || true # why there is none
}
explain() { # explain DEPLOYMENT IMAGE: which of its pods are not ready, and what they and the cluster say
  local name ready rest
  # No pod at all, as with a quota that is used up
  kube get deployment "$1" -o 'go-template={{range .status.conditions}}{{if eq .type "ReplicaFailure"}}  {{.reason}}: {{.message}}{{"\n"}}{{end}}{{end}}' 2>/dev/null || true
  while IFS=$US read -r name ready rest; do
    [[ $name && $ready != True ]] || continue
    head_line "Pod $name is not ready:"
    kube get events --field-selector "involvedObject.name=$name,type=Warning" \
      -o 'go-template={{range .items}}  {{.reason}}: {{.message}}{{"\n"}}{{end}}' 2>/dev/null | tail -n 5 || true
    last_words "$name" | sed 's/^/  | /'
  done <<<"$(pods_of "$1" "$2" 2>/dev/null || true)"
}
to_image() { # to_image DEPLOYMENT IMAGE CAUSE VERIFIED [REPLICAS]: one write, so that the new revision gets its notes with it
  local good=null live=null
  if [[ $4 ]]; then good="\"$4\""; fi
  if [[ ! $colour ]]; then live="\"$(now)\""; fi # a colour becomes live when the traffic moves
  change patch deployment "$1" --type=strategic -p "{\"metadata\":{\"annotations\":{\"$CAUSE\":\"$(escaped "$3")\",\"$BEFORE\":null,\"$GOOD\":$good,\"$LIVE\":$live}},\"spec\":{${5:+\"replicas\":$5,}\"template\":{\"spec\":{\"containers\":[{\"name\":\"$APP\",\"image\":\"$2\"}]}}}}"
}
to_colour() { # to_colour COLOUR: moves the traffic, and notes since when that colour's version is live
  change annotate deployment "$APP-$1" --overwrite "$LIVE=$(now)" || warn "deployment/$APP-$1 could not be marked as live"
  change patch service $APP --type=merge -p "{\"spec\":{\"selector\":{\"colour\":\"$1\"}}}"
}
rolling_out() { # whether the Deployment's rollout still gets on: it has not given up
  [[ $(kube get deployment "$1" -o 'go-template={{range .status.conditions}}{{if eq .type "Progressing"}}{{.reason}}{{end}}{{end}}') != ProgressDeadlineExceeded ]]
}
replicas_of() { kube get deployment "$1" -o 'go-template={{.spec.replicas}}'; }

verify() { # verify DEPLOYMENT IMAGE: /health/ through the Service, else from inside a pod; 0 if it serves, else why is set
  local port answer pod path tries
  [[ ! $dry ]] || return 0
  port=$(kube get service $APP -o 'go-template={{(index .spec.ports 0).port}}' 2>/dev/null || true)
  for tries in 1 2 3 4 5; do # the Service's endpoints follow its selector and the pods a moment later
    [[ $port ]] || break
    for path in health/ health/ready/; do
      if answer=$(kube --request-timeout=5s get --raw "/api/v1/namespaces/$namespace/services/http:$APP:$port/proxy/$path" 2>&1) && [[ $answer != *'"degraded"'* ]]; then # ready once is not well now
        if [[ $tries != 5 ]] && ! is_target "$answer"; then break; fi
        say "  service/$APP answers /$path: $answer"
        is_target "$answer" || warn "it says of itself that it is version $told, not $target"
        return 0
      fi
      # The API server may not be let through to the pods, by RBAC or by a NetworkPolicy.
      case $answer in *orbidden* | *imeout* | *imed\ out* | *deadline*) break 2 ;; esac
    done
    sleep $POLL
  done
  # A pod can ask itself.
  pod=$(pods_of "$1" "$2" | sed -n "/${US}True$US/{s/$US.*//p;q;}")
  if [[ ! $pod ]]; then
    why='no pod of it is ready'
    return 1
  fi
  for path in health/ health/ready/; do
    if answer=$(kube exec "$pod" -c $APP -- python -m health --json --url "http://127.0.0.1:8000/$path" 2>&1) && [[ $answer != *'"degraded"'* ]]; then
      say "  pod $pod answers /$path: $answer"
      if [[ $path != health/ ]]; then warn "/health/ is not well, see above, and /health/ready/ is: it serves"; fi
      is_target "$answer" || warn "it says of itself that it is version $told, not $target"
      return 0
    fi
    say "  pod $pod, /$path: $answer"
  done
  case $answer in
    *unhealthy* | *'answers 5'*)
      why="pod $pod says: $answer"
      return 1
      ;;
  esac
  warn "/health/ could not be asked, so only the readiness of the pods is known"
}
is_target() { # whether the answer of /health/ tells the version that was asked for, or none; sets told
  told=$(printf '%s' "$1" | sed -n 's/.*"version": *"\([^"]*\)".*/\1/p')
  [[ ! $told || $told == "$target" ]]
}

record() { # record RESULT: in the ledger, if there is one; whatever it answers, the rollback is done
  local environment=${LEDGER_ENVIRONMENT:-${namespace##*-}} strategy=rolling key words http='' answer=''
  [[ ${LEDGER_URL:-} && ! $dry ]] || return 0
  if [[ $colour ]]; then strategy=blue-green; fi
  if [[ ! ${LEDGER_TOKEN:-} ]]; then
    answer='LEDGER_TOKEN is not set'
  elif ! command -v curl >/dev/null; then
    answer='curl not found; install it'
  elif ! private "$LEDGER_URL"; then
    answer='LEDGER_URL must begin with https://, or everybody on the way could read the token (http:// is for localhost)'
  else
    words="\"environment\":\"$(escaped "$environment")\",\"release\":\"$target\",\"strategy\":\"$strategy\",\"kind\":\"rollback\""
    if api deployments "{$words,\"actor\":\"$(escaped "${owner%% *}")\",\"reason\":\"$(escaped "$reason")\"}"; then
      key=$(printf '%s' "$answer" | sed -n 's/^[^0-9]*"id": *\([0-9][0-9]*\).*/\1/p')
      if [[ $key ]] && api "deployments/$key/start" '{}' && api "deployments/$key/finish" "{\"result\":\"$1\"}"; then
        say "Recorded in the ledger as deployment $key."
        return 0
      fi
      warn "Deployment $key is in the ledger, but not as $1: $(said_by_ledger)
It bars the next deployment to $environment until it is finished: docs/api.md says how."
      return 0
    fi
  fi
  warn "This rollback is not in the ledger: $(said_by_ledger)
The ledger still shows what ran before. docs/operations.md says how to record it by hand."
}
private() { # private URL: whether nobody on the way can read what is sent there
  local host=${1#http://}
  host=${host%%[/?#\\]*}
  host=${host##*@}
  case $1 in
    https://*) return 0 ;;
    http://*) [[ $host =~ ^(localhost|127(\.[0-9]+){3}|\[::1\])(:[0-9]+)?$ ]] ;;
    *) return 1 ;;
  esac
}
said_by_ledger() { # the last answer, for people: what the problem's detail says (RFC 9457), or what curl says
  local detail=${answer#*\"detail\": \"}
  if [[ $detail == "$answer" ]]; then
    detail=$(printf '%s' "$answer" | tr '\n' ' ' | cut -c 1-200)
  else
    detail=${detail%%\"*}
  fi
  case $http in
    '' | 000) printf '%s.' "${detail:-no answer}" ;;
    3??) printf 'it answers HTTP %s, a redirect: LEDGER_URL must be its final address.' "$http" ;;
    *) printf 'it answers HTTP %s: %s' "$http" "${detail:-nothing more}" ;;
  esac
}
api() { # api PATH JSON: sets answer and http, its status. The token goes by standard input: command lines are public.
  answer=$(printf 'header = "Authorization: Bearer %s"\n' "$(printf '%s' "$LEDGER_TOKEN" | tr -cd '!-~')" |
    curl --silent --show-error --connect-timeout 1 --max-time 3 --config - -H 'Content-Type: application/json' \
      --data "$2" --write-out '\n%{http_code}' "${LEDGER_URL%/}/api/$1" 2>&1) || true
  http=${answer##*$'\n'} answer=${answer%$'\n'*}
  [[ $http == 2?? ]]
}

# What it is called with

target='' place='' list='' previous='' yes='' reason='' timeout=180 exact='' force='' phase=checks shown=''
value() { [[ ${2+set} ]] || misused "$1 requires a value."; }
known_form() { # stops what can be no version
  [[ $target =~ ^$VERSION$ ]] ||
    misused "'$target' is not a valid version; expected an image tag of at most 64 letters, digits, '_', '.' and '-', such as 1.4.0."
  [[ $target != latest ]] || misused "'latest' is not a valid version, as it names no single build; expected a tag such as 1.4.0."
}
while (($#)); do
  case $1 in
    --help | -h) usage && exit $DONE ;;
    --list) list=1 ;;
    --previous) previous=1 ;;
    --dry-run) dry=1 ;;
    --yes | -y) yes=1 ;;
    --force) force=1 ;;
    --timeout=* | --context=* | --image=* | --reason=*)
      option=${1%%=*} rest=${1#*=}
      shift
      set -- "$option" "$rest" "$@"
      continue
      ;;
    --timeout) value "$@" && timeout=$2 && shift ;;
    --context) value "$@" && context=$2 && shift ;;
    --image) value "$@" && exact=$2 && shift ;;
    --reason) value "$@" && reason=$2 && shift ;;
    -n | --namespace) value "$@" && place=$2 && shift ;;
    '') misused 'An argument is empty. Is a variable unset?' ;; # else the namespace would be taken for the version
    -*) misused "Unknown option $1." ;;
    *)
      if [[ ! $target && ! $list && ! $previous ]]; then
        target=$1
      elif [[ ! $place ]]; then
        place=$1
      else
        misused "Unexpected argument: $1."
      fi
      ;;
  esac
  shift
done
if [[ ($list || $previous) && $target ]]; then # rollback.sh NAMESPACE --list
  [[ ! $place ]] || misused "--list and --previous take no version."
  place=$target target=''
fi
namespace=${place:-default}
given=$reason reason=$(one_line "$reason" $TEXT)
[[ ! $target ]] || known_form
[[ $namespace =~ ^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$ ]] || misused "'$namespace' is not a valid namespace; expected lower-case letters, digits and dashes."
[[ $timeout =~ ^[1-9][0-9]{0,4}$ ]] || misused "--timeout $timeout is not valid; expected seconds, such as 180."
[[ ! $exact || $exact =~ ^[A-Za-z0-9][A-Za-z0-9._/:@-]*$ ]] || misused "--image '$exact' is not a valid image; expected its full name, such as host/team/app:1.4.0."
[[ ! $context || $context != -* ]] || misused "--context '$context' is not a valid context."
if [[ $exact && $target && $(tag_of "$exact") != "$target" && $exact != *@* ]]; then misused "--image $exact is not version $target; the tag must be the version."; fi
command -v kubectl >/dev/null || die $REFUSED 'kubectl not found; install it. Nothing was changed.'
if [[ ! $target && ! $list && ! $previous && ! -t 0 ]]; then
  usage >&2
  exit $USAGE
fi

# What is there

shown_context=${context:-$(kubectl config current-context 2>/dev/null || echo 'none: the environment of this pod or machine')}
ends() { # whatever happens: the lock is given back, and an interruption says in which state it leaves things
  local code=$?
  trap - EXIT INT TERM HUP
  progress_ends
  unlock
  case $code in
    [02-6] | 130) exit "$code" ;; # all others are of a command that was not expected to fail, and said why
  esac
  if [[ $phase == checks ]]; then die $REFUSED 'Failed: see above. Nothing was changed.'; fi
  die $NEEDS_A_PERSON "Failed while rolling back to $target: see above. rollback.sh --list $namespace shows what runs."
}
interrupted() {
  progress_ends
  trap '' INT TERM HUP
  case $phase in
    checks) die $INTERRUPTED 'Interrupted. Nothing was changed.' ;;
    idle) die $INTERRUPTED "Interrupted: $running still has the traffic; deployment/$moving is on its way to $target, without traffic. Run the same command to resume." ;;
    moving) die $INTERRUPTED "Interrupted: deployment/$moving is on its way from $running to $target; what is ready serves. The same command with --force resumes; rollback.sh $running $namespace --force returns to $running." ;;
    verifying) die $INTERRUPTED "Interrupted: $target has the traffic; only its check is missing. rollback.sh --list $namespace shows what runs." ;;
    returning) die $INTERRUPTED "Interrupted while $running was being brought back: rollback.sh --list $namespace shows what runs." ;;
  esac
}
trap ends EXIT
trap interrupted INT TERM HUP

reach
look
past=$(revisions || true)
find_previous

if [[ $list || (! $target && ! $previous) ]]; then
  say "Namespace $namespace, context $shown_context, deployment/$deployment:"
  versions
  if [[ $suggested ]]; then say "Rollback target: $suggested (rollback.sh $suggested $namespace)"; else say 'Rollback target: none. No other version was verified good.'; fi
  [[ ! $list ]] || exit $DONE
  read -r -p "Which version? [${suggested:-none}] " target || true
  target=${target:-$suggested}
  [[ $target ]] || die $REFUSED 'No version given. Nothing was changed.'
  known_form
fi
if [[ $previous ]]; then
  [[ $suggested ]] || die $REFUSED "No version but $running was verified good here. Choose one that rollback.sh --list $namespace shows. Nothing was changed."
  target=$suggested
fi
find_version

head_line "Rolling back to version: $target"
say "  namespace $namespace, context $shown_context, deployment/$deployment, now $running"
if [[ $given != "$reason" ]]; then say "  The reason was changed to fit (one line, $TEXT characters): $reason"; fi

serves_target() { [[ $target == "$running" && $(state_of "$deployment") ]] && is_complete "$deployment"; }
if [[ $target == "$running" && (! $exact || $exact == "$image") ]]; then
  if serves_target || [[ ! $force ]]; then
    die $REFUSED "$target is already live in deployment/$deployment. rollback.sh --list $namespace shows the others. Nothing was changed."
  fi
fi
new_image=${exact:-$found_image}
[[ $new_image ]] || die $REFUSED "Version $target is not in the history of $namespace. It has:$known. If it is in the registry, name its full image: --image $(repository_of "$image"):$target. Nothing was changed."
if [[ $floor && ! $force ]]; then
  die $REFUSED "The database has migrations of $floor, which $target cannot run on$([[ $found_image ]] || printf ' unless it is newer, which the history does not tell'), and a rollback does not undo them. Choose $floor or a newer version, or override with --force. Nothing was changed."
fi
if [[ $colour ]]; then
  said=$(image_of "$APP-$(other_colour)" || true)
  [[ $said ]] || die $REFUSED "No other colour to roll back to: deployment/$APP-$(other_colour) does not exist or has no container $APP. Nothing was changed."
fi
is_complete "$deployment" || true
if [[ ${wanted:-} == 0 && ! $colour ]]; then die $REFUSED "deployment/$deployment is scaled to 0, so nothing would show whether $target works: kubectl${context:+ --context=$context} --namespace=$namespace scale deployment/$deployment --replicas=3. Nothing was changed."; fi
if [[ ${paused:-} ]]; then die $REFUSED "deployment/$deployment is paused: kubectl --namespace=$namespace rollout resume deployment/$deployment. Nothing was changed."; fi
if [[ ! $force && ! ${DEPLOY_LOCK_HOLDER:-} ]] && ! is_complete "$deployment" && [[ ! $(hopeless "$deployment" "$image") ]] && rolling_out "$deployment"; then
  die $REFUSED "A rollout to $running is under way in deployment/$deployment ($updated of $wanted updated, $available available). Wait for it, or interrupt it with --force. Nothing was changed."
fi
[[ $verified ]] || warn "$target was not verified good here"
say '  The database stays as it is: a rollback does not undo migrations.'
case $namespace in
  *prod*)
    if [[ ! $yes && ! $dry ]]; then
      [[ -t 0 ]] || die $REFUSED "$namespace is production, and there is no terminal to confirm on: pass --yes. Nothing was changed."
      read -r -p "Type the namespace to confirm: " answer || true
      [[ ${answer:-} == "$namespace" ]] || die $REFUSED 'Nothing was changed.'
    fi
    ;;
esac
purpose_text="rollback to $target" cause="rollback to $target${reason:+: $reason}"
lock

# And back

fails() { # fails MESSAGE CODE
  record failed
  die "$2" "$1"
}
withdraw() { # withdraw IMAGE WHY: what was left for another, or failed, is no longer a version to go back to by itself
  local its_image sets name
  sets=$(kube get replicasets -l "app=$APP" -o "go-template={{range .items}}{{.metadata.name}}$US{{range .spec.template.spec.containers}}{{if eq .name \"$APP\"}}{{.image}}{{end}}{{end}}{{\"\n\"}}{{end}}") || return 0
  while IFS=$US read -r name its_image; do
    if [[ $name && $its_image == "$1" ]]; then
      change annotate replicaset "$name" --overwrite "$GOOD-" "$GONE=$(now) $2" || warn "replicaset/$name could not be marked as rolled back"
    fi
  done <<<"$sets"
}
unmark() { # unmark DEPLOYMENT: its controller would copy the mark anew
  change annotate deployment "$1" "$GOOD-" "$BEFORE-" || warn "deployment/$1 still has the mark $GOOD"
}

if [[ $colour ]]; then
  moving=$APP-$(other_colour)
  idle_image=$(image_of "$moving") # one to a line: only the last one's failure would count
  idle_replicas=$(replicas_of "$moving")
  wanted_replicas=$(replicas_of "$deployment")
  ((wanted_replicas > 0)) || wanted_replicas=1
  phase=idle
  if [[ $idle_image != "$new_image" ]] || ((idle_replicas < wanted_replicas)); then
    say "Bringing up $target as deployment/$moving, beside $running"
    to_image "$moving" "$new_image" "$cause" "${verified:+$target}" "$wanted_replicas" ||
      { phase=checks && die $REFUSED "The cluster refused it: see above. Nothing was changed."; }
  fi
  if [[ ! $dry ]] && ! wait_for "$moving" "$new_image"; then
    explain "$moving" "$new_image"
    phase=returning
    unmark "$moving"
    withdraw "$new_image" "failed: $why"
    change scale deployment "$moving" --replicas="$idle_replicas" || true
    fails "$target did not become ready: $why. $running never lost the traffic, and serves. Next: rollback.sh --list $namespace" $WENT_BACK
  fi
  phase=moving
  say "Moving the traffic of service/$APP from $colour to $(other_colour)"
  old_colour=$colour
  to_colour "$(other_colour)" ||
    fails "The traffic could not be moved: see above. $running serves." $NEEDS_A_PERSON
  phase=verifying colour=$(other_colour)
  if ! verify "$moving" "$new_image"; then
    phase=returning
    to_colour "$old_colour" ||
      fails "$target does not serve ($why), and the traffic could not be moved back: see above. kubectl --namespace=$namespace get pods -l app=$APP" $NEEDS_A_PERSON
    unmark "$moving"
    withdraw "$new_image" "failed: $why"
    fails "$target does not serve: $why. The traffic is back at $running. Next: rollback.sh --list $namespace" $WENT_BACK
  fi
  if [[ $(kube get service "$APP-preview" --ignore-not-found -o name || true) ]]; then
    change patch service "$APP-preview" --type=merge -p "{\"spec\":{\"selector\":{\"colour\":\"$old_colour\"}}}" ||
      warn "service/$APP-preview does not show $old_colour"
  fi
else
  moving=$deployment phase=moving
  to_image "$deployment" "$new_image" "$cause" "${verified:+$target}" ||
    { phase=checks && die $REFUSED "The cluster refused it: see above. Nothing was changed."; }
  ok=''
  if [[ $dry ]]; then
    ok=1
  elif wait_for "$deployment" "$new_image"; then
    phase=verifying
    if verify "$deployment" "$new_image"; then ok=1; fi
  fi
  if [[ ! $ok ]]; then
    failed_why=$why
    explain "$deployment" "$new_image"
    phase=returning
    say "Bringing back $running"
    # Pods of it that are still there serve all the while: none is taken away before another is ready.
    if to_image "$deployment" "$image" "rollback to $target failed" '' && wait_for "$deployment" "$image"; then
      withdraw "$new_image" "failed: $failed_why"
      fails "$target did not become ready: $failed_why. $running serves, as before. Next: rollback.sh --list $namespace" $WENT_BACK
    fi
    is_complete "$deployment" || true
    if [[ ${available:-0} != 0 ]]; then
      fails "$target did not become ready: $failed_why. $available of $wanted replicas serve. $running: $why. Next: rollback.sh --list $namespace" $NEEDS_A_PERSON
    fi
    fails "$target did not become ready: $failed_why. Nor did $running: $why. Nothing serves. Next: rollback.sh --list $namespace, and another version" $NEEDS_A_PERSON
  fi
fi
if [[ $deployment != "$moving" ]]; then unmark "$deployment"; fi
if [[ $image != "$new_image" ]]; then withdraw "$image" "${reason:-by $owner}"; fi
trap '' INT TERM HUP
kube get pods -l "app=$APP${colour:+,colour=$colour}" || true
record succeeded
if [[ $dry ]]; then
  say 'Dry run: the cluster would accept it. Nothing was changed.'
else
  printf '%sRollback completed successfully%s\n' "$green" "$plain"
fi
