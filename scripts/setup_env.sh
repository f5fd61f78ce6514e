#!/usr/bin/env bash
# Makes .venv in the checkout and installs the pinned requirements and the package into it.
set -euo pipefail

usage() {
    cat <<'TEXT'
usage: bash scripts/setup_env.sh [--dev]

Makes .venv with Python 3.10, 3.11 or 3.12 and installs requirements.txt (with --dev also requirements-dev.txt) and this
package. Installs again only what has changed since the last time. PYTHON=/path/to/python chooses the interpreter.
On aarch64 MINDSPORE_WHEEL is the file or address of MindSpore's wheel for it.
TEXT
}

fail() {
    printf 'error: %s\n' "$1" >&2
    shift
    if (($#)); then printf '       %s\n' "$@" >&2; fi
    exit 1
}

requirements="requirements.txt"
while (($#)); do
    case $1 in
        -h | --help) usage && exit 0 ;;
        --dev) requirements="requirements-dev.txt" ;;
        *) usage >&2 && fail "unknown argument: $1" ;;
    esac
    shift
done

cd "$(dirname "${BASH_SOURCE[0]}")/.."
venv=$PWD/.venv
python=$venv/bin/python

# "3.11" for an interpreter that runs, nothing for one that does not (a pyenv shim of a version not selected, say).
version_of() {
    "$1" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null || true
}

suitable() {
    case $1 in 3.10 | 3.11 | 3.12) return 0 ;; *) return 1 ;; esac
}

find_python() {
    local candidate version found=()
    if [[ -n ${PYTHON:-} ]]; then
        version=$(version_of "$PYTHON")
        [[ -n $version ]] || fail "PYTHON=$PYTHON cannot be run; give the path of a Python 3.10, 3.11 or 3.12"
        suitable "$version" || fail "PYTHON=$PYTHON is Python $version; MindSpore 2.10 needs 3.10, 3.11 or 3.12"
        base_python=$PYTHON
        return
    fi
    for candidate in python3.11 python3.12 python3.10 python3 python; do
        version=$(version_of "$candidate")
        if [[ -n $version ]]; then
            if suitable "$version"; then
                base_python=$candidate
                return
            fi
            found+=("$candidate is $version")
        fi
    done
    fail "no suitable Python: 3.10, 3.11 or 3.12 is needed; found: $(IFS=,; echo "${found[*]:-none}")." \
        "Install one (Debian, Ubuntu: apt-get install python3 python3-venv), or name one with PYTHON=/path/to/python."
}

make_venv() {
    local version
    find_python
    version=$(version_of "$base_python")
    if ! "$base_python" -c 'import ensurepip, venv' 2>/dev/null; then
        fail "$base_python ($version) cannot make virtual environments." \
            "Debian, Ubuntu: apt-get install python$version-venv (or python3-venv), then run this again."
    fi
    echo "Making .venv with Python $version ($(command -v "$base_python"))."
    if ! "$base_python" -m venv "$venv"; then
        rm -rf "$venv"
        fail "making $venv failed; the message above says why"
    fi
}

# Installs quietly; shows pip's last words when it fails.
install() {
    if ! "$python" -m pip install --quiet --disable-pip-version-check "$@" >"$venv/install.log" 2>&1; then
        tail -n 15 "$venv/install.log" >&2
        fail "pip could not install ($*); its full output is in .venv/install.log." \
            "It must reach a package index: check the network, or name a mirror with PIP_INDEX_URL." \
            "4 GB of disk space are needed."
    fi
}

# The registry's wheel is tagged for any machine but holds x86-64 libraries: it installs here, and fails when imported.
wheel=${MINDSPORE_WHEEL:-}
if [[ $(uname -m) == aarch64 && -z $wheel ]] && ! "$python" -c 'import mindspore' 2>/dev/null; then
    find_python
    tag=cp$(version_of "$base_python" | tr -d .)
    fail "this machine is aarch64, for which the package registry has no MindSpore. Name MindSpore's own wheel:" \
        "MINDSPORE_WHEEL=https://ms-release.obs.cn-north-4.myhuaweicloud.com/2.10.0/MindSpore/unified/aarch64/mindspore-2.10.0-$tag-$tag-linux_aarch64.whl" \
        "(the address follows that of earlier releases and was not tried; https://www.mindspore.cn/install has it)"
fi

if [[ -n ${PYTHON:-} && -e $python && $(version_of "$PYTHON") != "$(version_of "$python")" ]]; then
    find_python # refuses an unsuitable one before anything is removed
    echo ".venv is of Python $(version_of "$python"), PYTHON=$PYTHON is another: making it again."
    rm -rf "$venv"
elif [[ -e $venv ]] && ! { suitable "$(version_of "$python")" && "$python" -m pip --version >/dev/null 2>&1; }; then
    [[ -f $venv/pyvenv.cfg ]] || fail "$venv is there but is no virtual environment; move it away"
    echo ".venv does not work (any more): making it again."
    rm -rf "$venv"
fi
[[ -e $venv ]] || make_venv

# The place counts too: scripts in .venv and the link to src hold absolute paths.
fingerprint_of() {
    { echo "$venv" && cat requirements.txt "$1" pyproject.toml; } | sha256sum | cut -d' ' -f1
}

stamp=$venv/.installed-$requirements
if [[ ! -f $stamp || $(<"$stamp") != "$(fingerprint_of "$requirements")" ]]; then
    echo "Installing $requirements into .venv: 0.9 GB to fetch, one to ten minutes the first time."
    if [[ -n $wheel ]]; then install "$wheel"; fi
    install -r "$requirements"
    install --no-deps -e .
    "$python" -c 'import mindspore, dvt' || fail "MindSpore is installed but does not start; the message above says why"
    fingerprint_of "$requirements" >"$stamp"
    fingerprint_of requirements.txt >"$venv/.installed-requirements.txt" # the others include these
fi
