"""Whether a certificate still holds in production: a test that may be looked at after every audited image.

Some of the images that left early also run to the last exit; an `Audit` is told, one by one, whether the answer
changed. Interval and alarm hold at all times together, so looking again and again costs nothing. Plain NumPy.

Sources: Robbins, Annals of Mathematical Statistics 1970 (mixtures), for the interval; Shin, Ramdas and Rinaldo,
arXiv 2203.03532 (evidence that may begin at any time), for the alarm.
"""

from dataclasses import dataclass, replace
from math import lgamma, log, log1p, sqrt

import numpy as np

from dvt.early_exit.bounds import edge

_RATIOS = np.array([1.5, 2.0, 3.0])  # rates to watch for, in multiples of the largest allowed
_ENOUGH = 1e12  # evidence is not counted beyond


@dataclass(frozen=True)
class Audit:
    """The audited images of one setting so far; `add` returns the next state."""

    bound: float  # points: largest share of all images whose answer may change, `Certificate.change_bound`
    confidence: float = 0.95  # of the interval, and that there is no alarm while the bound holds, however long that is
    audited: int = 0  # images that left early and were run to the last exit
    changed: int = 0  # of them, those with another answer there
    alarm: bool = False  # whether the bound was ever excluded; stays
    evidence: tuple[float, ...] = (0.0,) * len(_RATIOS)  # against the bound, for each of the rates watched for

    def add(self, changed: bool, leaving: float) -> "Audit":
        """The state after one more audited image; `leaving`, 0..1, is the share of the images that leave early so far.

        For each rate the likelihood ratio against the largest allowed rate is a bet that is at best fair as long as the
        bound holds; a part of the stake is set aside for each possible moment of a change. Stake and gains together
        reach 1 / (1 - confidence) with at most that probability.
        """
        allowed = self.bound / 100 / leaving if leaving > 0 else 1.0
        audited, evidence = self.audited + 1, np.zeros(len(_RATIOS))
        if allowed < 1:
            allowed = max(allowed, 1e-6)
            rates = np.minimum(_RATIOS * allowed, (1 + allowed) / 2)
            gains = rates / allowed if changed else (1 - rates) / (1 - allowed)
            stake = _reserve(audited - 1) - _reserve(audited)
            evidence = np.minimum((np.array(self.evidence) + stake) * gains, _ENOUGH)
        return replace(
            self,
            audited=audited,
            changed=self.changed + bool(changed),
            alarm=self.alarm or bool(evidence.mean() + _reserve(audited) >= 1 / (1 - self.confidence)),
            evidence=tuple(evidence.tolist()),
        )

    def change_rate(self, leaving: float) -> tuple[float, float]:
        """Interval of the share of all images whose answer changes, in points, from all images audited so far."""
        low, high = rate_interval(self.audited, self.changed, self.confidence)
        return 100 * low * leaving, 100 * high * leaving


def _reserve(audited: int) -> float:
    """What is left of the stake for changes after so many images: 1 at the start.

    Any falling sequence is valid; with this one a change after 5,000 images is found nearly as soon as after 200.
    """
    return 1 / sqrt(1 + audited / 300)


def rate_interval(audited: int, changed: int, confidence: float = 0.95) -> tuple[float, float]:
    """Confidence sequence of a share: the intervals of all numbers audited hold together with this probability.

    Shares whose likelihood is not 1 / (1 - confidence) times smaller than the mean of all, weighted by Beta(1/2, 1/2).
    """
    if audited == 0:
        return 0.0, 1.0
    same = audited - changed
    mixed = lgamma(changed + 0.5) + lgamma(same + 0.5) - lgamma(audited + 1) - log(np.pi)

    def outside(share: float) -> bool:
        if not 0 < share < 1:
            return bool(changed if share == 0 else same)
        return mixed - changed * log(share) - same * log1p(-share) >= -log(1 - confidence)

    ends = (edge(outside, changed / audited, end, 50) if outside(end) else end for end in (0.0, 1.0))
    return next(ends), next(ends)
