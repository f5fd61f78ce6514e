#!/usr/bin/env bash
# Trains on one device.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

usage() {
    cat <<'TEXT'
usage: bash scripts/run_standalone_train.sh DATA_PATH CONFIG_PATH [DEVICE_ID] [train.py arguments]

  DATA_PATH    folder of the data set
  CONFIG_PATH  YAML file, such as config/dvt_deit_small_imagenet.yaml
  DEVICE_ID    which card, from 0 (default 0; of no meaning on the CPU)

DEVICE_TARGET=Ascend|GPU|CPU|auto chooses the device (default auto). PYTHON chooses the interpreter; by default it is
that of .venv if there is one, else python3.
TEXT
}

fail() {
    printf 'error: %s\n' "$1" >&2
    exit 2
}

case ${1:-} in -h | --help) usage && exit 0 ;; esac
(($# >= 2)) || { usage >&2 && fail "DATA_PATH and CONFIG_PATH are needed"; }
data=$1 config=$2
shift 2
[[ -d $data ]] || fail "DATA_PATH $data is not a folder"
[[ -f $config ]] || fail "CONFIG_PATH $config is not a file"
device=${DEVICE_ID:-0}
if [[ -n ${1:-} && $1 != -* ]]; then
    device=$1
    shift
fi
[[ $device =~ ^[0-9]+$ ]] || fail "DEVICE_ID $device is not a whole number"

python=${PYTHON:-$root/.venv/bin/python}
[[ -n ${PYTHON:-} || -x $python ]] || python=python3
export DEVICE_ID=$device
exec "$python" "$root/train.py" --config "$config" --data_path "$data" --device_target "${DEVICE_TARGET:-auto}" "$@"
