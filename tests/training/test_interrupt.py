"""Signals are remembered, not obeyed, until a step is done."""

import signal

import pytest

from dvt.training.monitor import StopBetweenSteps


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_signals_are_remembered_and_their_handlers_come_back(number: signal.Signals, caplog: pytest.LogCaptureFixture):
    before = signal.signal(number, signal.SIG_DFL)
    try:
        with StopBetweenSteps() as stop:
            assert not stop.requested
            signal.raise_signal(number)
            signal.raise_signal(number)
            assert stop.requested
        assert signal.getsignal(number) is signal.SIG_DFL
    finally:
        signal.signal(number, before)
    assert caplog.messages == ["stopping after this step"]


def test_a_terminal_may_be_closed_behind_nohup():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with StopBetweenSteps() as stop:
            signal.raise_signal(signal.SIGHUP)
            assert not stop.requested
    finally:
        signal.signal(signal.SIGHUP, before)
