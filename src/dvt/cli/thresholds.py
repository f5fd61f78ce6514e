"""`dvt thresholds`."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING

from dvt.cli.support import Parser
from dvt.config.sections import EvalSection
from dvt.errors import ConfigError, DataError
from dvt.value_checks import PATH

if TYPE_CHECKING:
    from dvt.early_exit.budgets import Recommended


@dataclass
class ThresholdOptions:
    """Choose thresholds from the predictions.npz of an evaluation, without running the model again.

    Args:
        predictions: The file predictions.npz, or the folder that holds it.
        json: Print one JSON object.
        eval: What they must achieve.
    """

    predictions: str = field(metadata=PATH)
    json: bool = False
    eval: EvalSection = field(default_factory=EvalSection)


def run(argv: Sequence[str], prog: str) -> None:
    """The command."""
    options = parse(argv, prog)
    if options.eval.temperature_scaling:
        raise ConfigError("temperatures are fitted by the evaluation; run it with --eval.temperature_scaling")
    from dvt.early_exit.budgets import Costs, choose_thresholds, recommend
    from dvt.early_exit.outcomes import StoredPredictions

    stored = StoredPredictions.load(options.predictions)
    if stored.calibration is None:
        place = options.predictions
        raise DataError(f"{place} holds no calibration images to choose thresholds on; evaluate with --mode 2")
    costs = Costs(stored.cumulative_gmacs, stored.cumulative_seconds)
    choice = choose_thresholds(stored.calibration, costs, options.eval, stored.temperatures)
    found, last = recommend(choice, stored.calibration, stored.val, costs), stored.val.accuracy[-1]
    print(json.dumps(asdict(found) | {"last_exit_accuracy": last}) if options.json else _described(found, last))


def parse(argv: Sequence[str], prog: str = "dvt thresholds") -> ThresholdOptions:
    """What the arguments ask for."""
    text = "--KEY stands for --eval.KEY; keys that run a model have no effect here."
    return Parser(prog, ThresholdOptions, epilog=text).parse(argv)[0]


def _described(found: "Recommended", last_exit_accuracy: float) -> str:
    budget = found.budget
    lines = [
        f"thresholds: {', '.join(f'{value:.6g}' for value in found.thresholds)}",
        f"chosen: {found.rule}",
        f"budget, {budget.unit}: asked for {budget.asked:.4g}, on the calibration images "
        f"{budget.calibration:.4g}, on held-out images {budget.held_out:.4g}",
        f"held-out images: {found.accuracy:.2f} % (last exit {last_exit_accuracy:.2f} %) at "
        f"{found.expected_gmacs:.4g} GMACs/image, {100 * found.cost_fraction:.1f} % of the last exit's cost",
        "leave at each exit: " + ", ".join(f"{100 * share:.1f} %" for share in found.exit_fractions),
    ]
    if found.expected_images_per_second is not None:
        lines.append(f"by the measured times of the exits: {found.expected_images_per_second:.4g} images/s")
    return "\n".join(lines)
