#!/usr/bin/env bash
# Looks up every pinned version in the database of known vulnerabilities. By hand, before a release; needs a network.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
if (($#)); then
    echo "usage: bash scripts/audit.sh   (PYTHON chooses the interpreter). Exit code 0: every version was looked up, nothing is known"
    [[ $1 == --help || $1 == -h ]] && exit 0 || exit 2
fi

scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
"${PYTHON:-python3}" -m venv "$scratch/venv" # an environment of its own: pip-audit brings packages that nothing here pins
"$scratch/venv/bin/pip" install --quiet pip-audit
status=0
for file in "$root"/requirements*.txt; do
    echo "== ${file##*/}"
    # --strict: a package that could not be looked up fails, in place of being left out.
    "$scratch/venv/bin/pip-audit" --strict --no-deps --disable-pip --progress-spinner off -r "$file" || status=1
done
exit $status
