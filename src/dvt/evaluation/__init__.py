"""Evaluation: accuracy of every exit, thresholds for a budget, early exits, measured speed.

`run.evaluate_checkpoint` is the recipe. `all_exits` runs the exits and can be interrupted, `speed` measures, `groups`
looks at classes, `stored` keeps results in the checkpoint; `predict` is `dvt predict`.
"""

from dvt.evaluation.run import evaluate_checkpoint

__all__ = ["evaluate_checkpoint"]
