#!/usr/bin/env bash
# Builds the wheel, installs it into an empty environment and tries it from outside the checkout.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

usage() {
    cat <<'TEXT'
usage: bash scripts/smoke_wheel.sh [--extra NAME | --reuse PYTHON] [--wheel-dir FOLDER]

Builds the wheel from a copy of the checkout, makes a new virtual environment, installs the wheel and tries it in an
empty folder: every file of the package is there, the commands answer; with MindSpore a small model is trained,
evaluated, exported and run, and checkpoints/quickstart.ckpt classifies an image.

  --extra NAME        what to install with it: train (default; MindSpore, 0.9 GB to fetch), or none, which tries the
                      commands that need no MindSpore
  --reuse PYTHON      fetch nothing but the build tool: only the wheel is installed, everything else comes from the
                      environment of this interpreter
  --wheel-dir FOLDER  keep the wheel there

PYTHON chooses the interpreter, Python 3.10, 3.11 or 3.12; by default python3. Exit code: 0 all worked, 1 something did
not, 2 a mistake in the arguments.
TEXT
}

fail() {
    printf 'error: %s\n' "$1" >&2
    exit "${2:-1}"
}

python=${PYTHON:-python3} extra=train reuse='' wheels=''
while (($#)); do
    case $1 in
        -h | --help) usage && exit 0 ;;
        --extra | --reuse | --wheel-dir) [[ -n ${2:-} ]] || fail "$1 needs a value" 2 ;;&
        --extra) extra=$2 ;;
        --reuse) reuse=$2 python=$2 ;;
        --wheel-dir) wheels=$2 ;;
        *) usage >&2 && fail "unknown argument: $1" 2 ;;
    esac
    shift 2
done
[[ $extra == train || $extra == none ]] || fail "--extra is '$extra'; it must be train or none" 2
"$python" -c 'import ensurepip, venv' 2>/dev/null ||
    fail "$python cannot be run or cannot make virtual environments; name another with PYTHON or --reuse" 2

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
[[ -z $wheels ]] || { mkdir -p "$wheels" && wheels=$(cd "$wheels" && pwd); }
wheels=${wheels:-$work/wheels}

echo "Building the wheel."
# From a copy, so that nothing that an earlier build left behind gets in.
mkdir "$work/copy" "$work/elsewhere"
(cd "$root" && tar -c --exclude=__pycache__ --exclude='*.egg-info' pyproject.toml README.md LICENSE src) |
    tar -x -C "$work/copy"
"$python" -m pip wheel --quiet --disable-pip-version-check --no-deps --wheel-dir "$work/new" "$work/copy"
mkdir -p "$wheels"
wheel=$(basename "$work"/new/*.whl)
cp "$work/new/$wheel" "$wheels/"

"$python" -m venv "$work/venv"
cd "$work/elsewhere"
unset PYTHONPATH PYTHONHOME
new=$work/venv/bin/python
if [[ -n $reuse ]]; then
    echo "Installing $wheel, and nothing else."
    "$new" -m pip install --quiet --disable-pip-version-check --no-index --no-deps "$wheels/$wheel"
    # Behind the new environment's own packages; .pth files in there, such as those of editable installs, have no effect.
    "$reuse" -c 'import sysconfig; print(sysconfig.get_path("purelib"))' \
        >"$("$new" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/reused.pth"
else
    [[ $extra == none ]] && what=$wheels/$wheel || what="$wheels/$wheel[$extra]"
    echo "Installing $(basename "$what") and what it needs."
    "$new" -m pip install --quiet --disable-pip-version-check "$what"
    "$new" -m pip check
fi

echo "Trying it in an empty folder."
export PATH=$work/venv/bin:$PATH
ROOT=$root WITH_MINDSPORE=$([[ $extra == none ]] || echo 1) "$new" "$root/scripts/smoke_installed.py"
echo "$wheel works."
