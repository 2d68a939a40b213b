#!/bin/sh
# postgres_client.sh FOLDER: copies pg_dump and the libraries that it needs to the folder, for an image that has none
# (docker-compose.yml). It runs under its own loader, so the other image's C library does not matter.
set -eu
for program in /usr/local/bin/pg_dump /usr/lib/postgresql/*/bin/pg_dump; do # Alpine's place, Debian's
  [ ! -x "$program" ] || break
done
cd -- "$1"
ldd "$program" | grep -o '/[^ ]*' | while read -r library; do
  case $library in */ld-*) cp -L -- "$library" loader ;; *) cp -L -- "$library" . ;; esac
done
cp -- "$program" program
cat >pg_dump <<'SH'
#!/bin/sh
folder=${0%/*}
exec "$folder/loader" --library-path "$folder" "$folder/program" "$@"
SH
chmod 755 pg_dump loader program
./pg_dump --version
