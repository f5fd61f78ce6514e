"""The scheduler on exits that are plain functions: decisions, batches, limits, failures and the end."""

import threading
import time
from concurrent.futures import Future, wait

import numpy as np
import pytest

from dvt.early_exit.loop import HandedOn, run_cascade
from dvt_service.scheduler import DrainingError, ExitScheduler, Outcome, QueueFullError

CLASSES = 4
THRESHOLDS = np.array([0.7, 0.6, 0.0], np.float32)


def made_up_exit(index: int, images: np.ndarray, handed_on: HandedOn) -> tuple[np.ndarray, HandedOn]:
    """Probabilities that depend on the image and on what came from the exit before, row by row."""
    before = handed_on["features"] if index else np.zeros(len(images), np.float32)
    logits = images.reshape(len(images), -1)[:, :CLASSES] * (index + 1) + before[:, None] * np.arange(CLASSES)
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    probabilities = (powers / powers.sum(axis=1, keepdims=True)).astype(np.float32)
    return probabilities, {"features": images[:, 0, 0, 0] + 0.5 * before} if index < 2 else {}


def images(count: int) -> np.ndarray:
    return np.random.default_rng(1).standard_normal((count, 1, 2, 2)).astype(np.float32)


def scheduler(run_exit=made_up_exit, max_batch: int = 8, max_wait: float = 0.01, max_pending: int = 500, **options):
    return ExitScheduler(run_exit, 3, max_batch, max_wait, max_pending, **options)


def submit(to: ExitScheduler, image: np.ndarray, thresholds: np.ndarray = THRESHOLDS) -> "Future[Outcome]":
    with to.admit() as place:
        return place.submit(image, thresholds)


def test_decisions_are_those_of_the_cascade_whatever_the_batches():
    given = images(300)
    expected = run_cascade(made_up_exit, given, THRESHOLDS, CLASSES)
    assert len(np.unique(expected.exit_index)) == 3
    tested = scheduler()
    answers: list[Future] = [Future()] * len(given)

    def send(part: range) -> None:
        for index in part:
            answers[index] = submit(tested, given[index])

    senders = [threading.Thread(target=send, args=(range(start, 300, 4),)) for start in range(4)]
    for sender in senders:
        sender.start()
    for sender in senders:
        sender.join()
    outcomes = [answer.result(timeout=20) for answer in answers]
    tested.close()
    assert [each.exit_index for each in outcomes] == expected.exit_index.tolist()
    assert [each.class_index for each in outcomes] == expected.labels.tolist()
    np.testing.assert_allclose([each.confidence for each in outcomes], expected.confidence, rtol=1e-6)
    assert tested.pending == 0


def test_requests_of_one_batch_keep_their_own_thresholds():
    image, runs = images(1)[0], []
    tested = scheduler(max_wait=5, max_batch=2, on_batch=lambda index, size: runs.append((index, size)))
    with tested.admit() as first, tested.admit() as second:  # both are on their way, so the first waits
        answers = [first.submit(image, np.array([0, 0, 0.0])), second.submit(image, np.array([2, 2, 0.0]))]
    assert [answer.result(timeout=5).exit_index for answer in answers] == [0, 2]
    tested.close()
    assert runs == [(0, 2), (1, 1), (2, 1)]


def test_a_lone_request_does_not_wait():
    tested = scheduler(max_wait=30)
    started = time.monotonic()
    assert submit(tested, images(1)[0], np.array([2, 2, 0.0])).result(timeout=20).exit_index == 2
    assert time.monotonic() - started < 10
    tested.close()


def test_an_exit_waits_for_what_is_coming_but_no_longer_than_allowed():
    tested = scheduler(max_wait=0.3)
    with tested.admit():  # never sends its image
        started = time.monotonic()
        submit(tested, images(1)[0], np.zeros(3)).result(timeout=20)
        assert 0.25 < time.monotonic() - started < 10
    tested.close()


def test_a_place_given_back_ends_the_wait():
    tested = scheduler(max_wait=30)
    with tested.admit():
        answer = submit(tested, images(1)[0], np.zeros(3))
        time.sleep(0.05)
        assert not answer.done()
    assert answer.result(timeout=10).exit_index == 0
    tested.close()


def test_batches_of_later_exits_hold_requests_that_came_at_different_times():
    entered, blocked, runs = threading.Event(), threading.Event(), []

    def slow_start(index: int, batch: np.ndarray, handed_on: HandedOn) -> tuple[np.ndarray, HandedOn]:
        entered.set()
        blocked.wait(20)
        return made_up_exit(index, batch, handed_on)

    tested = scheduler(slow_start, max_batch=4, max_wait=10, on_batch=lambda index, size: runs.append((index, size)))
    thresholds = np.array([2, 0, 0])  # all go on to the second exit
    answers = [submit(tested, images(1)[0], thresholds)]
    entered.wait(20)  # it runs alone; the others come meanwhile
    answers += [submit(tested, image, thresholds) for image in images(8)]
    blocked.set()
    wait(answers, timeout=20)
    tested.close()
    # The first exit's requests have waited longest; the lone one then goes on with three that came later.
    assert runs == [(0, 1), (0, 4), (0, 4), (1, 4), (1, 4), (1, 1)]


def test_no_more_are_admitted_than_allowed():
    tested = scheduler(max_pending=2)
    with tested.admit():
        with tested.admit():
            assert tested.pending == 2
            with pytest.raises(QueueFullError):
                tested.admit()
        tested.admit().__exit__(None, None, None)
    assert tested.pending == 0
    tested.close()


def test_a_failing_image_fails_alone_and_the_thread_lives_on():
    given = images(4)
    given[2, 0, 0, 0] = 100.0

    def fails(index: int, batch: np.ndarray, handed_on: HandedOn) -> tuple[np.ndarray, HandedOn]:
        if (batch[:, 0, 0, 0] == 100).any():
            raise RuntimeError("a spoilt batch")
        return made_up_exit(index, batch, handed_on)

    tested = scheduler(fails, max_wait=5)
    places = [tested.admit() for _ in given]
    answers = [place.submit(image, THRESHOLDS) for place, image in zip(places, given, strict=True)]
    wait(answers, timeout=20)
    assert [answer.exception() is None for answer in answers] == [True, True, False, True]
    assert tested.alive and tested.pending == 0
    submit(tested, given[0]).result(timeout=5)
    tested.close()


def test_what_was_submitted_is_answered_before_the_end():
    tested = scheduler(lambda *args: (time.sleep(0.01), made_up_exit(*args))[1])
    answers = [submit(tested, image) for image in images(50)]
    tested.draining = True
    with pytest.raises(DrainingError):
        tested.admit()
    tested.close()
    assert all(answer.done() and answer.exception() is None for answer in answers)
    assert not tested.alive


def test_audits_run_to_the_last_exit_behind_all_other_work():
    given, runs, entered, blocked = images(40), [], threading.Event(), threading.Event()

    def noted(index: int, batch: np.ndarray, handed_on: HandedOn) -> tuple[np.ndarray, HandedOn]:
        runs.append(index)
        if len(runs) == 41:  # the first exit of an audit
            entered.set()
            blocked.wait(20)
        return made_up_exit(index, batch, handed_on)

    tested = scheduler(noted, max_batch=3)
    outcomes = []
    for image in given:
        with tested.admit() as place:
            outcomes.append(place.submit(image, np.zeros(3), keep_rest=True).result(timeout=20))
    assert all(outcome.exit_index == 0 and outcome.rest for outcome in outcomes)
    last = run_cascade(made_up_exit, given, np.array([2, 2, 0]), CLASSES).labels
    first = tested.audit(outcomes[0])
    entered.wait(20)
    more = [tested.audit(outcome) for outcome in outcomes[1:6]]
    assert [each.cancelled() for each in more] == [False] * 3 + [True] * 2  # no more than max_batch wait
    request = submit(tested, given[0], np.zeros(3))
    blocked.set()
    assert request.result(timeout=20).rest is None
    assert [each.result(timeout=20) for each in (first, *more[:3])] == last[:4].tolist()
    assert runs[40:] == [1, 0, 2, 1, 2, 1, 2, 1, 2]  # the request goes before the rest of the audit
    tested.close()
    assert tested.audit(outcomes[0]).cancelled()


def test_an_image_at_the_last_exit_has_no_rest_and_a_failed_audit_harms_nothing():
    def fails(index: int, batch: np.ndarray, handed_on: HandedOn) -> tuple[np.ndarray, HandedOn]:
        if index == 2 and batch[0, 0, 0, 0] == 7:
            raise RuntimeError("spoilt")
        return made_up_exit(index, batch, handed_on)

    tested, image = scheduler(fails), images(1)[0]
    with tested.admit() as place:
        assert place.submit(image, np.array([2, 2, 0]), keep_rest=True).result(timeout=20).rest is None
    image[0, 0, 0] = 7
    with tested.admit() as place:
        outcome = place.submit(image, np.zeros(3), keep_rest=True).result(timeout=20)
    with pytest.raises(RuntimeError, match="spoilt"):
        tested.audit(outcome).result(timeout=20)
    assert submit(tested, image, np.zeros(3)).result(timeout=20).exit_index == 0
    tested.close()
