"""Where time goes: phases that end where the next begins, by the host's clock and by the events of a device that works off a queue."""

import pytest

from sft_dist.pulse import PHASES, STEP, Pulse, column
from sft_dist.timeline import Clock, Timeline, by_events


class Hand:
    """A clock that is moved by hand."""

    def __init__(self) -> None:
        self.now = 0.0

    @property
    def clock(self) -> Clock:
        return Clock(lambda: self.now, lambda _: None, lambda start, end: end - start)


def test_phases_add_up_to_the_whole_time() -> None:
    hand = Hand()
    line = Timeline("start-up", hand.clock)
    for phase, lasts in (("data", 3.0), ("forward", 1.0), ("data", 2.0), ("forward", 0.5)):
        line.at(phase)
        hand.now += lasts
    assert line.spent() == {"start-up": 0.0, "data": 5.0, "forward": 1.5}


def test_what_was_told_is_not_told_again_and_the_phase_goes_on() -> None:
    hand = Hand()
    line = Timeline("save", hand.clock)
    hand.now = 2.0
    assert line.spent() == {"save": 2.0}
    hand.now = 5.0
    line.at("data")
    hand.now = 6.0
    assert line.spent() == {"save": 3.0, "data": 1.0}


def test_a_phase_that_is_told_over_and_over_keeps_one_mark() -> None:
    """An evaluation tells it for each of its micro-batches; a mark on a GPU is an event."""
    hand = Hand()
    line = Timeline("evaluation", hand.clock)
    for _ in range(1000):
        line.at("evaluation")
        hand.now += 1
    assert len(line.marks) == 1 and line.spent() == {"evaluation": 1000.0}


class Device:
    """A device that works off a queue, and a host that fills it: times in ms. What is enqueued begins when all before it is done."""

    def __init__(self) -> None:
        self.host = self.done = 0.0

    def work(self, ms: float) -> None:
        self.done = max(self.done, self.host) + ms

    def event(self) -> "Event":
        return Event(self)


class Event:
    def __init__(self, device: Device) -> None:
        self.device, self.at = device, -1.0

    def record(self) -> None:
        self.at = max(self.device.done, self.device.host)

    def synchronize(self) -> None:
        self.device.host = max(self.device.host, self.at)

    def elapsed_time(self, end: "Event") -> float:
        assert max(self.at, end.at) <= self.device.host, "torch raises where an event is not past"
        return end.at - self.at


def test_a_gpu_is_measured_by_what_it_does_and_not_by_what_the_host_enqueues() -> None:
    device = Device()
    line = Timeline("start-up", by_events(device.event))
    for _ in range(2):  # steps: the host needs 40 ms for data and 1 ms to enqueue each of two passes of 30 and 60 ms
        line.at("data")
        device.host += 40
        for phase, ms in (("forward", 30), ("backward", 60)):
            line.at(phase)
            device.host += 1
            device.work(ms)
    line.at("exchange")
    device.host += 5
    spent = line.spent()
    # The first 40 ms of data keep the device idle; the second are hidden behind the passes before.
    assert spent == pytest.approx({"start-up": 0, "data": 0.040, "forward": 0.031 + 0.030, "backward": 0.120, "exchange": 0})
    assert sum(spent.values()) == pytest.approx(device.host / 1000)


def test_another_clock_takes_over_and_nothing_is_lost() -> None:
    hand, device = Hand(), Device()
    line = Timeline("start-up", hand.clock)
    hand.now = 7.0
    line.measure_by(by_events(device.event))
    device.host += 500
    line.at("data")
    device.host += 250
    assert line.spent() == pytest.approx({"start-up": 7.5, "data": 0.25})
    assert line.spent() == {"data": 0.0}


def test_a_pulse_keeps_the_time_of_what_it_tells() -> None:
    own = Pulse()
    for phase in PHASES:
        own.at(phase)
    assert set(own.timeline.spent()) == set(PHASES)
    assert STEP == ("data", "forward", "backward", "update", "exchange")
    assert [column(phase) for phase in ("start-up", "forward")] == ["time/start_up_s", "time/forward_s"]
