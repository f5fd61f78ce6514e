"""Early exit: who leaves where, which thresholds to take, and running a model so that images really leave.

`scores` says how sure an exit is, `decisions` who leaves (and holds the published way to thresholds); `loop` runs exits
one call at a time, `gathering` over many batches, `classifier` with a MindSpore model; `search` and `budgets` choose
thresholds, `temperature` scales what they are compared with. `certify` gives thresholds with a guarantee, from
`candidates` and the tests of `bounds`; `audit` watches it in production. All but `classifier` is plain NumPy.
"""

from dvt.early_exit.decisions import (  # noqa: F401
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
