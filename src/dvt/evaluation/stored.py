"""What a checkpoint says of its data and results: compared with what is evaluated, printed, and written."""

import logging
from dataclasses import asdict
from typing import Any

from dvt.checkpoint.native import Checkpoint, save_checkpoint
from dvt.config.files import config_to_dict, flattened
from dvt.config.sections import RunConfig
from dvt.data import Splits
from dvt.early_exit.budgets import Choice
from dvt.errors import CheckpointError, ConfigError, work_begun
from dvt.report.results import Results

REMEDY = "evaluate on the data set the model was trained for"

log = logging.getLogger(__name__)


def check_fit(loaded: Checkpoint, splits: Splits, checkpoint: str) -> None:
    """Raises CheckpointError for images of other classes, channels or normalisation than the model was trained for."""
    held = {"num_classes": len(splits.class_names), "in_channels": splits.preprocessing["in_channels"]}
    for what, there in held.items():
        needed = getattr(loaded.model, what)
        if needed != there:
            raise CheckpointError(f"{checkpoint} has {what} {needed}, the data set {there}; {REMEDY}")
    trained_on = loaded.metadata.get("preprocessing") or {}
    for key in ("mean", "std"):
        if key in trained_on and list(trained_on[key]) != list(splits.preprocessing[key]):
            raise CheckpointError(
                f"{checkpoint} was trained on images normalised with {key} {trained_on[key]}, but this data set has "
                f"{list(splits.preprocessing[key])}; {REMEDY}, or give data.{key}"
            )
    names = loaded.metadata.get("class_names") or splits.class_names
    for index, (name, here) in enumerate(zip(names, splits.class_names, strict=True)):
        if name != here:
            raise CheckpointError(f"class {index} is {name!r} in {checkpoint} and {here!r} in the data set; {REMEDY}")


def check_calibration(loaded: Checkpoint, config: RunConfig, checkpoint: str) -> None:
    """A held-out calibration slice is the same as in training, or it holds images that were trained on."""
    trained = loaded.metadata.get("config")
    if not trained or not config.data.hold_out_calibration:
        return
    asked, before = flattened(config_to_dict(config)), flattened(trained)
    for key in ("seed", "data.dataset", "data.hold_out_calibration", "data.calibration_images"):
        if asked[key] != before[key]:
            raise ConfigError(
                f"{key} is {asked[key]}, but {checkpoint} was trained with {before[key]}: the calibration images "
                "would not be those that were kept out of training; leave the key as it was"
            )


def unfit_calibration(loaded: Checkpoint, config: RunConfig, splits: Splits) -> str:
    """Why the calibration images can certify nothing; "" if the model was trained without them, as far as the
    checkpoint says. Raises ConfigError where nothing else will do.
    """
    asked, why = config.eval, ""
    if not config.data.hold_out_calibration:
        why = "trained on these images; train with --data.hold_out_calibration true"
    elif not loaded.metadata.get("config"):
        why = "the checkpoint does not say which images the model was trained on"
    elif others := splits.difference(loaded.metadata.get("images", {}), "train"):
        why = f"the images are not those of the run, so that it may have been trained on some of these: {others}"
    elif asked.temperature_scaling and asked.confidence == "none":
        why = "the temperatures were fitted on all calibration images"
    if why and asked.confidence != "none" and (asked.on_uncertified == "fail" or asked.risk != "accuracy_drop"):
        raise ConfigError(f"not certified: {why}")
    return why


def stored_results(loaded: Checkpoint, checkpoint: str) -> dict[str, Any]:
    """Those of the file `checkpoint`. Raises CheckpointError if it has none."""
    results = loaded.metadata.get("results")
    if not results or "dynamic_threshold" not in results:
        raise CheckpointError(
            f"{checkpoint} holds no thresholds and results yet; find them with --mode 2 --eval.store, which writes "
            "them into the checkpoint"
        )
    return results


def stored_summary(loaded: Checkpoint, results: dict[str, Any]) -> str:
    """What mode 0 prints."""
    lines = [f"{loaded.model.name}, results stored in the checkpoint"]
    costs = results.get("flops") or []
    for k, accuracy in enumerate(results.get("anytime_classification") or []):
        cost = f" at {costs[k]:.3f} GMACs" if k < len(costs) else ""
        lines.append(f"  exit {k + 1}: top-1 {accuracy:.2f} %{cost}")
    gmacs, accuracies = results.get("budgeted_batch_classification") or ([], [])
    if len(gmacs):
        lines.append("budgeted batch classification")
        lines += [f"  {cost:7.4f} GMACs: top-1 {acc:.2f} %" for cost, acc in zip(gmacs, accuracies, strict=True)]
    return "\n".join(lines)


@work_begun()
def store_results(checkpoint: str, loaded: Checkpoint, splits: Splits, results: Results, choice: Choice) -> None:
    """Thresholds and results into the checkpoint, under the names of the released ones.

    Converted files know neither their preprocessing nor their classes: they get those that they were evaluated with.
    """
    metadata = {"preprocessing": splits.preprocessing, "class_names": list(splits.class_names), **loaded.metadata}
    metadata["results"] = {
        "flops": results.cumulative_gmacs,
        "anytime_classification": results.anytime_accuracy,
        "dynamic_threshold": results.sweep.thresholds,
        "budgeted_batch_classification": [results.sweep.expected_gmacs, results.sweep.accuracy],
    }
    metadata["classes_present"] = results.classes_present and asdict(results.classes_present)
    metadata |= choice.to_metadata(results.recommended)
    if speed := results.throughput:
        metadata["measured"] = {
            "images_per_second": speed.adaptive_images_per_second,
            "all_exits_images_per_second": speed.all_exits_images_per_second,
            "batch_size": speed.batch_size,
            **results.machine,
        }
    save_checkpoint(checkpoint, loaded.weights, metadata)
    log.info("stored thresholds and results in %s", checkpoint)
