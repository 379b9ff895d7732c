"""The schedule of the daemon."""

import threading
import time

from refresher.daemon.schedule import Schedule


def test_a_stop_during_a_callback_prints_no_traceback() -> None:
    """If it failed, a clean stop would sometimes print a traceback that looks like a crash."""
    called, may_end = threading.Event(), threading.Event()

    def callback(name: str) -> None:
        called.set()
        may_end.wait(90)

    schedule = Schedule(callback)
    schedule.start()
    schedule.plan("linear", time.time())
    assert called.wait(90)
    # The callback must end during the stop. If the stop begins later than this, the test passes and proves nothing.
    threading.Timer(0.2, may_end.set).start()
    schedule.stop()  # pytest fails a test during which a thread raises
