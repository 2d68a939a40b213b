#!/usr/bin/env bash
# Prints what an image built from the working tree says of itself, as NAME=VALUE lines: APP_VERSION, APP_COMMIT and
# APP_CREATED. What the environment has set stays. ./run and manage.py deploy --build read it.
set -euo pipefail
cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.."

# The tag of the commit, or what git describe makes of the last one. A dirty tree is a build of its own each time.
now=$(date -u +%Y-%m-%dT%H:%M:%SZ)
version=$(git describe --tags --always --dirty 2>/dev/null || true)
commit=$(git rev-parse HEAD 2>/dev/null || echo unknown)
created=$(git show --no-patch --format=%cI HEAD 2>/dev/null || true)
if [[ ! $version ]]; then # no git, as in a source archive
  version=$(sed -n 's/^version = "\(.*\)"/\1/p' pyproject.toml)
elif [[ $version == *-dirty ]]; then
  version+=.${now//[-:]/} created=$now
fi
printf 'APP_VERSION=%s\nAPP_COMMIT=%s\nAPP_CREATED=%s\n' \
  "${APP_VERSION:-${version#v}}" "${APP_COMMIT:-$commit}" "${APP_CREATED:-$created}"
