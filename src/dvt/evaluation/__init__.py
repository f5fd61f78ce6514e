"""Evaluation: accuracy of every exit, thresholds for a budget, accuracy and cost with early exits, measured speed."""

from dvt.evaluation.run import evaluate_checkpoint

__all__ = ["evaluate_checkpoint"]
