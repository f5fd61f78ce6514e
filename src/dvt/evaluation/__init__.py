"""Evaluation: accuracy of every exit, thresholds for a budget, accuracy and cost with early exits, measured speed.

`run.evaluate_checkpoint` is the entry point; `all_exits` runs the exits and can be interrupted, `speed` measures,
`pictures` chooses and draws what the report shows of single images.
"""

from dvt.evaluation.run import evaluate_checkpoint

__all__ = ["evaluate_checkpoint"]
