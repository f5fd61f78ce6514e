import json
from dataclasses import asdict

import numpy as np
import pytest

from dvt.early_exit.audit import Audit, rate_interval


@pytest.mark.parametrize(("half", "bound", "leaving"), [(200, 3.0, 1.0), (1000, 4.0, 0.7), (1000, 5.0, 1.0)])
def test_an_alarm_when_the_change_rate_rises_from_3_to_12_percent(half, bound, leaving):
    rng, before, within = np.random.default_rng(half), 0, 0
    rates = np.where(np.arange(half + 500) < half, 0.03, 0.12) / leaving
    for _ in range(40):
        audit = Audit(bound)
        for changed in rng.random(half + 500) < rates:
            audit = audit.add(bool(changed), leaving)
            if audit.alarm:
                break
        before += audit.alarm and audit.audited <= half
        within += audit.alarm and audit.audited > half
    assert before <= 2 and within >= 38


def test_the_alarm_stays_and_the_state_is_plain():
    audit = Audit(bound=2.0)
    for _ in range(20):
        audit = audit.add(True, 0.5)
    assert audit.alarm and audit.add(False, 0.5).alarm
    stored = json.loads(json.dumps(asdict(audit)))
    assert Audit(**stored | {"evidence": tuple(stored["evidence"])}) == audit


def test_no_alarm_where_the_bound_cannot_be_broken():
    audit = Audit(bound=10.0)
    for _ in range(100):
        audit = audit.add(True, 0.08)  # 8 % leave early, so that at most 8 % can change
    assert not audit.alarm and audit.changed == audit.audited == 100


def test_intervals_hold_at_all_times_together():
    assert rate_interval(0, 0) == (0.0, 1.0)
    rng, share, missed = np.random.default_rng(1), 0.1, 0
    for _ in range(80):
        changed = np.cumsum(rng.random(800) < share)
        intervals = [rate_interval(n, int(changed[n - 1])) for n in range(5, 801, 15)]
        missed += any(not low <= share <= high for low, high in intervals)
    assert missed <= 8
    low, high = Audit(3.0, audited=1000, changed=100).change_rate(0.5)
    assert 3.2 < low < 5 < high < 7
