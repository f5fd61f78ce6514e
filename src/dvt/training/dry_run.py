"""One step of a run, compiled for a simulated card: `python -m dvt.training.dry_run < CONFIGURATION` (JSON), which
`dvt.cli.train` starts with the variables of `dvt.cluster.simulation`. Writes a line of JSON: what `compiled` found,
or the first error with its place."""

import json
import re
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import mindspore as ms
import numpy as np
from mindspore import Tensor

from dvt import device
from dvt.cluster.ranks import Ranks
from dvt.cluster.simulation import STEP_BEGINS
from dvt.config.files import config_from_dict
from dvt.config.sections import RunConfig
from dvt.data import load_splits
from dvt.errors import DVTError
from dvt.training.folder import RunFolder
from dvt.training.run import build

PACKAGE = Path(__file__).parents[1]


def compiled(config: RunConfig, images: int) -> dict[str, Any]:
    """Compiles all graphs of one step of the optimizer; `seconds` for that and `peak_bytes` of the card's memory.

    The batch is the first one of the run, cut or repeated to so many images. It is not sunk to the card, nothing is
    written, and a resumed or fine-tuned run is compiled as from fresh weights.
    """
    train = replace(config.train, dataset_sink_mode=False, init_checkpoint=None)
    config = replace(config, train=train, resume=False, device_target="Ascend")
    config.model.check()
    device.set_up(config.device_target, deterministic=config.deterministic, jit_level=config.jit_level)
    ranks = Ranks.join()
    splits = load_splits(config.data, config.model.input_size, config.seed, config.augment, train.label_smoothing)
    run = build(config, splits, RunFolder(config, writes=False), ranks)
    first = next(splits.training(train.batch_size, ranks.shard, train.accumulation_steps).epoch(0))
    batch = [Tensor(np.resize(each, (images, *each.shape[1:]))) for each in first]
    print(STEP_BEGINS, file=sys.stderr, flush=True)
    began = time.monotonic()
    for _ in range(train.accumulation_steps):
        run.state.step(*batch).asnumpy()
    return {"seconds": time.monotonic() - began, "peak_bytes": ms.runtime.max_memory_allocated()}


def first_error(error: Exception) -> str:
    """What MindSpore says first, and the line of this package that it is about."""
    text = str(error)
    frames = [(Path(name), line) for name, line in re.findall(r"[Ii]n file (\S+?):(\d+)", text)]
    own = [f"{path.relative_to(PACKAGE.parent)}, line {line}" for path, line in frames if path.is_relative_to(PACKAGE)]
    said = re.split(r"\n\s*\n|\n-{10,}", text.strip("-\n "))[0]
    return f"{type(error).__name__}: {said}" + (f"\nat {own[-1]}" if own else "")


def main() -> int:
    try:
        asked = json.load(sys.stdin)
        found = compiled(config_from_dict(asked["config"]), asked["images"])
    except DVTError as error:
        found = {"refused": str(error)}
    except Exception as error:
        found = {"error": first_error(error)}
    print(json.dumps(found), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
