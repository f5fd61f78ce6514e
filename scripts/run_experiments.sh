#!/usr/bin/env bash
# Measures the paper's claims again on small real data; docs/results.md has what came out.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

usage() {
    cat <<'TEXT'
usage: bash scripts/run_experiments.sh [NAME ...] [options]

Trains what the named experiments need (by default all: some four hours of one CPU core), writes numbers and figures into
results/, and makes docs/results.md of them. What is done already is not done again. Ctrl-C saves the run under way, and
the same command goes on there.

  --list            show experiments and runs, what is left to do and how long it takes, and do nothing
  --seeds N [N ...] seeds of the runs (default: 0 1 2)
  --jobs N          runs at a time, each on its share of the cores (default: 1; models as small as these train almost
                    twice as many images per second with one core each)
  --page            only make docs/results.md of the results that are there
  --results FOLDER  outputs, JSONs and figures (default: results; all but speeds is computed from these alone)
  --work FOLDER     trainings with their checkpoints, which git ignores (default: runs/experiments)
  --emoji FILE      archive of the npm package emoji-datasource-google, where npm cannot fetch it
  --debug           show the traceback of an error

PYTHON chooses the interpreter; by default .venv is made and used.
TEXT
}

for word in "$@"; do
    case $word in -h | --help) usage && exit 0 ;; esac
done
[[ -n ${PYTHON:-} ]] || bash "$root/scripts/setup_env.sh"
export PYTHONPATH=$root:$root/src${PYTHONPATH:+:$PYTHONPATH}
exec "${PYTHON:-$root/.venv/bin/python}" -m experiments "$@"
