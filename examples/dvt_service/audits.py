"""Whether the bundle's certificates hold here: some images that left early are later run to the last exit too."""

import logging
import random
import threading
from collections.abc import Mapping
from concurrent.futures import Future

from prometheus_client import CollectorRegistry, Counter, Gauge

from dvt.deploy.manifest import Setting
from dvt.early_exit.audit import Audit
from dvt_service.scheduler import ExitScheduler, Outcome

NOT_CERTIFIED = 100.0  # points: a bound that cannot be broken

log = logging.getLogger(__name__)


class _Watched:
    """One setting since the service started."""

    def __init__(self, setting: Setting) -> None:
        self.images, self.left_early = 0, 0
        self.audit = Audit(setting.certificate.change_bound if setting.certificate else NOT_CERTIFIED)

    @property
    def leaving(self) -> float:
        return self.left_early / max(1, self.images)


class Audits:
    """Audits a share, 0..1, of the images that leave early with named settings, and counts them in `registry`."""

    def __init__(self, settings: Mapping[str, Setting], share: float, registry: CollectorRegistry) -> None:
        self._share, self._lock = share, threading.Lock()
        self._watched = {name: _Watched(setting) for name, setting in settings.items()} if share else {}
        if not share:
            return

        def counter(name: str, text: str) -> Counter:
            return Counter(name, text, ["setting"], registry=registry)

        self._audited = counter("dvt_audited", "Images that left early and were run to the last exit")
        self._changed = counter("dvt_audit_changed", "Of them, those with another class there")
        self._dropped = counter("dvt_audit_dropped", "Audits that there was no time for, or that failed")
        share_text = "Share of all images whose class changes, confidence sequence of 95 %: valid at all times together"
        change = Gauge("dvt_change_share", share_text, ["setting", "end"], registry=registry)
        bound = Gauge("dvt_certified_change_share", "Largest one by the certificate", ["setting"], registry=registry)
        text = "1, or 0 once the audits exclude the largest change share of the certificate, at a confidence of 95 %"
        self._holds = Gauge("dvt_certificate_holds", text, ["setting"], registry=registry)
        for name, watched in self._watched.items():
            for each in (self._audited, self._changed, self._dropped):
                each.labels(name)
            for place, end in enumerate(("low", "high")):
                change.labels(name, end).set_function(lambda name=name, place=place: self._interval(name)[place] / 100)
            if settings[name].certificate:
                bound.labels(name).set(watched.audit.bound / 100)
                self._holds.labels(name).set(1)

    def chosen(self, name: str) -> bool:
        """Whether the next image with this setting shall be audited if it leaves early."""
        return name in self._watched and random.random() < self._share

    def answered(self, name: str, left_early: bool) -> None:
        """An image was answered with this setting."""
        if name in self._watched:
            with self._lock:
                self._watched[name].images += 1
                self._watched[name].left_early += left_early

    async def begin(self, scheduler: ExitScheduler, name: str, outcome: Outcome) -> None:
        """Queues the audit of an outcome that has the rest."""
        scheduler.audit(outcome).add_done_callback(lambda last: self._done(name, outcome, last))

    def _done(self, name: str, outcome: Outcome, last: "Future[int]") -> None:
        if last.cancelled() or last.exception():
            self._dropped.labels(name).inc()
            return
        changed, watched = last.result() != outcome.class_index, self._watched[name]
        with self._lock:
            before, leaving = watched.audit.alarm, watched.leaving
            watched.audit = watched.audit.add(changed, leaving)
        self._audited.labels(name).inc()
        self._changed.labels(name).inc(changed)
        if watched.audit.alarm and not before:
            self._holds.labels(name).set(0)
            low, high = watched.audit.change_rate(leaving)
            log.warning(
                "the certificate of the setting %r does not hold for these images: %d of %d audited ones changed, "
                "%.2f to %.2f points of all images, where it says at most %.2f. Calibrate on new images",
                *(name, watched.audit.changed, watched.audit.audited, low, high, watched.audit.bound),
            )

    def _interval(self, name: str) -> tuple[float, float]:
        watched = self._watched[name]
        return watched.audit.change_rate(watched.leaving)
