"""Connections to a database that many threads use."""

import threading

from refresher.storage.postgres.database import Database
from tests.support.postgres import Cluster


def test_many_threads_use_few_connections(postgres: Cluster) -> None:
    """If it failed, an internal error after a COMMIT would cost the answer that it has saved."""
    database = Database(postgres.url())
    failed: list[BaseException] = []

    def work() -> None:
        try:
            for _ in range(100):
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
