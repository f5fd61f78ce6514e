#!/usr/bin/env bash
# Runs the tests with every supported pair of MindSpore and Python, each in an environment of its own.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
mindspores="2.7.2 2.10.0"
pythons="3.10 3.11 3.12"

usage() {
    cat <<'TEXT'
usage: bash scripts/test_matrix.sh [--mindspore VERSIONS] [--python VERSIONS] [pytest arguments]

Makes one environment per pair in .venvs/, with the pinned requirements but that MindSpore, runs the quick tests in it,
and prints a table. A pair that fails does not stop the others.

  --mindspore VERSIONS  with commas in between (default: 2.7.2,2.10.0, the oldest and the newest supported)
  --python VERSIONS     with commas in between (default: 3.10,3.11,3.12); from the PATH or from pyenv

Other arguments go to pytest, such as tests/config/test_config.py or -m slow; paths count from the top of the checkout.
A pair without interpreter or wheel is skipped, with the reason. Logs are in .venvs/logs. An environment takes 3 GB and
is used again the next time. Exit code: 0 all that ran passed, 1 some failed, 2 a mistake in the arguments or no pair
could run.
TEXT
}

fail() {
    printf 'error: %s\n' "$1" >&2
    exit 2
}

while (($#)); do
    option=${1%%=*}
    case $1 in
        -h | --help) usage && exit 0 ;;
        --mindspore=* | --python=*) value=${1#*=} ;;
        --mindspore | --python) value=${2:-} && shift ;;
        *) break ;;
    esac
    [[ $value =~ ^[0-9.]+(,[0-9.]+)*$ ]] || fail "$option is '$value'; it must be versions such as 3.10,3.11"
    if [[ $option == --mindspore ]]; then mindspores=${value//,/ }; else pythons=${value//,/ }; fi
    shift || fail "$option needs versions"
done

cd "$root"
logs=$root/.venvs/logs
mkdir -p "$logs"

# The path of an interpreter "3.11" that runs, or nothing.
find_python() {
    local candidate
    # A shim of pyenv on the PATH does not run unless that version is selected; its folder has the interpreter itself.
    for candidate in "python$1" "${PYENV_ROOT:-$HOME/.pyenv}/versions/$1".*/bin/python; do
        if "$candidate" -c 'import venv, ensurepip' 2>/dev/null; then
            command -v "$candidate"
            return
        fi
    done
}

# Installs into environment $1 what the tests need, with MindSpore $2. Does nothing if that is there already.
install() {
    local venv=$1 wanted fingerprint
    wanted=$(sed "s/^mindspore==.*/mindspore==$2/" requirements.txt && sed '/^-r /d' requirements-dev.txt)
    fingerprint=$({ echo "$venv $wanted" && cat pyproject.toml; } | sha256sum | cut -d' ' -f1)
    [[ -f $venv/.installed && $(<"$venv/.installed") == "$fingerprint" ]] && return
    printf '%s\n' "$wanted" >"$venv/requirements.txt"
    "$venv/bin/python" -m pip install --disable-pip-version-check -r "$venv/requirements.txt" &&
        "$venv/bin/python" -m pip install --disable-pip-version-check --no-deps -e . &&
        echo "$fingerprint" >"$venv/.installed"
}

# Sets `result` to what became of one pair, in words; returns 0 passed, 1 failed, 3 skipped.
run_pair() {
    local mindspore=$1 python=$2 interpreter venv log
    shift 2
    venv=$root/.venvs/mindspore-$mindspore-python-$python
    log=$logs/${venv##*/}
    interpreter=$(find_python "$python")
    [[ -n $interpreter ]] || { result="skipped: no Python $python on the PATH or in pyenv" && return 3; }
    if [[ ! -x $venv/bin/python ]] && ! "$interpreter" -m venv "$venv" >"$log.install.log" 2>&1; then
        result="FAILED: no environment could be made, see $log.install.log" && return 1
    fi
    if ! install "$venv" "$mindspore" >"$log.install.log" 2>&1; then
        if grep -q "No matching distribution found for mindspore==" "$log.install.log"; then
            result="skipped: the package index has no MindSpore $mindspore for Python $python" && return 3
        fi
        result="FAILED: the requirements could not be installed, see $log.install.log" && return 1
    fi
    if "$venv/bin/python" -m pytest -q -p no:cacheprovider --numprocesses 2 --dist loadfile "$@" >"$log.tests.log" 2>&1; then
        result=$(tail -n 1 "$log.tests.log") && return 0
    fi
    result="FAILED: $(tail -n 1 "$log.tests.log"), see $log.tests.log" && return 1
}

rows=() passed=0 failed=0
for mindspore in $mindspores; do
    for python in $pythons; do
        echo "MindSpore $mindspore, Python $python ..."
        status=0
        run_pair "$mindspore" "$python" "$@" || status=$?
        ((status != 0)) || passed=$((passed + 1))
        ((status != 1)) || failed=$((failed + 1))
        rows+=("$(printf '%-10s %-7s %s' "$mindspore" "$python" "$result")")
    done
done
printf '\n%-10s %-7s %s\n' MindSpore Python Result
printf '%s\n' "${rows[@]}"
((failed == 0)) || exit 1
((passed > 0)) || exit 2
