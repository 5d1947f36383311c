from dojo.practice.stopwatch import LONGEST_STEP, Clock


class Time:
    """A monotonic clock that moves when it is told to."""

    def __init__(self):
        self.seconds = 100.0

    def __call__(self):
        return self.seconds


def test_it_goes_on_from_what_was_spent():
    time = Time()
    clock = Clock(60.0, time)
    time.seconds += 2
    assert clock.spent() == 62


def test_it_stands_still_until_every_hold_is_released():
    time = Time()
    clock = Clock(now=time)
    time.seconds += 1
    clock.hold("paused")
    time.seconds += 2
    clock.hold("running")
    clock.release("paused")
    assert clock.held("running")
    assert not clock.held("paused")
    time.seconds += 2
    assert clock.spent() == 1
    clock.release("running")
    time.seconds += 3
    assert clock.spent() == 4


def test_a_machine_asleep_costs_no_time():
    time = Time()
    clock = Clock(now=time)
    time.seconds += 8 * 3600
    assert clock.spent() == LONGEST_STEP
