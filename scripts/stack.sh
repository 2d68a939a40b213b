# shellcheck shell=bash
# What ./run and its scripts share: errors, and questions to Docker and to the stack of docker-compose.yml.

# die CODE MESSAGE...: prints the message to standard error and exits with the code.
die() {
  printf '%s\n' "${*:2}" >&2
  exit "$1"
}

docker_ready() {
  command -v docker >/dev/null ||
    die 2 'docker not found; install Docker Engine with its compose plugin (https://docs.docker.com/engine/install/)'
  docker compose version >/dev/null 2>&1 ||
    die 2 'docker compose not found; install the plugin (Debian, Ubuntu: apt install docker-compose-plugin)'
  docker info >/dev/null 2>&1 ||
    die 1 'Cannot reach the Docker engine; start it (systemctl start docker), or find out why with docker info'
}

# build_arguments: exports what an image built from the working tree says of itself (scripts/version.sh).
build_arguments() {
  local pair
  while read -r pair; do export "${pair?}"; done < <(scripts/version.sh)
}

# running SERVICE...: exits unless each of these services is running.
running() {
  local name up
  up=" $(docker compose ps --services --status running | tr '\n' ' ') "
  for name; do
    [[ $up == *" $name "* ]] || die 1 "Service $name is not running; start the stack with ./run up"
  done
}

# active: prints the service that nginx sends the traffic to: web, web_blue or web_green.
active() {
  case $(docker compose exec -T nginx readlink /run/web/current.sock || true) in
    blue.sock) echo web_blue ;;
    green.sock) echo web_green ;;
    *) echo web ;;
  esac
}

# database: prints the service whose database takes the writes: db, or db_green with a database per colour (blue is db).
database() {
  local fence
  if docker compose ps --services --status running | grep -qx db_green; then
    fence=$(docker compose exec -T db_green psql --username postgres --dbname backstagetest1 --no-psqlrc --quiet \
      --tuples-only --no-align --command "SELECT to_regclass('bg.fence') IS NOT NULL" \
      --command 'SELECT last_value FROM bg.fence' 2>/dev/null || true)
    [[ $fence != $'t\n1' ]] || { echo db_green && return; }
  fi
  echo db
}

# linked: whether two databases run and replicate to each other.
linked() {
  docker compose ps --services --status running | grep -qx db_green &&
    sql backstagetest1 "SELECT 'linked' FROM bg.note WHERE kind = 'link'" 2>/dev/null | grep -q linked
}

# own_database SERVICE: exits if the service uses a database other than the stack's.
own_database() {
  docker compose exec -T "$1" grep -q '@db:5432/backstagetest1$' /run/secrets/database_url ||
    die 1 'DATABASE_URL points to a database outside this stack; back it up and restore it there. Nothing was changed.'
}

# sql DATABASE STATEMENT...: runs each statement in the stack's PostgreSQL as its superuser.
sql() {
  local database=$1 words=() statement
  shift
  for statement; do words+=(--command "$statement"); done
  docker compose exec -T db psql --username postgres --dbname "$database" --no-psqlrc --quiet --tuples-only --no-align \
    --set ON_ERROR_STOP=1 "${words[@]}"
}

# confirm YES WARNING: asks for confirmation, unless YES is not empty; exits without a terminal to ask on.
confirm() {
  local answer
  [[ ! $1 ]] || return 0
  [[ -t 0 ]] || die 2 "$2 No terminal to confirm on; pass --yes to go ahead. Nothing was changed."
  read -r -p "$2 Continue? [y/N] " answer
  [[ $answer == [yY]* ]] || die 1 'Cancelled. Nothing was changed.'
}
