"""The schedule of the daemon."""

import threading
import time

from refresher.daemon.schedule import Schedule


def test_a_stop_during_a_callback_prints_no_traceback() -> None:
    """If it failed, a clean stop would sometimes print a traceback that looks like a crash."""
    called, goes_on = threading.Event(), threading.Event()

    def callback(name: str) -> None:
        called.set()
        goes_on.wait(30)

    schedule = Schedule(callback)
    schedule.start()
    schedule.plan("linear", time.time())
    assert called.wait(30)
    # The callback must end during the stop; if the stop began later than this, the test would prove nothing.
    threading.Timer(0.2, goes_on.set).start()
    schedule.stop()  # pytest fails a test during which a thread raises
