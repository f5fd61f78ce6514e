"""How results are said: numbers, a summary for consoles, and a headline that claims no more than the numbers.

Page and console use the same words. Exits are counted from 1 here, from 0 in `Results`. Axis letter: K exits.
"""

from collections.abc import Sequence

import numpy as np

from dvt.early_exit.decisions import NEVER
from dvt.report.results import Results, Throughput

NO_LOSS = 0.5  # percentage points within which a headline says that accuracy is kept
SAME_SPEED = 0.05  # a measured speed this close to that of all exits counts as equal


def number(value: float | None) -> str:
    """Four significant digits, as for GMACs."""
    return "–" if value is None else f"{value:#.4g}".rstrip(".")


def percent(value: float | None) -> str:
    """A value in percent, two decimals."""
    return "–" if value is None else f"{value:.2f} %"


def share(value: float | None) -> str:
    """A fraction as percent, one decimal."""
    return "–" if value is None else f"{100 * value:.1f} %"


def speed(value: float) -> str:
    """Images/s, three digits or more."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def threshold_list(thresholds: Sequence[float]) -> str:
    """Thresholds (K,) with three decimals, "never" where no image leaves, "all" where every image does."""
    return " / ".join("never" if t >= NEVER else "all" if t <= -NEVER else f"{t:.3f}" for t in thresholds)


def early_exit_speed(results: Results, measured: Throughput) -> str:
    """Images/s with the recommended thresholds; without any, from the slowest to the fastest setting timed."""
    if results.recommended:
        return speed(measured.adaptive_images_per_second)
    rates = sorted(setting.images_per_second for setting in measured.settings)
    return f"{speed(rates[0])} to {speed(rates[-1])}, by thresholds"


def summary(results: Results) -> str:
    """A plain-text table: accuracy and GMACs per exit, the recommended setting, measured images/s."""
    lines = [f"{'exit':<6}{'tokens':>8}{'GMACs/image':>14}{'accuracy':>12}"]
    for k, (grid, gmacs, accuracy) in enumerate(results.exits):
        lines.append(f"{k + 1:<6}{grid**2 + 1:>8}{number(gmacs):>14}{percent(accuracy):>12}")
    for split, count in results.images_left_out.items():
        lines.append(f"{count:,} images of {split} could not be read and are left out")
    chosen, measured = results.recommended, results.throughput
    if chosen:
        lines += [
            f"recommended thresholds ({chosen.rule}): {threshold_list(chosen.thresholds)}",
            f"  {percent(chosen.accuracy)} at {number(chosen.expected_gmacs)} GMACs/image, "
            f"{share(chosen.cost_fraction)} of the last exit's cost",
            "  images that leave at each exit: " + ", ".join(map(share, chosen.exit_fractions)),
        ]
        if budget := chosen.budget:
            lines.append(
                f"  budget, {budget.unit}: asked for {number(budget.asked)}, on the calibration images "
                f"{number(budget.calibration)}, on these {number(budget.held_out)}"
            )
    if measured:
        speeds = f"all exits {speed(measured.all_exits_images_per_second)}, "
        speeds += f"early exits {early_exit_speed(results, measured)}"
        if chosen:
            speeds += f", {measured.speed_up:.2f} times (GMACs: {measured.gmac_ratio:.2f} times)"
        lines.append(f"measured images/s (batches of {measured.batch_size}): {speeds}")
        lines.append(f"  gathering and scattering {share(measured.moving_fraction)} of the time")
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
    return sentence + _speed_remark(results.throughput) + _single_exit_remark(results)


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
