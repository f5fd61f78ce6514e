"""How the report and the console say numbers: one place, so that both say the same.

Axis letter: K exits.
"""

import html
from collections.abc import Sequence
from typing import Any

NEVER = 1e8  # thresholds from here on stop no image, those at or below its negative stop every one


def text(value: Any) -> str:
    """`value` as text that is safe in HTML, attributes included."""
    return html.escape(str(value), quote=True)


def exit_rows(results: dict[str, Any]) -> list[tuple[int, float, float]]:
    """Per exit: tokens (class token included), cumulative GMACs, accuracy in percent over all images."""
    tokens = [grid**2 + 1 for grid in results["model"]["grid_sizes"]]
    return list(zip(tokens, results["cumulative_gmacs"], results["anytime_accuracy"], strict=True))


def other_settings(results: dict[str, Any]) -> list[dict[str, Any]]:
    """The timed settings beside the recommended one, which may be among those in the results."""
    known = results["recommended"]["thresholds"] if results["recommended"] else None
    return [setting for setting in results["throughput"]["settings"] if setting["thresholds"] != known]


def early_exit_speed(results: dict[str, Any]) -> str:
    """Images/s with the recommended thresholds; without any, from the slowest to the fastest setting timed."""
    if results["recommended"]:
        return speed(results["throughput"]["adaptive_images_per_second"])
    rates = sorted(setting["images_per_second"] for setting in results["throughput"]["settings"])
    return f"{speed(rates[0])} to {speed(rates[-1])}, by thresholds" if rates else "–"


def number(value: float | None) -> str:
    """Four significant digits, as for GMACs."""
    return "–" if value is None else f"{value:#.4g}".rstrip(".")


def percent(value: float | None) -> str:
    """A value in percent, two decimals."""
    return "–" if value is None else f"{value:.2f} %"


def share(value: float | None) -> str:
    """A fraction as percent, one decimal."""
    return "–" if value is None else f"{100 * value:.1f} %"


def speed(value: float | None) -> str:
    """Images/s, three digits or more."""
    if value is None:
        return "–"
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def ratio(value: float | None, base: float | None) -> str:
    """value / base, two decimals."""
    return f"{value / base:.2f}" if value is not None and base else "–"


def threshold_list(thresholds: Sequence[float]) -> str:
    """Thresholds of exits 1..K in words: three decimals, "never" where none leaves, "all" where every image does."""
    words = ("–" if t is None else "never" if t >= NEVER else "all" if t <= -NEVER else f"{t:.3f}" for t in thresholds)
    return " / ".join(words)


def batches(measured: dict[str, Any]) -> str:
    """What ran at once when images/s were measured."""
    gathered = measured.get("gathered_batches", 1)
    more = f", leaving early {gathered} of them per call" if gathered > 1 else ""
    return f"batches of {measured['batch_size']}{more}"
