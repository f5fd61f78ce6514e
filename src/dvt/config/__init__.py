"""The configuration of a run: `sections` checks its keys, `files` reads and writes YAML."""

from dvt.config.sections import AugmentSection, DataSection, EvalSection, ModelSection, RunConfig, TrainSection

__all__ = ["AugmentSection", "DataSection", "EvalSection", "ModelSection", "RunConfig", "TrainSection"]
