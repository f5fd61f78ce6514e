"""The report of an evaluation: `report.html` (self-contained), figures as PNG, numbers as JSON, a table for consoles.

Everything said is computed from the `results` of `dvt.evaluation`. Two things are kept apart and named so: GMACs, which
are computed from the model's shapes, and images/s, which were measured. Accuracy is in percent, exits are 0-based in
`results` and counted from 1 in prose. Axis letters: K exits, P points of the sweep. NumPy and matplotlib only.
"""

import json
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dvt.errors import ConfigError, DataError
from dvt.report.figures import DARK, LIGHT, draw_all
from dvt.report.page import page
from dvt.report.pictures import (
    AttentionExample,
    ClassExtremes,
    Example,
    attention_rows,
    example_rows,
    extreme_rows,
)
from dvt.report.words import batches, early_exit_speed, exit_rows, number, percent, share, speed, threshold_list
from dvt.safe_files import write_failure

PAGE = "report.html"
NUMBERS = "results.json"
FIGURES = (
    *("accuracy_gmacs.png", "accuracy_speed.png", "exit_share.png", "reliability.png"),
    *("examples.png", "extremes.png", "attention.png"),
)

NO_LOSS = 0.5  # percentage points within which a headline says that accuracy is kept
SAME_SPEED = 0.05  # a measured speed this close to that of all exits counts as equal
MOST_EXAMPLES = 12  # per exit

_REQUIRED: dict[str, tuple[str, ...]] = {
    "": (
        *("model", "checkpoint", "mode", "dataset", "num_images", "class_names", "date", "machine"),
        *("cumulative_gmacs", "anytime_accuracy", "sweep"),
    ),
    "model": ("name", "grid_sizes"),
    "sweep": ("thresholds", "accuracy", "expected_gmacs", "exit_fractions"),
    "recommended": ("thresholds", "accuracy", "expected_gmacs", "cost_fraction", "exit_fractions", "rule"),
    "throughput": (
        *("batch_size", "num_images", "rounds", "all_exits_images_per_second", "adaptive_images_per_second"),
        *("speed_up", "gmac_ratio", "settings"),
    ),
}
_OPTIONAL: dict[str, Any] = {
    "recommended": None,
    "throughput": None,
    "images_left_out": {},
    "groups": {},
    "per_class": {},
    "frontier": None,
    "published": None,
    "reliability": [],
    "rules": [],
    "searches": [],
    "config": None,
}


def write_report(
    results: dict[str, Any],
    folder: Path,
    examples: Sequence[Example] | None = None,
    extremes: Sequence[ClassExtremes] = (),
    attention: Sequence[AttentionExample] = (),
) -> Path:
    """Writes `results.json`, the figures and `report.html` into `folder` and returns the path of the page.

    Every file is written under another name first and then moved into place, the page last; figures of an earlier
    report that this one does not have are removed. Raises DataError for results that lack a key or examples that do
    not fit, ConfigError for a folder that cannot be written.
    """
    results = _checked(results)
    examples = _checked_examples(examples or [], len(results["cumulative_gmacs"]))
    light, dark = draw_all(results, LIGHT), draw_all(results, DARK)
    files = {NUMBERS: (json.dumps(results, indent=1, allow_nan=False) + "\n").encode(), **light}
    if examples:
        files["examples.png"] = example_rows(examples, len(results["cumulative_gmacs"]))
    figures = {name: (light[name], dark[name]) for name in light}
    if extremes:
        files["extremes.png"] = extreme_rows(extremes)
    if attention:
        figures["attention.png"] = (attention_rows(attention, LIGHT), attention_rows(attention, DARK))
        files["attention.png"] = figures["attention.png"][0]
    files[PAGE] = page(results, headline(results), figures, examples, extremes).encode()

    folder = Path(folder)
    temporary = {name: folder / f".{name}.{os.getpid()}.tmp" for name in files}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in files.items():
            temporary[name].write_bytes(content)
        for name in files:
            os.replace(temporary[name], folder / name)
        for name in set(FIGURES) - set(files):
            (folder / name).unlink(missing_ok=True)
    except OSError as error:
        raise ConfigError(f"the report cannot be written to {folder}: {write_failure(folder, error)}") from error
    finally:
        for path in temporary.values():
            if path.is_file():
                path.unlink()
    return folder / PAGE


def summary(results: dict[str, Any]) -> str:
    """A plain-text table: accuracy and GMACs per exit, the recommended setting, measured images/s.

    Raises DataError for results that lack a key.
    """
    results = _checked(results)
    lines = [f"{'exit':<6}{'tokens':>8}{'GMACs/image':>14}{'accuracy':>12}"]
    for k, (tokens, gmacs, accuracy) in enumerate(exit_rows(results)):
        lines.append(f"{k + 1:<6}{tokens:>8}{number(gmacs):>14}{percent(accuracy):>12}")
    lines += [
        f"{count:,} images of {name} could not be read and are left out"
        for name, count in results["images_left_out"].items()
    ]
    chosen, measured = results["recommended"], results["throughput"]
    if chosen:
        lines += [
            f"recommended thresholds ({chosen['rule']}): {threshold_list(chosen['thresholds'])}",
            f"  {percent(chosen['accuracy'])} at {number(chosen['expected_gmacs'])} GMACs/image, "
            f"{share(chosen['cost_fraction'])} of the last exit's cost",
            "  images that leave at each exit: " + ", ".join(share(f) for f in chosen["exit_fractions"]),
        ]
        if chosen.get("budget"):
            budget = chosen["budget"]
            lines.append(
                f"  budget, {budget['unit']}: asked for {number(budget['asked'])}, on the calibration images "
                f"{number(budget['calibration'])}, on these {number(budget['held_out'])}"
            )
    if measured:
        line = f"all exits {speed(measured['all_exits_images_per_second'])}, early exits {early_exit_speed(results)}"
        if chosen:
            line += f", {measured['speed_up']:.2f} times (GMACs: {measured['gmac_ratio']:.2f} times)"
        lines.append(f"measured images/s ({batches(measured)}): {line}")
        if measured.get("moving_fraction") is not None:
            lines.append(f"  gathering and scattering {share(measured['moving_fraction'])} of the time")
    return "\n".join(lines)


def headline(results: dict[str, Any]) -> str:
    """What stopping early brings, in a sentence or two that claim no more than the numbers. Raises DataError."""
    results = _checked(results)
    gmacs, accuracy, chosen = results["cumulative_gmacs"], results["anytime_accuracy"], results["recommended"]
    measured, last = results["throughput"], f"{accuracy[-1]:.1f} %"
    if len(gmacs) == 1:
        return (
            f"One exit: {last} accuracy at {number(gmacs[0])} GMACs per image. With a single exit nothing stops early."
        )
    if not chosen:
        return (
            f"The last exit reaches {last} accuracy at {number(gmacs[-1])} GMACs per image; no thresholds were chosen."
        )

    reached, drop = f"{chosen['accuracy']:.1f} %", accuracy[-1] - chosen["accuracy"]
    if drop > NO_LOSS:
        drop = round(accuracy[-1], 1) - round(chosen["accuracy"], 1)  # of the numbers as they are printed
        sentence = f"Stopping early loses {drop:.1f} points of accuracy ({reached}; last exit: {last})"
    else:
        sentence = f"Stopping early {'keeps' if drop >= 0 else 'reaches'} {reached} accuracy (last exit: {last})"
    cost = 100.0 * chosen["cost_fraction"]
    sentence += f" at {cost:.1f} % of the cost" + ("" if cost < 99.95 else ", which saves nothing")
    if measured:
        times = f"{measured['speed_up']:.2f} times as many images per second"
        if measured["speed_up"] >= 1 + SAME_SPEED:
            sentence += f", and runs {times} (measured)."
        elif measured["speed_up"] > 1 - SAME_SPEED:
            sentence += f", but is no faster: {times} (measured)."
        else:
            sentence += f", but is slower: {times} (measured)."
    else:
        sentence += "; its speed was not measured."
    return sentence + _single_exit_remark(gmacs, accuracy, chosen)


def _single_exit_remark(gmacs: list[float], accuracy: list[float], chosen: dict[str, Any]) -> str:
    """Says so where one earlier exit for every image is at least as good, or where the last exit is not the best."""
    best = int(np.argmax(accuracy))
    for k in range(len(gmacs) - 1):
        if accuracy[k] >= chosen["accuracy"] and gmacs[k] <= chosen["expected_gmacs"] * (1 + 1e-9):
            cost = 100.0 * gmacs[k] / gmacs[-1]
            return f" Exit {k + 1} alone is as good or better: {accuracy[k]:.1f} % at {cost:.1f} % of the cost."
    if accuracy[best] > accuracy[-1]:
        return f" The last exit is not the best one: exit {best + 1} alone reaches {accuracy[best]:.1f} %."
    return ""


# ------------------------------------------------------------------------------------------------------------ checks


def _checked(results: dict[str, Any]) -> dict[str, Any]:
    """A copy in plain JSON values with every optional part present; DataError names the key that is missing or off."""
    results = _OPTIONAL | _json_values(results)
    for part, keys in _REQUIRED.items():
        values = results if not part else results[part]
        if part in _OPTIONAL and values is None:
            continue
        if not isinstance(values, dict):
            raise DataError(f"results[{part!r}] is {type(values).__name__}; it must be a dict with {', '.join(keys)}")
        for key in keys:
            if key not in values:
                raise DataError(f"the results lack {f'{part}.{key}' if part else key!r}; run the evaluation again")
    for key in ("groups", "per_class"):
        results[key] = results[key] or {}
    num_exits = len(results["cumulative_gmacs"])
    lengths = {"model.grid_sizes": results["model"]["grid_sizes"], "anytime_accuracy": results["anytime_accuracy"]}
    rows = dict(results["per_class"])
    rows |= {f"{name}.{value}": row for name, values in results["groups"].items() for value, row in values.items()}
    for name, row in rows.items():
        for key in ("count", "accuracy", "exit_fractions"):
            if key not in row:
                raise DataError(f"the results of {name!r} lack {key!r}; run the evaluation again")
        lengths[f"exit_fractions of {name!r}"] = row["exit_fractions"]
    if results["recommended"]:
        lengths["recommended.exit_fractions"] = results["recommended"]["exit_fractions"]
    for name, values in lengths.items():
        if num_exits == 0 or len(values) != num_exits:
            raise DataError(f"the results have {num_exits} exits in cumulative_gmacs, but {len(values)} in {name}")
    return results


def _json_values(value: Any) -> Any:
    """NumPy values as plain ones, numbers that are not finite as None, which JSON can hold."""
    if isinstance(value, dict):
        return {str(key): _json_values(item) for key, item in value.items()}
    if isinstance(value, np.ndarray | np.generic):
        return _json_values(value.tolist())
    if isinstance(value, list | tuple):
        return [_json_values(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _checked_examples(examples: Sequence[Example], num_exits: int) -> list[Example]:
    """By exit, at most `MOST_EXAMPLES` of each."""
    for example in examples:
        image = np.asarray(example.image)
        if image.dtype != np.uint8 or not (image.ndim == 2 or (image.ndim == 3 and image.shape[2] == 3)):
            raise DataError(
                f"an example image is {image.dtype} of shape {image.shape}; it must be uint8 of (H, W) or (H, W, 3)"
            )
        if not 0 <= example.exit_index < num_exits:
            raise DataError(f"an example left at exit_index {example.exit_index}; the results have {num_exits} exits")
    return [e for k in range(num_exits) for e in [x for x in examples if x.exit_index == k][:MOST_EXAMPLES]]
