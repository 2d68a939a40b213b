#!/usr/bin/env bash
# ./run restore FILE [--yes]: replaces the stack's database and uploads with those of a backup (docs/stack.md).
set -euo pipefail
cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.."
# shellcheck source=scripts/stack.sh
source scripts/stack.sh

file='' yes=''
for word; do
  case $word in
    --yes) yes=1 ;;
    -*) die 2 "Unknown option $word. Usage: ./run restore FILE [--yes]" ;;
    *) file=$word ;;
  esac
done
[[ $file ]] || die 2 'Usage: ./run restore FILE [--yes]'
[[ -f $file ]] || die 2 "$file not found; backups are in var/backups, unless you chose another place"
docker_ready
running db web redis nginx
[[ $(active) == web ]] || die 1 "$(active) has the traffic; switch back to web with ./run up, then restore"
own_database web
[[ ! $(docker compose ps --quiet db_green) ]] ||
  die 1 'db_green is running; docs/blue-green.md says how to restore with a database per colour. Nothing was changed.'

folder=$(mktemp -d)
trap 'rm -rf -- "$folder"' EXIT
if ! tar -C "$folder" -xf "$file" database.dump media.tar release sums 2>/dev/null ||
  ! (cd -- "$folder" && sha256sum --check --status --strict sums); then
  die 1 "$file is not a complete backup: files are missing or their checksums do not match. Nothing was changed."
fi
accounts=$(sql backstagetest1 "SELECT count(*) FROM accounts_user") ||
  die 1 'Cannot query the database; see above. Nothing was changed.'
((accounts == 0)) ||
  confirm "$yes" "The database holds $accounts accounts. All data will be replaced with $file (release $(paste -sd ' ' "$folder/release"))."

# Into a database and a folder beside those in use, so that a restore that fails changes nothing.
sql postgres 'DROP DATABASE IF EXISTS restoring' 'DROP DATABASE IF EXISTS replaced'
docker compose exec -T --env DATABASE=restoring db /docker-entrypoint-initdb.d/database.sh ||
  die 1 'Cannot create a database to restore into; see above. Nothing was changed.'
if ! docker compose exec -T db pg_restore --username postgres --dbname restoring --role backstagetest1_owner --no-owner \
  --no-privileges --exit-on-error --single-transaction <"$folder/database.dump"; then
  sql postgres 'DROP DATABASE IF EXISTS restoring'
  die 1 'Cannot restore the database; see above. Nothing was changed.'
fi
docker compose exec -T web sh -euc 'rm -rf /app/media/.restoring; mkdir /app/media/.restoring; tar -C /app/media/.restoring -xf -' \
  <"$folder/media.tar" || die 1 'Cannot unpack the uploads; see above. Nothing was changed.'

docker compose stop web
sql postgres "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = 'backstagetest1'" >/dev/null
# One statement list is one transaction: both databases are renamed, or neither.
sql postgres 'ALTER DATABASE backstagetest1 RENAME TO replaced; ALTER DATABASE restoring RENAME TO backstagetest1'
sql postgres 'DROP DATABASE replaced WITH (FORCE)'
docker compose run --rm --no-deps -T web sh -euc 'cd /app/media
  find . -mindepth 1 -maxdepth 1 ! -name .restoring -exec rm -rf {} +
  find .restoring -mindepth 1 -maxdepth 1 -exec mv {} . \;
  rmdir .restoring'
docker compose exec -T redis sh -c 'REDISCLI_AUTH=$(cat /run/secrets/redis_password) redis-cli flushall' >/dev/null
docker compose up --detach --wait # Migrates, in case the backup is older than the release.
echo "Restored $(sql backstagetest1 'SELECT count(*) FROM accounts_user') accounts from $file"
