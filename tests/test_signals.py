"""A signal asks, the second interrupt insists, and afterwards everything is as it was."""

import os
import signal

import pytest

from sft_dist import signals


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGUSR1", "SIGUSR2"])
def test_a_signal_is_a_request_and_nothing_more(name: str) -> None:
    with signals.watch() as request:
        assert (request.made, request.signal) == (False, None)
        os.kill(os.getpid(), getattr(signal, name))
        assert (request.made, request.signal) == (True, name)


def test_the_second_interrupt_stops_at_once() -> None:
    with pytest.raises(KeyboardInterrupt, match="interrupted twice"), signals.watch():
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGINT)


def test_other_signals_may_come_again_and_again() -> None:
    with signals.watch() as request:
        for name in ("SIGUSR1", "SIGUSR1", "SIGTERM", "SIGTERM", "SIGINT"):
            os.kill(os.getpid(), getattr(signal, name))
    assert request.signal == "SIGINT"


def test_the_handlers_from_before_come_back_also_after_an_error() -> None:
    before = [signal.getsignal(number) for number in signals.STOPPING]
    with pytest.raises(ZeroDivisionError), signals.watch():
        assert [signal.getsignal(number) for number in signals.STOPPING] != before
        raise ZeroDivisionError
    assert [signal.getsignal(number) for number in signals.STOPPING] == before
