#!/usr/bin/env bash
# From a fresh checkout to a trained DVT that stops early, and a report that shows it.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
config=$root/config/quickstart.yaml
output=$root/runs/quickstart
data=
fresh=false

usage() {
    cat <<'TEXT'
usage: bash scripts/quickstart.sh [--data FOLDER] [--output FOLDER] [--fresh]

Sets up .venv, trains a small three-exit DVT on Fashion-MNIST "scale" (config/quickstart.yaml), finds thresholds on a
slice of the training set, evaluates the test set with real early exits and writes a report. About 8 minutes on 2 quiet
CPU cores, twice that on slow ones, installation aside. A second run reuses what is there, or goes on where the first
was interrupted.

  --data FOLDER    folder with the Fashion-MNIST files; by default they are looked for and, if need be, fetched
  --output FOLDER  where checkpoints and report go (default: runs/quickstart)
  --fresh          train and evaluate again, in place of what is there
TEXT
}

fail() {
    printf 'error: %s\n' "$1" >&2
    exit 2
}

while (($#)); do
    case $1 in
        -h | --help) usage && exit 0 ;;
        --data | --output)
            [[ -n ${2:-} ]] || fail "$1 needs a folder"
            # Relative to where the user stands, not to the checkout.
            if [[ $1 == --data ]]; then data=$(realpath -m -- "$2"); else output=$(realpath -m -- "$2"); fi
            shift
            ;;
        --data=*) data=$(realpath -m -- "${1#*=}") ;;
        --output=*) output=$(realpath -m -- "${1#*=}") ;;
        --fresh) fresh=true ;;
        *) fail "unknown argument: $1 (--help lists the options)" ;;
    esac
    shift
done
[[ -z $data || -d $data ]] || fail "--data $data is not a folder"

bash "$root/scripts/setup_env.sh"
dvt=$root/.venv/bin/dvt
checkpoint=$output/last.ckpt
state=$output/state.ckpt
report=$output/report
mkdir -p "$output"

# Runs a command and ends this script as it ended; $1 is what to say after Ctrl-C.
run() {
    local after_interrupt=$1 status=0
    shift
    # With a trap bash waits for the command, which saves what it has; an ignored signal would not reach it at all.
    trap : INT
    "$@" || status=$?
    trap - INT
    if ((status == 130)); then printf '\n%s\n' "$after_interrupt" >&2; fi
    if ((status)); then exit "$status"; fi
}

# Installs Debian's package of Fashion-MNIST if the files are in no usual place and that works without asking anybody;
# if it does not, dvt downloads them.
get_fashion_mnist() {
    local package=dataset-fashion-mnist
    if compgen -G '/usr/share/datasets/fashion-mnist/*' >/dev/null; then return; fi
    if compgen -G "$HOME/.cache/dvt/fashion-mnist/*" >/dev/null; then return; fi
    local apt=(env DEBIAN_FRONTEND=noninteractive timeout 600 apt-get -o DPkg::Lock::Timeout=60 -q)
    command -v apt-get >/dev/null || return 0
    if ((EUID)); then
        sudo -n true 2>/dev/null || return 0
        apt=(sudo -n "${apt[@]}")
    fi
    echo "Installing the package $package (31 MB) ..."
    local install=("${apt[@]}" install -y --no-install-recommends "$package")
    # On a fresh machine the package lists are missing or old.
    "${install[@]}" </dev/null >/dev/null 2>&1 ||
        { "${apt[@]}" update </dev/null >/dev/null 2>&1 && "${install[@]}" </dev/null >/dev/null 2>&1; } ||
        echo "The package cannot be installed; the files are downloaded instead."
}

fingerprint=$({ echo "$data" && cat "$config"; } | sha256sum | cut -d' ' -f1)
begun=$output/.training
trained=$output/.trained
evaluated=$output/.evaluated

if [[ $fresh == true ]]; then
    rm -f "$output"/{config.yaml,last.ckpt,best.ckpt,state.ckpt,state_previous.ckpt,metrics.csv,train.log} \
        "$output"/epoch_*.ckpt "$begun" "$trained" "$evaluated"
    rm -rf "$output"/tensorboard
elif [[ -f $state && (! -f $begun || $(<"$begun") != "$fingerprint") ]]; then
    fail "$output holds a run with another configuration or --data; --fresh replaces it, --output keeps both"
fi

if [[ -z $data && ! (-f $trained && -f $evaluated && -d $report) ]]; then get_fashion_mnist; fi

if [[ -f $checkpoint && -f $trained ]]; then
    echo "Using the model trained earlier: $checkpoint (--fresh trains again)."
else
    resume=()
    if [[ -f $state ]]; then
        resume=(--resume)
        echo "Going on with the training that was interrupted ..."
    else
        echo "Training (5 to 10 minutes on 2 CPU cores) ..."
    fi
    rm -f "$evaluated"
    echo "$fingerprint" >"$begun"
    # Two workers train faster than one process on two cores: small operators keep one core busy, not both.
    train=("$dvt" train)
    if (($(nproc) > 1)); then
        train=("$root/.venv/bin/python" -m dvt.cli.launch --device_num 2 -- --device_target CPU --train.batch_size 32)
    fi
    run "Training was interrupted; run this script again to go on. What was learnt so far is in
$checkpoint and can be evaluated:
  $dvt eval --checkpoint $checkpoint --output $report" \
        "${train[@]}" --config "$config" --output "$output" "${resume[@]}" ${data:+--data.path "$data"}
    [[ -f $checkpoint ]] || fail "training ended without writing $checkpoint"
    touch "$trained"
fi

if [[ -f $evaluated && -d $report ]]; then
    echo "Using the evaluation made earlier."
else
    echo "Finding thresholds and evaluating with early exits ..."
    run "Evaluation was interrupted; run this script again to go on. The trained model is kept." \
        "$dvt" eval --checkpoint "$checkpoint" --mode 2 --eval.store --eval.throughput_images 2048 --output "$report" \
        ${data:+--data.path "$data"}
    touch "$evaluated"
fi
echo "The report is in $report"
