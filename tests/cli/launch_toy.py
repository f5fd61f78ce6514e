"""Runs toy_worker.py by the launcher: `launch_toy.py OUTPUT DEVICE_NUM MODE STEPS`; machines as in the environment."""

import os
import signal
import sys
from pathlib import Path

from dvt.cli import launch
from dvt.cli.support import set_up_logging
from dvt.cluster.placement import worker_environment

if __name__ == "__main__":
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # also where the tests were started with nohup
    set_up_logging()
    output, device_num, *arguments = sys.argv[1:]
    placement = launch.placement_from(os.environ, int(device_num))
    environment = worker_environment(placement, "CPU", Path(sys.executable))
    command = [str(Path(__file__).with_name("toy_worker.py")), *arguments]
    sys.exit(launch.run(command, placement, Path(output), environment))
