"""`dvt eval` with eval.py and `dvt report`, and `dvt thresholds`, which reads what they have stored."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from dvt.cli.support import Parser, given_keys, print_if_asked, shipped_checkpoint
from dvt.config.files import config_from_dict, flattened
from dvt.config.sections import EvalSection, RunConfig
from dvt.errors import ConfigError, DataError
from dvt.value_checks import PATH

if TYPE_CHECKING:
    import numpy as np

    from dvt.early_exit.candidates import CalibrationSet

FOR_ANY_NETWORK = {"max_accuracy_drop", "confidence", "risk", "on_uncertified", "budget_gmacs"}
OF_ONE_DATASET = tuple(f"data.{key}" for key in ("path", "class_map", "resize_size", "canvas_size", "item_sizes"))
SHOWN = ("data", "eval", "device_target", "seed", "output")


@dataclass
class EvalOptions:
    """Evaluate a checkpoint: accuracy of every exit, accuracy and cost with early exits, measured images/s. Data and
    evaluation keys start from those of the training run, if the checkpoint holds them.

    Args:
        checkpoint: Checkpoint of a trained or converted model.
        mode: 0 prints the results stored in the checkpoint; 1 evaluates with the thresholds stored in it; 2 finds
            thresholds on the training set, then evaluates.
        output: Folder for the results; null for that of the checkpoint.
    """

    checkpoint: str = field(metadata=PATH)
    mode: Literal[0, 1, 2] = 2
    output: str | None = field(default=None, metadata=PATH)


@dataclass
class ReportOptions(EvalOptions):
    __doc__ = EvalOptions.__doc__

    checkpoint: str | None = field(default=None, metadata=PATH)
    output: str | None = field(default="runs/report", metadata=PATH)


def run(argv: Sequence[str], prog: str, options: type[EvalOptions] = EvalOptions) -> None:
    """The command `dvt eval`."""
    asked, given = parse(argv, prog, options)
    checkpoint = asked.checkpoint or shipped_checkpoint()
    keys = given_keys(given)  # before MindSpore is loaded, so that mistakes are refused at once
    from dvt.checkpoint.native import read_checkpoint, weights_file

    keys["output"] = asked.output or str(weights_file(Path(checkpoint)).parent)
    loaded = read_checkpoint(checkpoint)
    stored = loaded.metadata.get("config")
    if stored is not None:
        config_from_dict(stored, f"the configuration stored in {checkpoint}")
    config = configuration(keys, stored)
    print_if_asked(given, config)
    from dvt.evaluation import evaluate_checkpoint

    evaluate_checkpoint(checkpoint, asked.mode, config, config.output, loaded)


def report(argv: Sequence[str], prog: str) -> None:
    """The command `dvt report`: the same into another folder, and by default for the checkpoint of a checkout."""
    run(argv, prog, ReportOptions)


def parse(
    argv: Sequence[str], prog: str = "dvt eval", options: type[EvalOptions] = EvalOptions
) -> tuple[EvalOptions, dict[str, Any]]:
    """What to evaluate, and all the options that were given."""
    words = [] if options is EvalOptions else ["checkpoint"]
    parser = Parser(prog, options, words, log_level="info")
    parser.add_config(SHOWN, reason="; the model and its training are fixed by the checkpoint")
    return parser.parse(argv)


def configuration(keys: dict[str, Any], stored: dict[str, Any] | None) -> RunConfig:
    """`keys` over the configuration that the training run has stored in the checkpoint.

    The device is not taken from there, because the evaluation may run elsewhere, nor over how many images speed is
    measured: 0.1.0 stored its default of 2,048, which can take longer than the evaluation. Nor is what belongs to the
    files of the data set, where another one is evaluated.
    """
    base, here = flattened(stored or {}), {"device_target": RunConfig.device_target, "eval.throughput_images": None}
    if keys.get("data.dataset", base.get("data.dataset")) != base.get("data.dataset"):
        here |= dict.fromkeys(OF_ONE_DATASET)
    return config_from_dict(base | here | keys)


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


def thresholds(argv: Sequence[str], prog: str) -> None:
    """The command `dvt thresholds`."""
    text = (
        "--risk and the like stand for --eval.risk; keys that run a model have no effect here. The file may also be of "
        "any other network: docs/certified.md. Each answer holds by itself: asking often and keeping the best spends "
        "the promise."
    )
    options, given = Parser(prog, ThresholdOptions, epilog=text).parse(argv)
    if options.eval.temperature_scaling:
        raise ConfigError("temperatures are fitted by the evaluation; run it with --eval.temperature_scaling")
    from dvt.early_exit.outcomes import StoredPredictions, read_arrays

    arrays = read_arrays(options.predictions)
    if "cumulative_gmacs" not in arrays:
        if given.get("eval.on_uncertified") == "warn":
            raise ConfigError("another network has certified thresholds or none; leave --on-uncertified warn out")
        _of_any_network(arrays, options)
        return
    from dvt.early_exit.budgets import Costs, choose_thresholds, recommend
    from dvt.early_exit.decisions import thresholds_text
    from dvt.report.words import percent, setting_lines, speed

    stored = StoredPredictions.from_arrays(arrays, options.predictions)
    if stored.calibration is None:
        place = options.predictions
        raise DataError(f"{place} holds no calibration images to choose thresholds on; evaluate with --mode 2")
    costs = Costs(stored.cumulative_gmacs, stored.cumulative_seconds)
    choice = choose_thresholds(stored.calibration, costs, options.eval, stored.temperatures, stored.unfit or None)
    found, last = recommend(choice, stored.calibration, stored.val, costs), stored.val.accuracy[-1]
    if options.json:
        print(json.dumps(asdict(found) | {"last_exit_accuracy": last}))
        return
    print(f"thresholds: {thresholds_text(found.thresholds)}\nchosen: {found.rule}")
    print(f"held-out images (last exit {percent(last)}):", *setting_lines(found), sep="\n  ")
    if found.expected_images_per_second is not None:
        print(f"by the measured times of the exits: {speed(found.expected_images_per_second)} images/s")


def _of_any_network(arrays: Mapping[str, "np.ndarray"], options: ThresholdOptions) -> None:
    """Thresholds for a network that this package has not run: certified, or of a search where one is asked for."""
    from dvt.early_exit.certify import certify
    from dvt.early_exit.decisions import thresholds_text
    from dvt.early_exit.outcomes import of_any_network

    path, asked, plain = options.predictions, options.eval, vars(EvalSection())
    if changed := {key for key, value in vars(asked).items() if value != plain[key]} - FOR_ANY_NETWORK:
        listed = ", ".join(f"--{key}" for key in sorted(changed))
        raise ConfigError(f"{path} is of another network, for which {listed} has no effect; leave it out")
    images = of_any_network(arrays, path)
    if asked.confidence == "none" or asked.has_budget:
        _searched(images, options)
        return
    found = certify(images, asked.risk, asked.max_accuracy_drop, asked.confidence)
    if options.json:
        print(json.dumps(found.to_json()))
        return
    print(f"thresholds: {thresholds_text(found.thresholds)}\n{found.promise()}\n  from {found.evidence()}")
    share = 100 * found.cost / images.costs[-1]
    print(f"average cost of the images tested: {found.cost:.4g}, {share:.1f} % of that of the last exit")
    if images.labels is not None:
        print(f"accuracy of the last exit: {100 * (images.predicted[-1] == images.labels).mean():.2f} %")


def _searched(images: "CalibrationSet", options: ThresholdOptions) -> None:
    """Thresholds of the search for such a network; what they bring is that on the same images."""
    from dvt.early_exit.budgets import Costs, certainty, choose_thresholds, evaluate_thresholds
    from dvt.early_exit.decisions import thresholds_text
    from dvt.early_exit.outcomes import Outcomes
    from dvt.early_exit.scores import RULES

    if images.labels is None:
        raise ConfigError(f"{options.predictions} has no labels, which a search needs; --risk changes needs none")
    scores = images.scores.astype("float64")
    outcomes = Outcomes(images.predicted, images.labels, dict.fromkeys(RULES, scores))  # one score, by whatever rule
    costs = Costs(images.costs.astype("float64"))
    choice = choose_thresholds(outcomes, costs, options.eval)
    found, last = evaluate_thresholds(outcomes, costs, choice.thresholds), outcomes.accuracy[-1]
    if options.json:
        bound = choice.gmacs_bound and asdict(choice.gmacs_bound)
        shown = {"thresholds": found.thresholds, "not_certified": choice.not_certified, "gmacs_bound": bound}
        shown |= {"accuracy": found.accuracy, "cost": found.expected_gmacs, "last_exit_accuracy": last}
        print(json.dumps(shown))
        return
    print(f"thresholds: {thresholds_text(found.thresholds)}\nchosen: {choice.reason}", *certainty(choice), sep="\n")
    cost = f"{found.expected_gmacs:.4g}, {100 * found.cost_fraction:.1f} % of that of the last exit"
    print(f"on these images: average cost {cost}; accuracy {found.accuracy:.2f} %, that of the last exit {last:.2f} %")
