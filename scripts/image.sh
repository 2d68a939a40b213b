#!/usr/bin/env bash
# ./run image [--push] NAME:TAG: builds the image (docker-bake.hcl); --push sends it to its registry and prints its digest.
set -euo pipefail
cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.."
# shellcheck source=scripts/stack.sh
source scripts/stack.sh

export NAME=''
push=''
for word; do
  case $word in
    --push) push=1 ;;
    -*) die 2 "Unknown option $word. Usage: ./run image [--push] NAME:TAG" ;;
    *) NAME=$word ;;
  esac
done
[[ $NAME == *[!:]:[!:/]* ]] || die 2 'Usage: ./run image [--push] NAME:TAG'
# The rule for versions is that of ledger/versions.py; a test compares the two.
[[ ${NAME##*:} =~ ^[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}$ ]] ||
  die 2 "'${NAME##*:}' is not a valid version; expected an image tag of at most 64 letters, digits, '_', '.' and '-'"
docker_ready
build_arguments
[[ $push ]] || exec docker buildx bake --file docker-bake.hcl image

# The engine's own builder can attach neither SBOM nor provenance, so a release has a builder of its own.
docker buildx inspect backstagetest1 >/dev/null 2>&1 || docker buildx create --name backstagetest1 >/dev/null
metadata=$(mktemp)
trap 'rm -f -- "$metadata"' EXIT
docker buildx bake --builder backstagetest1 --file docker-bake.hcl --metadata-file "$metadata" release >&2
sed -n 's/.*"containerimage.digest": *"\(sha256:[0-9a-f]*\)".*/\1/p' "$metadata"
