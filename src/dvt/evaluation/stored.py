"""Results that a checkpoint keeps, under the names of the released checkpoints: read, printed, written."""

import logging
from typing import Any

from dvt.checkpoint.native import Checkpoint, save_checkpoint
from dvt.data import Splits
from dvt.early_exit.budgets import Choice
from dvt.errors import CheckpointError, work_begun
from dvt.report.results import Results

log = logging.getLogger(__name__)


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
    metadata |= choice.to_metadata(results.recommended)
    save_checkpoint(checkpoint, loaded.weights, metadata)
    log.info("stored thresholds and results in %s", checkpoint)
