"""Whether certified thresholds keep their promise, and what they cost: docs/certified.md, measured.

    dvt eval --checkpoint checkpoints/quickstart.ckpt --output runs/quickstart/report
    python benchmarks/coverage.py quickstart --predictions runs/quickstart/report --draws 1000
    python benchmarks/coverage.py emoji      # from results/runs
    python benchmarks/coverage.py at_the_bound
    python benchmarks/coverage.py band
    python benchmarks/coverage.py shifted --predictions runs/quickstart/report
    python benchmarks/coverage.py audit

The truth is the mean over a pool of images; calibration images are drawn from it with replacement, again and again. A
row gives the share of draws whose thresholds lose more than was asked (at most 5 % are allowed), the share that
certifies more than "never leave early", and the mean cost over all draws, those without a certificate counted as 100 %.
One process, NumPy only; 1,000 draws of the quick start take about half an hour.
"""

import argparse
import json
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from dvt.early_exit import assign_exits
from dvt.early_exit.audit import Audit
from dvt.early_exit.candidates import CalibrationSet
from dvt.early_exit.certify import try_candidates
from dvt.early_exit.outcomes import StoredPredictions

ROOT = Path(__file__).resolve().parents[1]
LIMITS = {"accuracy_drop": (0.5, 1, 2), "regressions": (0.5, 1, 2), "changes": (2, 5, 10)}
PAYING = (3, 5)  # dress and sandal, which gain most from the last exit


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("what", choices=("quickstart", "emoji", "at_the_bound", "band", "shifted", "audit"))
    parser.add_argument("--predictions", default="runs/quickstart/report", help="predictions.npz or its folder")
    parser.add_argument("--draws", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    for row in rows(arguments):
        print(json.dumps(row), flush=True)
    return 0


def rows(arguments: argparse.Namespace) -> Iterable[dict]:
    draws, seed = arguments.draws, arguments.seed
    if arguments.what == "quickstart":
        return over(quick_start(arguments.predictions), (1000, 5000, 10000), LIMITS, draws, seed)
    if arguments.what == "emoji":
        limits = {"accuracy_drop": (2, 5, 10), "regressions": (5, 10), "changes": (5, 10, 20)}
        return over(emoji(), (100, 400), limits, draws, seed)
    if arguments.what == "band":
        return over(band(), (1000,), {"changes": (1, 5)}, draws, seed)
    if arguments.what == "shifted":
        pool = quick_start(arguments.predictions)
        return over(
            pool, (5000,), {"accuracy_drop": (1,), "changes": (5,)}, draws, seed, pool.at(np.isin(pool.labels, PAYING))
        )
    return at_the_bound(draws, seed) if arguments.what == "at_the_bound" else audits(draws, seed)


def quick_start(path: str) -> CalibrationSet:
    """The calibration and the test images of the quick start, none of which it was trained on."""
    stored = StoredPredictions.load(path)
    both = (stored.calibration, stored.val)
    return CalibrationSet(
        scores=np.concatenate([each.scores["confidence"] for each in both], axis=1),
        predicted=np.concatenate([each.predicted for each in both], axis=1),
        costs=stored.cumulative_gmacs,
        labels=np.concatenate([each.labels for each in both]),
    )


def emoji(seed: int = 0) -> CalibrationSet:
    """Calibration and test images of one of the experiment's runs."""
    run = ROOT / "results" / "runs" / f"emoji-{seed}"
    costs = json.loads(run.with_suffix(".json").read_text(encoding="utf-8"))["cumulative_gmacs"]
    with np.load(run.with_suffix(".npz")) as stored:
        scores, predicted, labels = (
            np.concatenate([stored[f"calibration_{name}"], stored[f"val_{name}"]], axis=-1)
            for name in ("confidence", "predicted", "labels")
        )
    return CalibrationSet(scores.astype(np.float32), predicted, np.asarray(costs), labels)


def band(n: int = 40_000) -> CalibrationSet:
    """Made-up scores that no smooth model fits: at the early exits every answer changes in a band of them, and none
    beside it."""
    rng = np.random.default_rng(99)
    last, scores = rng.integers(10, size=n), rng.random((3, n))
    changed = (scores > 0.45) & (scores < 0.55) & (np.arange(3) < 2)[:, None]
    return CalibrationSet(scores, np.where(changed, (last + 1) % 10, last), np.array([1.0, 3.0, 8.0]), last)


def over(
    pool: CalibrationSet,
    sizes: Iterable[int],
    limits: dict[str, tuple[float, ...]],
    draws: int,
    seed: int = 0,
    judged: CalibrationSet | None = None,
) -> Iterator[dict]:
    """One row per risk, number of images and limit; `judged` is the population if it is another than the pool."""
    for risk, amounts in limits.items():
        for n in sizes:
            yield from drawn(pool, n, risk, amounts, draws, seed, judged or pool)


def drawn(
    pool: CalibrationSet,
    n: int,
    risk: str,
    limits: tuple[float, ...],
    draws: int,
    seed: int = 0,
    judged: CalibrationSet | None = None,
) -> list[dict]:
    """One row per limit, on the same draws of n images."""
    judged, rng = judged or pool, np.random.default_rng([seed, n])
    losses, costs = judged.losses(risk), judged.costs / judged.costs[-1]
    truths, spent = np.zeros((len(limits), draws)), np.ones((len(limits), draws))
    for draw in range(draws):
        calibration = pool.at(rng.integers(pool.scores.shape[1], size=n))
        for place, limit in enumerate(limits):
            tried = try_candidates(calibration, risk, limit, 0.05, seed=draw)
            if tried.passed:
                exits = assign_exits(judged.scores, tried.candidates.thresholds[tried.passed - 1])
                truths[place, draw] = 100 * losses[exits, np.arange(len(exits))].mean()
                spent[place, draw] = costs[exits].mean()
    return [
        {
            "risk": risk,
            "images": n,
            "limit": limit,
            "draws": draws,
            "violations_%": round(100 * float((truth > limit + 1e-9).mean()), 2),
            "certified_%": round(100 * float((cost < 1).mean()), 1),
            "mean_cost_%": round(100 * float(cost.mean()), 1),
            "mean_loss": round(float(truth.mean()), 3),
            "largest_loss": round(float(truth.max()), 3),
        }
        for limit, truth, cost in zip(limits, truths, spent, strict=True)
    ]


def at_the_bound(draws: int, seed: int) -> Iterator[dict]:
    """Made-up scores: all images leave together or none does, and the risk of that one candidate is exactly the limit.

    To certify it counts as a violation here, so that the full level is spent, and not a bit less.
    """
    for risk, limit, worse, better in (
        ("accuracy_drop", 1, 0.01, 0.0),
        ("accuracy_drop", 1, 0.03, 0.02),
        ("accuracy_drop", 2, 0.16, 0.14),
        ("regressions", 2, 0.02, 0.0),
        ("changes", 5, 0.05, 0.0),
    ):
        for n in (500, 2000, 10000):
            yield made_up(risk, limit, worse, better, n, draws, seed)


def made_up(risk: str, limit: float, worse: float, better: float, n: int, draws: int, seed: int) -> dict:
    """Shares `worse` and `better` of all images are so at the first exit of two."""
    rng, certified = np.random.default_rng([seed, n, int(1000 * (worse + limit))]), 0
    scores, costs, labels = np.full((2, n), 0.5), np.array([0.3, 1.0]), np.zeros(n, np.int64)
    for draw in range(draws):
        chance = rng.random(n)
        predicted = np.stack([chance < worse, chance > 1 - better]).astype(np.int64)  # 0 is right
        tried = try_candidates(CalibrationSet(scores, predicted, costs, labels), risk, limit, 0.05, seed=draw)
        certified += tried.passed > 0
    return {
        "risk": risk,
        "images": n,
        "limit": limit,
        "worse": worse,
        "better": better,
        "draws": draws,
        "violations_%": round(100 * certified / draws, 2),
    }


def audits(draws: int, seed: int) -> Iterator[dict]:
    """Streams whose change rate goes from 3 to 12 % of all images after `half` audited ones."""
    for half in (500, 1000, 5000):
        for bound, leaving in ((3.5, 1.0), (4.0, 0.7)):
            rng, before, late = np.random.default_rng([seed, half]), 0, 0
            for _ in range(draws):
                rate = np.where(np.arange(half + 500) < half, 0.03, 0.12) / leaving
                stream, audit = rng.random(half + 500) < rate, Audit(bound)
                for changed in stream:
                    audit = audit.add(bool(changed), leaving)
                    if audit.alarm:
                        break
                before += audit.alarm and audit.audited <= half
                late += not audit.alarm
            yield {
                "half": half,
                "bound": bound,
                "leaving": leaving,
                "runs": draws,
                "alarm_before_%": round(100 * before / draws, 1),
                "no_alarm_within_500_%": round(100 * late / draws, 1),
            }


if __name__ == "__main__":
    raise SystemExit(main())
