"""The configuration of a run: `sections` checks its keys, `files` reads and writes YAML."""

from dvt.config.sections import (  # noqa: F401
    IMAGENET_MEAN,
    IMAGENET_STD,
    AugmentSection,
    DataSection,
    EvalSection,
    ModelSection,
    RunConfig,
    TrainSection,
)
