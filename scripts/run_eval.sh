#!/usr/bin/env bash
# Evaluates a checkpoint on one device.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

usage() {
    cat <<'TEXT'
usage: bash scripts/run_eval.sh DATA_PATH CHECKPOINT_PATH CONFIG_PATH [eval.py arguments]

  DATA_PATH        folder of the data set
  CHECKPOINT_PATH  checkpoint of a trained or converted model
  CONFIG_PATH      YAML file; its data and eval sections are used, the model is that of the checkpoint

DEVICE_TARGET=Ascend|GPU|CPU|auto chooses the device (default auto), DEVICE_ID the card. PYTHON chooses the
interpreter; by default it is that of .venv if there is one, else python3.
TEXT
}

fail() {
    printf 'error: %s\n' "$1" >&2
    exit 2
}

case ${1:-} in -h | --help) usage && exit 0 ;; esac
(($# >= 3)) || { usage >&2 && fail "DATA_PATH, CHECKPOINT_PATH and CONFIG_PATH are needed"; }
data=$1 checkpoint=$2 config=$3
shift 3
[[ -d $data ]] || fail "DATA_PATH $data is not a folder"
[[ -f $checkpoint ]] || fail "CHECKPOINT_PATH $checkpoint is not a file"
[[ -f $config ]] || fail "CONFIG_PATH $config is not a file"

python=${PYTHON:-$root/.venv/bin/python}
[[ -n ${PYTHON:-} || -x $python ]] || python=python3
exec "$python" "$root/eval.py" --checkpoint "$checkpoint" --config "$config" --data_path "$data" \
    --device_target "${DEVICE_TARGET:-auto}" "$@"
