"""Which error came first, on logs as they are really written."""

from datetime import datetime, timedelta

import log_samples as samples
import pytest

from dvt.cluster.diagnosis import (
    ENDED_A_WORKER,
    FOLLOWS,
    LOGGED,
    SILENT,
    WorkerLog,
    earliest_error,
    errors_in,
    report,
)

NOON = datetime(2026, 11, 25, 17, 12)


def worker(rank: int | None, text: str, modified: datetime = NOON, **how: object) -> WorkerLog:
    name = "scheduler.log" if rank is None else f"worker_{rank}.log"
    return WorkerLog(rank, f"logs/{name}", samples.STARTED + text, modified, **how)


def after(seconds: float) -> datetime:
    return NOON + timedelta(seconds=seconds)


def test_nothing_wrong():
    assert errors_in(worker(0, "", exit_code=0)) == []
    assert earliest_error([worker(0, ""), worker(1, "")]) is None


def test_a_traceback_is_one_error_with_its_place_and_all_its_lines():
    (error,) = errors_in(worker(1, samples.RAISED, after(3)))
    assert (error.rank, error.path, error.line) == (1, "logs/worker_1.log", 5)
    assert error.text == samples.RAISED.rstrip()
    assert error.error_class == ENDED_A_WORKER
    assert error.time == after(3)  # it has no time stamp: the last change of the log


def test_chained_tracebacks_belong_together():
    (error,) = errors_in(worker(0, samples.CHAINED))
    assert error.text == samples.CHAINED.rstrip()


def test_a_traceback_ends_where_the_log_goes_on_and_is_not_later_than_that():
    goes_on = "17:11:59 INFO    done\n"
    (error,) = errors_in(worker(0, samples.RAISED + goes_on, after(60)))
    assert error.text == samples.RAISED.rstrip()
    assert error.time == datetime(2026, 11, 25, 17, 11, 59)


def test_two_tracebacks_are_two_errors():
    first, second = errors_in(worker(0, samples.RAISED + samples.CHAINED))
    assert (first.line, second.line) == (5, 5 + len(samples.RAISED.splitlines()))


def test_clock_times_before_midnight():
    log = WorkerLog(0, "w", "23:59:58 ERROR   disk full\n", datetime(2026, 11, 26, 0, 0, 3))
    (error,) = errors_in(log)
    assert error.time == datetime(2026, 11, 25, 23, 59, 58)
    assert error.error_class == LOGGED


def test_a_message_for_users_is_an_error():
    (error,) = errors_in(worker(0, "error: data.path /data is not a folder\n       give another\n", exit_code=2))
    assert error.text == "error: data.path /data is not a folder\n       give another"
    assert error.error_class == ENDED_A_WORKER


def test_the_earlier_of_two_ranks_is_the_cause():
    first = earliest_error([worker(0, samples.RAISED, after(2)), worker(1, samples.CHAINED, after(1))])
    assert (first.rank, first.text.splitlines()[-1]) == (1, "RuntimeError: cannot go on")


def test_ties_go_to_the_lowest_rank():
    assert earliest_error([worker(r, samples.RAISED) for r in (2, 0, 1)]).rank == 0


def test_time_stamps_go_before_the_last_change_of_the_file():
    stamped = (
        "[CRITICAL] KERNEL(1,7f,python3):2026-11-25-17:11:59.000.000 [a.cc:1] Launch] Out of memory, 4 GB asked for\n"
    )
    first = earliest_error([worker(0, samples.RAISED, after(0)), worker(1, stamped, after(90))])
    assert first.rank == 1
    assert first.known.name == "out of memory"


def test_a_lost_peer_is_not_the_cause_though_it_was_seen_earlier():
    lost, raised = worker(0, samples.PEER_LOST), worker(1, samples.RAISED, datetime(2026, 11, 25, 18))
    assert [error.error_class for error in errors_in(lost)] == [FOLLOWS]
    assert earliest_error([lost, raised]).rank == 1


def test_a_killed_rank_is_the_cause_of_what_its_peers_say():
    killed = worker(1, "", exit_code=-9, ended=datetime(2026, 11, 25, 17, 26, 58))
    first = earliest_error([worker(0, samples.PEER_LOST, exit_code=1), killed, worker(None, samples.SCHEDULER)])
    assert first.rank == 1
    assert first.line is None
    assert "SIGKILL" in first.text
    assert "out-of-memory killer" in first.cause


UNKNOWN = "Traceback (most recent call last):\nRuntimeError: the stream was torn down\n"


@pytest.mark.parametrize("of_the_other", [samples.PEER_LOST, UNKNOWN, "", "error: rank 0 cannot go on\n"])
def test_a_rank_that_no_longer_answers_is_the_cause(of_the_other: str):
    """Stopped: it has not ended, and its log says nothing; the other one fails first, in whatever words."""
    logs = [worker(0, of_the_other, after(-60), exit_code=1), worker(1, ""), worker(None, samples.SCHEDULER)]
    first = earliest_error(logs)
    assert (first.rank, first.error_class, first.path) == (1, SILENT, "logs/scheduler.log")
    text = report(logs, "logs")
    assert text.startswith("The run failed. Earliest error: rank 1 at 17:12:05, logs/scheduler.log")
    assert "Usual cause: The rank no longer answered" in text and "another machine" not in text
    assert "most likely on another machine" in report(logs[::2], "logs", machines=2)


def test_a_rank_that_failed_by_itself_was_not_silent():
    logs = [worker(0, samples.PEER_LOST), worker(1, samples.RAISED), worker(None, samples.SCHEDULER)]
    assert (earliest_error(logs).rank, earliest_error(logs).error_class) == (1, ENDED_A_WORKER)


def test_a_notify_timeout_follows_but_is_named_if_it_is_all_there_is():
    waiting = worker(0, samples.NOTIFY_TIMEOUT)
    assert earliest_error([waiting, worker(3, samples.RAISED)]).rank == 3
    alone = earliest_error([waiting, worker(3, "")])
    assert (alone.rank, alone.known.name, alone.error_class) == (0, "EI0002", FOLLOWS)
    assert alone.time == datetime(2024, 11, 28, 11, 59, 30, 645000)


def test_logged_errors_belong_to_the_traceback_right_behind_them():
    (error,) = errors_in(worker(0, samples.NOTIFY_TIMEOUT))
    assert error.text == samples.NOTIFY_TIMEOUT.rstrip()


def test_ranks_that_differ():
    error = earliest_error([worker(0, samples.RANKS_DIFFER), worker(1, samples.NOTIFY_TIMEOUT)])
    assert error.rank == 0
    assert error.known.name == "EI0005"


def test_what_was_merely_logged_comes_after_what_ended_a_worker():
    harmless = "[ERROR] ME(1,7f,python3):2026-11-25-17:11:30.000.000 [a.py:1] cannot read the cache, going on\n"
    assert earliest_error([worker(0, harmless), worker(1, samples.RAISED)]).rank == 1
    assert earliest_error([worker(0, harmless), worker(1, "")]).rank == 0


def test_scheduler_and_msrun_only_report_what_workers_did():
    assert {error.error_class for error in errors_in(worker(None, samples.SCHEDULER + samples.MSRUN))} == {FOLLOWS}


@pytest.mark.parametrize(("code", "error_class"), [(1, ENDED_A_WORKER), (-11, ENDED_A_WORKER), (143, FOLLOWS)])
def test_an_end_without_words(code: int, error_class: int):
    (error,) = errors_in(worker(2, "", exit_code=code, ended=after(7)))
    assert (error.rank, error.line, error.time, error.error_class) == (2, None, after(7), error_class)


def test_an_exit_code_that_the_log_explains_is_no_second_error():
    assert len(errors_in(worker(0, samples.RAISED, exit_code=1))) == 1


def test_a_crash_after_a_lost_peer_is_no_error_of_its_own():
    assert [error.error_class for error in errors_in(worker(0, samples.PEER_LOST, exit_code=-11))] == [FOLLOWS]


def test_an_interrupted_worker_is_not_the_cause():
    interrupted = worker(0, "interrupted\n", exit_code=130, ended=after(-5))
    assert earliest_error([interrupted, worker(1, samples.RAISED)]).rank == 1


def test_report_names_rank_place_cause_other_ranks_and_logs():
    text = report(
        [worker(0, samples.PEER_LOST), worker(1, "error: the loss is no longer finite at step 7\n")], "runs/x/logs/1"
    )
    lines = text.splitlines()
    assert lines[0].startswith("The run failed. Earliest error: rank 1 at 17:12:00, logs/worker_1.log, line 5")
    assert lines[1] == "    error: the loss is no longer finite at step 7"
    assert lines[2].startswith("Usual cause: The training diverged: lower train.learning_rate")
    assert lines[3] == "Errors of other ranks:"
    assert lines[4].startswith("  rank 0 at 17:26:51, logs/worker_0.log, line 6: RuntimeError: Launch kernel failed")
    assert lines[5] == "All logs are in runs/x/logs/1"


def test_report_shortens_long_errors_and_keeps_both_ends():
    long = "Traceback (most recent call last):\n" + "".join(f'  File "f{i}.py"\n' for i in range(100)) + "OSError: x\n"
    lines = report([worker(0, long)], "logs").splitlines()
    assert len(lines) < 25
    assert "    OSError: x" in lines
    assert any("lines more in the log" in line for line in lines)


def test_report_points_to_other_machines_where_nothing_here_explains_the_failure():
    logs = [worker(0, samples.PEER_LOST), worker(None, samples.SCHEDULER)]
    assert "another machine" in report(logs, "logs", machines=2)
    assert "another machine" not in report(logs, "logs", machines=1)
    assert "another machine" not in report([worker(0, samples.RAISED)], "logs", machines=2)


def test_report_without_any_error():
    assert report([worker(0, "")], "runs/x/logs/1").endswith("All logs are in runs/x/logs/1")
