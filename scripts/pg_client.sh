#!/bin/sh
# Copies pg_dump with all that it loads to a folder, from where it runs in other images too: the app's has none, and
# Debian's is older than the server. Run it in the image of the database:
#   docker run --rm -v pg_client:/client -v ./scripts/pg_client.sh:/pg_client.sh:ro postgres:18 sh /pg_client.sh /client
# `PG_DUMP=/client/pg_dump manage.py bluegreen prepare` then finds it.
set -eu
folder=$1
# Debian's /usr/bin/pg_dump is a script that chooses one of these.
for program in "$(command -v pg_dump)" /usr/lib/postgresql/*/bin/pg_dump; do
  [ ! -x "$program" ] || newest=$program
done
mkdir -p "$folder/lib"
cp -L "$newest" "$folder/lib/pg_dump"
ldd "$newest" | grep -o '/[^ ]*' | while read -r library; do
  cp -L "$library" "$folder/lib/"
  case $library in */ld-*) cp -L "$library" "$folder/lib/loader" ;; esac
done
cat > "$folder/pg_dump" <<'END'
#!/bin/sh
lib=$(dirname "$0")/lib
exec "$lib/loader" --library-path "$lib" "$lib/pg_dump" "$@"
END
chmod -R a+rX "$folder"
chmod a+x "$folder/pg_dump" "$folder/lib/pg_dump" "$folder/lib/loader"
