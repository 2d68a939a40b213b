#!/usr/bin/env bash
# ./run backup [FILE]: writes the stack's database and uploads to one file while the stack serves (docs/stack.md).
set -euo pipefail
cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.."
# shellcheck source=scripts/stack.sh
source scripts/stack.sh

(($# < 2)) || die 2 'Usage: ./run backup [FILE]'
file=${1:-var/backups/$(date -u +%Y%m%dT%H%M%SZ).tar}
[[ ! -e $file ]] || die 2 "$file already exists; choose another name"
docker_ready
running db nginx
app=$(active)
running "$app"
own_database "$app"
database=$(database)

umask 077 # The file holds personal data.
mkdir -p -- "$(dirname -- "$file")"
folder=$(mktemp -d -- "$(dirname -- "$file")/.backup.XXXXXX")
trap 'rm -rf -- "$folder"' EXIT
docker compose exec -T "$database" pg_dump --no-publications --no-subscriptions --username postgres --format custom backstagetest1 >"$folder/database.dump" ||
  die 1 'Cannot dump the database; see above. No backup was written.'
docker compose exec -T "$database" pg_restore --list <"$folder/database.dump" | grep -c 'TABLE DATA' >/dev/null ||
  die 1 'The dump is not readable. No backup was written.'
docker compose exec -T "$app" tar -C /app/media -cf - . >"$folder/media.tar" ||
  die 1 'Cannot read the uploads; see above. No backup was written.'
docker compose exec -T "$app" printenv APP_VERSION APP_COMMIT | tr -d '\r' >"$folder/release"
(cd -- "$folder" && sha256sum database.dump media.tar release >sums)
tar -C "$folder" -cf "$folder/whole" database.dump media.tar release sums
mv -- "$folder/whole" "$file"
echo "Backup written to $file ($(du -h -- "$file" | cut -f 1))"
