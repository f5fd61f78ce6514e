"""What is refused before an evaluation starts: another data set, other calibration images."""

from dvt.checkpoint.native import Checkpoint
from dvt.config.sections import RunConfig
from dvt.data import Splits
from dvt.errors import CheckpointError, ConfigError


def check_fit(loaded: Checkpoint, splits: Splits, checkpoint: str) -> None:
    held = {"num_classes": len(splits.class_names), "in_channels": splits.preprocessing["in_channels"]}
    for what, there in held.items():
        needed = getattr(loaded.model, what)
        if needed != there:
            raise CheckpointError(
                f"{checkpoint} has {what} {needed}, the data set {there}; evaluate on the data set the model was "
                "trained for"
            )
    trained_on = loaded.metadata.get("preprocessing") or {}
    for key in ("mean", "std"):
        if key in trained_on and list(trained_on[key]) != list(splits.preprocessing[key]):
            raise CheckpointError(
                f"{checkpoint} was trained on images normalised with {key} {trained_on[key]}, but this data set has "
                f"{list(splits.preprocessing[key])}; evaluate on the data set it was trained for, or give data.{key}"
            )
    names = loaded.metadata.get("class_names")
    if names and list(names) != list(splits.class_names):
        differ = next(i for i, (a, b) in enumerate(zip(names, splits.class_names, strict=True)) if a != b)
        raise CheckpointError(
            f"class {differ} is {names[differ]!r} in {checkpoint} and {splits.class_names[differ]!r} in the data set; "
            "evaluate on the data set the model was trained for"
        )


def check_calibration(loaded: Checkpoint, config: RunConfig, checkpoint: str) -> None:
    """A held-out calibration slice is the same as in training, or it holds images that were trained on."""
    trained = loaded.metadata.get("config")
    if not trained or not config.data.hold_out_calibration:
        return
    asked = {"seed": config.seed, **vars(config.data)}
    before = {"seed": trained["seed"], **trained["data"]}
    for key in ("seed", "dataset", "hold_out_calibration", "calibration_images"):
        if asked[key] != before[key]:
            name = key if key == "seed" else f"data.{key}"
            raise ConfigError(
                f"{name} is {asked[key]}, but {checkpoint} was trained with {before[key]}: the calibration images "
                "would not be those that were kept out of training; leave the key as it was"
            )
