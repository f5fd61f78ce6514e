#!/usr/bin/env bash
# Converts a bundle for MindSpore Lite and enters the converted files into its manifest.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

usage() {
    cat <<'TEXT'
usage: bash scripts/run_lite_convert.sh BUNDLE [ascend|cpu]

  BUNDLE  folder that export.py wrote, with MINDIR files for ascend (the default) and ONNX files for cpu

ascend needs `converter_lite` of the MindSpore Lite release that fits MindSpore, on the PATH. The exits are compiled for
the batch sizes in BUNDLE/exit_*.ascend.ini. Its precision is the bundle's; with float16 measure the thresholds again
(docs/deployment.md).
cpu makes .ms files for the CPU and edge devices, with `converter_lite` or, where that is not on the PATH, with the
package mindspore_lite of the Python that DVT_LITE_PYTHON names.

PYTHON chooses the interpreter of this package; by default it is that of .venv if there is one, else python3.
TEXT
}

fail() {
    printf 'error: %s\n' "$1" >&2
    exit 2
}

# Runs quietly; shows the converter's words when it fails.
quietly() {
    local words
    words=$("$@" 2>&1) || { printf '%s\n' "$words" | tail -n 20 >&2 && fail "the conversion failed: $*"; }
}

case ${1:-} in -h | --help) usage && exit 0 ;; esac
(($# >= 1 && $# <= 2)) || { usage >&2 && fail "BUNDLE is needed"; }
bundle=$1 target=${2:-ascend}
[[ -f $bundle/manifest.json ]] || fail "BUNDLE $bundle is not a bundle: it has no manifest.json"
case $target in
    ascend) suffix=mindir ;;
    cpu) suffix=onnx ;;
    *) fail "the target is $target; it must be ascend or cpu" ;;
esac
[[ -f $bundle/exit_0.$suffix ]] || fail "$bundle has no exit_0.$suffix; export it with --format MINDIR,ONNX"

converter=$(command -v converter_lite || true)
if [[ -z $converter ]]; then
    [[ $target == cpu ]] || fail "converter_lite is not on the PATH; it is in tools/converter of MindSpore Lite"
    [[ -n ${DVT_LITE_PYTHON:-} ]] ||
        fail "converter_lite is not on the PATH, and DVT_LITE_PYTHON names no Python with mindspore_lite"
fi

for ((index = 0; ; index++)); do
    exit=$bundle/exit_$index
    [[ -f $exit.$suffix ]] || break
    echo "converting $exit.$suffix"
    if [[ $target == ascend ]]; then
        [[ -f $exit.ascend.ini ]] || fail "$exit.ascend.ini is missing; export without a fixed batch_size"
        quietly converter_lite --fmk=MINDIR --saveType=MINDIR --optimize=ascend_oriented \
            --modelFile="$exit.mindir" --configFile="$exit.ascend.ini" --outputFile="${exit}_ascend"
    elif [[ -n $converter ]]; then
        quietly converter_lite --fmk=ONNX --saveType=MINDIR_LITE --inputDataFormat=NCHW \
            --modelFile="$exit.onnx" --outputFile="$exit"
    else
        quietly "$DVT_LITE_PYTHON" "$root/src/dvt/deploy/lite_session.py" convert "$exit.onnx" "$exit"
    fi
done

python=${PYTHON:-$root/.venv/bin/python}
[[ -n ${PYTHON:-} || -x $python ]] || python=python3
PYTHONPATH=$root/src${PYTHONPATH:+:$PYTHONPATH} exec "$python" -m dvt.cli.start lite "$bundle" "$target"
