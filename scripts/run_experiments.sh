#!/usr/bin/env bash
# Measures the paper's claims again on small real data; docs/results.md has what came out.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

case ${1:-} in
    -h | --help) ;;
    *) [[ -n ${PYTHON:-} ]] || bash "$root/scripts/setup_env.sh" ;;
esac

# PYTHON chooses the interpreter, by default that of .venv.
python=${PYTHON:-$root/.venv/bin/python}
[[ -n ${PYTHON:-} || -x $python ]] || python=python3
export PYTHONPATH=$root:$root/src${PYTHONPATH:+:$PYTHONPATH}
# Paths given by the user count from where they stand; the module is found by PYTHONPATH.
exec "$python" -m experiments "$@"
