"""The configuration of a run: `sections` types and checks its keys, `files` reads and writes them as YAML."""

from dvt.config.sections import (
    AmpLevel,
    AugmentSection,
    DataSection,
    DatasetName,
    DeviceTarget,
    EvalSection,
    ModelSection,
    RunConfig,
    TrainSection,
)

__all__ = [
    "AmpLevel",
    "AugmentSection",
    "DataSection",
    "DatasetName",
    "DeviceTarget",
    "EvalSection",
    "ModelSection",
    "RunConfig",
    "TrainSection",
]
