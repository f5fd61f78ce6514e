#!/usr/bin/env bash
# Trains on several devices, of one machine or of several.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

usage() {
    cat <<'TEXT'
usage: bash scripts/run_distribute_train.sh DATA_PATH CONFIG_PATH [DEVICE_NUM] [train.py arguments]

  DATA_PATH    folder of the data set; with DRY_RUN also -, for blank images in place of a
               folder of images
  CONFIG_PATH  YAML file, such as config/dvt_t2t_vit_12_imagenet.yaml
  DEVICE_NUM   devices of this machine to train on (default all; on the CPU 2 workers)

DEVICE_TARGET=Ascend|GPU|CPU|auto chooses the device (default Ascend). For several machines run this on each, with
  NNODES          number of machines
  NODE_RANK       which of them this is, from 0
  MASTER_ADDR     address of machine 0, the same everywhere
  MASTER_PORT     a free port there, the same everywhere (default 8118)
RANK_TABLE_FILE names an HCCL rank table (Ascend; needed only where HCCL cannot find the devices itself).
CLUSTER_TIMEOUT is how many seconds workers wait for each other at the start (default 600). PYTHON chooses the
interpreter; by default it is that of .venv if there is one, else python3.

DRY_RUN=1 trains nothing: without a card it compiles the step for rank RANK_ID (0) of DEVICE_NUM simulated Ascend cards
(default 8), and says what it needs (docs/ascend.md). DRY_RUN=largest also looks for the largest batch that fits.

Every worker's log goes to a new folder below logs/ of the run folder (--output). docs/distributed.md has the details.
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
images=(--data_path "$data")
[[ $data == - && ${DRY_RUN:-0} != 0 ]] && images=()
[[ -d $data || ${#images[@]} -eq 0 ]] || fail "DATA_PATH $data is not a folder"
[[ -f $config ]] || fail "CONFIG_PATH $config is not a file"
devices=()
if [[ -n ${1:-} && $1 != -* ]]; then
    [[ $1 =~ ^[0-9]+$ ]] || fail "DEVICE_NUM $1 is not a whole number"
    devices=(--device_num "$1")
    shift
fi

case ${DRY_RUN:-0} in
    0) dry_run=() ;;
    1) dry_run=(--dry_run) ;;
    largest) dry_run=(--dry_run --largest_batch) ;;
    *) fail "DRY_RUN is $DRY_RUN; it must be 0, 1 or largest" ;;
esac

python=${PYTHON:-$root/.venv/bin/python}
[[ -n ${PYTHON:-} || -x $python ]] || python=python3
export PYTHONPATH=$root/src${PYTHONPATH:+:$PYTHONPATH}
exec "$python" -m dvt.cli.launch "${devices[@]}" -- --config "$config" "${images[@]}" \
    --device_target "${DEVICE_TARGET:-Ascend}" "${dry_run[@]}" "$@"
