"""Early exit: who leaves where, which thresholds to take, and running a model so that images really leave.

`decisions` has the rule and the published way to thresholds, `loop` runs exits one call at a time and `gathering` many
batches, `classifier` does so with a MindSpore model; `rules`, `temperature`, `search` and `budgets` choose thresholds.
All but `classifier` is plain NumPy.
"""

from dvt.early_exit.decisions import (
    ALWAYS,
    NEVER,
    PUBLISHED_POINTS,
    Evaluation,
    Sweep,
    assign_exits,
    budget_shares,
    check_thresholds,
    confidence,
    evaluate,
    evaluate_many,
    evaluate_scores,
    find_sweep_thresholds,
    find_thresholds,
    sweep,
)

__all__ = [
    "ALWAYS",
    "NEVER",
    "PUBLISHED_POINTS",
    "Evaluation",
    "Sweep",
    "assign_exits",
    "budget_shares",
    "check_thresholds",
    "confidence",
    "evaluate",
    "evaluate_many",
    "evaluate_scores",
    "find_sweep_thresholds",
    "find_thresholds",
    "sweep",
]
