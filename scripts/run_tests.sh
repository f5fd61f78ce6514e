#!/usr/bin/env bash
# Sets up .venv with what the tests need and runs one part of the test suite.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

usage() {
    cat <<'TEXT'
usage: bash scripts/run_tests.sh [--slow | --soak] [pytest arguments]

Runs the quick tests: under 10 minutes on 2 cores.
  --slow  instead those that need processes, launchers or large models
  --soak  instead the long loops
Files run in two processes at a time; DVT_TEST_PROCESSES=N chooses another number.
Other arguments go to pytest, such as -x, -k NAME or tests/config/test_config.py; paths count from the top of the checkout.
TEXT
}

part=()
processes=${DVT_TEST_PROCESSES:-2}
while (($#)); do
    case $1 in
        -h | --help) usage && exit 0 ;;
        --slow) part=(-m slow) ;;
        --soak) part=(-m soak) processes=0 ;; # some measure memory and time
        *) break ;;
    esac
    shift
done

cd "$root"
bash scripts/setup_env.sh --dev
exec .venv/bin/python -m pytest --numprocesses "$processes" --dist loadfile "${part[@]}" "$@"
