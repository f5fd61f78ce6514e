#!/usr/bin/env bash
# Classifies images with the ONNX files of a bundle, on ONNX Runtime.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

usage() {
    cat <<'TEXT'
usage: bash scripts/run_infer_onnx.sh BUNDLE DATA_PATH [dvt infer arguments]

  BUNDLE     folder that export.py wrote
  DATA_PATH  an image, a folder of images, or a folder of class folders, whose names are then compared

Predictions go to standard output as CSV (--output FILE writes them there), a summary to standard error.
ONNX Runtime runs on the CPU; neither MindSpore nor training code is needed.
PYTHON chooses the interpreter; by default it is that of .venv if there is one, else python3.
TEXT
}

fail() {
    printf 'error: %s\n' "$1" >&2
    exit 2
}

case ${1:-} in -h | --help) usage && exit 0 ;; esac
(($# >= 2)) || { usage >&2 && fail "BUNDLE and DATA_PATH are needed"; }
bundle=$1 data=$2
shift 2

[[ -f $bundle/manifest.json ]] || fail "BUNDLE $bundle is not a bundle: it has no manifest.json"
[[ -e $data ]] || fail "DATA_PATH $data does not exist"

python=${PYTHON:-$root/.venv/bin/python}
[[ -n ${PYTHON:-} || -x $python ]] || python=python3
PYTHONPATH=$root/src${PYTHONPATH:+:$PYTHONPATH} exec "$python" -m dvt.cli.start infer "$bundle" "$data" \
    --backend onnxruntime "$@"
