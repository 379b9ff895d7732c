"""When each name is looked at next."""

import threading
import time

from refresher.daemon.schedule import Timetable


def test_a_stop_in_the_middle_of_a_ring_leaves_no_trace() -> None:
    """If it failed, now and then a clean stop would print a trace that looks like a crash."""
    rings, goes_on = threading.Event(), threading.Event()

    def ring(name: str) -> None:
        rings.set()
        goes_on.wait(30)

    timetable = Timetable(ring)
    timetable.start()
    timetable.plan("linear", time.time())
    assert rings.wait(30)
    # Once the stop is under way: were it slower than this, the test would pass without having seen anything.
    threading.Timer(0.2, goes_on.set).start()
    timetable.stop()  # pytest fails a test in whose time a thread dies
