"""Connections to a database that many threads use."""

import threading
import time

from refresher.storage.postgres.database import Database, Link
from tests.support.postgres import Cluster


class _SlowList(list[Link]):
    """A thread that has given its connection back is slow to go on, as on a busy machine."""

    def append(self, link: Link) -> None:
        super().append(link)
        time.sleep(0.005)


def test_many_threads_use_few_connections(postgres: Cluster) -> None:
    """If it failed, an internal error after a COMMIT would cost the answer that it has saved."""
    database = Database(postgres.url())
    database._idle = _SlowList()
    failed: list[BaseException] = []

    def work() -> None:
        try:
            for _ in range(20):
                with database.transaction() as cursor:
                    cursor.execute("SELECT 1")
        except BaseException as error:  # noqa: BLE001  the test reports it
            failed.append(error)

    threads = [threading.Thread(target=work) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    database.close()
    assert failed == []
