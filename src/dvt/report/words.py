"""How page and console say results: numbers, a summary, and a headline that claims no more than the numbers."""

from collections.abc import Sequence

import numpy as np

from dvt.early_exit.budgets import BudgetUse, Recommended, certainty
from dvt.early_exit.decisions import NEVER
from dvt.report.results import Results, Throughput

NO_LOSS = 0.5  # percentage points within which a headline says that accuracy is kept
SAME_SPEED = 0.05  # a measured speed this close to that of all exits counts as equal


def number(value: float | None) -> str:
    """Four significant digits, as for GMACs."""
    return "–" if value is None else f"{value:#.4g}".rstrip(".")


def percent(value: float) -> str:
    """A value in percent, two decimals."""
    return f"{value:.2f} %"


def share(value: float) -> str:
    """A fraction as percent, one decimal."""
    return f"{100 * value:.1f} %"


def speed(value: float) -> str:
    """Images/s, three digits or more."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def threshold_list(thresholds: Sequence[float]) -> str:
    """Thresholds (K,) with three decimals, "never" where no image leaves, "all" where every image does."""
    return " / ".join("never" if t >= NEVER else "all" if t <= -NEVER else f"{t:.3f}" for t in thresholds)


def budget_use(budget: BudgetUse) -> str:
    """What was asked for, and what the thresholds that were chosen for it use."""
    names = {"asked for": budget.asked, "on the calibration images": budget.calibration, "on these": budget.held_out}
    return f"{budget.unit}: " + ", ".join(f"{name} {number(amount)}" for name, amount in names.items())


def setting_lines(chosen: Recommended) -> list[str]:
    """Lines about the recommended thresholds: what they bring on held-out images, and what is certain of them."""
    return [
        f"{percent(chosen.accuracy)} at {number(chosen.expected_gmacs)} GMACs/image, "
        f"{share(chosen.cost_fraction)} of the last exit's cost",
        "images that leave at each exit: " + ", ".join(map(share, chosen.exit_fractions)),
        *certainty(chosen),
        *([f"budget in {budget_use(chosen.budget)}"] if chosen.budget else []),
    ]


def restricted(results: Results) -> str:
    """Accuracy with the outputs restricted to the classes that the images show, if these are not all."""
    if not (present := results.classes_present):
        return ""
    found = {f"exit {k + 1}": accuracy for k, accuracy in enumerate(present.anytime_accuracy)}
    if present.recommended_accuracy is not None:
        found["early exits"] = present.recommended_accuracy
    values = ", ".join(f"{name} {percent(accuracy)}" for name, accuracy in found.items())
    shown = f"images show {present.count:,} of {len(results.class_names):,} classes"
    return f"{shown}; accuracy with the outputs restricted to these: {values}"


def summary(results: Results) -> str:
    """A plain-text table: accuracy and GMACs per exit, the recommended setting, measured images/s."""
    lines = [f"{'exit':<6}{'tokens':>8}{'GMACs/image':>14}{'accuracy':>12}"]
    for k, (grid, gmacs, accuracy) in enumerate(results.exits):
        lines.append(f"{k + 1:<6}{grid**2 + 1:>8}{number(gmacs):>14}{percent(accuracy):>12}")
    if present := restricted(results):
        lines.append(present)
    for split, count in results.images_left_out.items():
        lines.append(f"{count:,} images of {split} could not be read and are left out")
    chosen, measured = results.recommended, results.throughput
    if chosen:
        lines.append(f"recommended thresholds ({chosen.rule}): {threshold_list(chosen.thresholds)}")
        lines += [f"  {line}" for line in setting_lines(chosen)]
    if measured:
        rates = [measured.all_exits_images_per_second, measured.adaptive_images_per_second]
        all_exits, early = map(speed, rates)
        lines.append(
            f"measured images/s (batches of {measured.batch_size}): all exits {all_exits}, early exits {early}, "
            f"{measured.speed_up:.2f} times (GMACs: {measured.gmac_ratio:.2f} times)"
        )
    return "\n".join(lines)


def headline(results: Results) -> str:
    """What stopping early brings, in a sentence or two."""
    accuracy, chosen = results.anytime_accuracy, results.recommended
    last, at = f"{accuracy[-1]:.1f} %", f"accuracy at {number(results.cumulative_gmacs[-1])} GMACs per image"
    if results.num_exits == 1:
        return f"One exit: {last} {at}. With a single exit nothing stops early."
    if not chosen:
        return f"The last exit reaches {last} {at}; no thresholds were chosen."

    reached, drop = f"{chosen.accuracy:.1f} %", accuracy[-1] - chosen.accuracy
    if drop > NO_LOSS:
        drop = round(accuracy[-1], 1) - round(chosen.accuracy, 1)  # of the numbers as they are printed
        sentence = f"Stopping early loses {drop:.1f} points of accuracy ({reached}; last exit: {last})"
    else:
        sentence = f"Stopping early {'keeps' if drop >= 0 else 'reaches'} {reached} accuracy (last exit: {last})"
    cost = 100.0 * chosen.cost_fraction
    sentence += f" at {cost:.1f} % of the cost" + ("" if cost < 99.95 else ", which saves nothing")
    sentence += _speed_remark(results.throughput) + _single_exit_remark(results)
    promise = "".join(certainty(chosen)[:1])
    return f"{sentence} {promise[0].upper()}{promise[1:]}." if promise else sentence


def _speed_remark(measured: Throughput | None) -> str:
    if measured is None:
        return "; its speed was not measured."
    times = f"{measured.speed_up:.2f} times as many images per second (measured)."
    if measured.speed_up >= 1 + SAME_SPEED:
        return f", and runs {times}"
    return f", but is {'no faster' if measured.speed_up > 1 - SAME_SPEED else 'slower'}: {times}"


def _single_exit_remark(results: Results) -> str:
    """For results where one earlier exit for every image is as good, or where the last exit is not the best."""
    gmacs, accuracy, chosen = results.cumulative_gmacs, results.anytime_accuracy, results.recommended
    for k in range(results.num_exits - 1):
        if accuracy[k] >= chosen.accuracy and gmacs[k] <= chosen.expected_gmacs * (1 + 1e-9):
            cost = 100.0 * gmacs[k] / gmacs[-1]
            return f" Exit {k + 1} alone is as good or better: {accuracy[k]:.1f} % at {cost:.1f} % of the cost."
    best = int(np.argmax(accuracy))
    if accuracy[best] > accuracy[-1]:
        return f" The last exit is not the best one: exit {best + 1} alone reaches {accuracy[best]:.1f} %."
    return ""
