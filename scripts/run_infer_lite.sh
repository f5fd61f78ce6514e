#!/usr/bin/env bash
# Classifies images with the converted files of a bundle, on MindSpore Lite.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

usage() {
    cat <<'TEXT'
usage: bash scripts/run_infer_lite.sh BUNDLE DATA_PATH [DEVICE_ID] [dvt infer arguments]

  BUNDLE     folder that export.py wrote
  DATA_PATH  an image, a folder of images, or a folder of class folders, whose names are then compared
  DEVICE_ID  card of an Ascend machine (default 0)
Predictions go to standard output as CSV (--output FILE writes them there), a summary to standard error.
The bundle must have been converted with scripts/run_lite_convert.sh; it runs on what it was converted for. Where this
Python has no package mindspore_lite, DVT_LITE_PYTHON names one that has.
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
device=0
if (($#)) && [[ $1 != --* ]]; then
    device=$1
    shift
    [[ $device =~ ^[0-9]+$ ]] || fail "DEVICE_ID $device is not a whole number"
fi
[[ -f $bundle/manifest.json ]] || fail "BUNDLE $bundle is not a bundle: it has no manifest.json"
[[ -e $data ]] || fail "DATA_PATH $data does not exist"

python=${PYTHON:-$root/.venv/bin/python}
[[ -n ${PYTHON:-} || -x $python ]] || python=python3
PYTHONPATH=$root/src${PYTHONPATH:+:$PYTHONPATH} exec "$python" -m dvt.cli.start infer "$bundle" "$data" \
    --backend lite --device_id "$device" "$@"
