# shellcheck shell=bash
# shellcheck disable=SC2154 # ./run sets venv, bin and python
# What ./run needs of Python: the variables of .env, and the virtual environment $venv with what a lock pins.

# Exports the variables of .env, read as docker compose reads it; those that the environment has take precedence.
dotenv() {
  [[ -f .env ]] || return 0
  python_ready
  local pair pairs
  mapfile -d '' -t pairs < <("$python" scripts/dotenv.py .env)
  wait "$!" || exit 2 # it has said why
  for pair in "${pairs[@]}"; do export "${pair?}"; done
}

python_ready() {
  command -v "$python" >/dev/null ||
    die 2 "$python not found; install Python 3.11 or newer (Debian, Ubuntu: apt install python3 python3-venv)"
}

# install LOCK: makes .venv, and installs LOCK into it unless that is what was installed last.
install() {
  local lock=$1 stamp=$venv/$1.sha256 sum log
  sum=$(sha256sum <"$lock")
  [[ -x $bin/python && -f $stamp && $(<"$stamp") == "$sum" ]] && return
  python_ready
  "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
    die 2 "$("$python" --version) is too old; requires 3.11 or newer. Choose another with PYTHON=python3.12 ./run ..."
  if [[ ! -x $bin/python ]]; then
    "$python" -c 'import ensurepip, venv' 2>/dev/null ||
      die 2 "$python has no venv module; install it (Debian, Ubuntu: apt install python3-venv)"
    echo "Creating $venv ..." >&2
    rm -rf "$venv"
    "$python" -m venv "$venv" || die 1 "Cannot create $venv; see above"
  fi
  echo "Installing $lock (once; about a minute) ..." >&2
  log=$(mktemp)
  if ! "$bin/python" -m pip install --quiet --disable-pip-version-check --require-hashes -r "$lock" >"$log" 2>&1; then
    tail -n 5 "$log" >&2
    rm -f "$log"
    die 1 "Cannot install $lock. Check the network; set PIP_INDEX_URL or HTTPS_PROXY for a package index or proxy."
  fi
  rm -f "$log"
  [[ $lock == requirements.txt ]] || sha256sum <requirements.txt >"$venv/requirements.txt.sha256" # it holds both
  printf '%s\n' "$sum" >"$stamp"
}
