"""Which tests one process runs one after the other, and which tests the processes start with."""

from typing import Final

from xdist.scheduler import LoadScopeScheduling

__all__ = ["BY_SERVER", "LONG", "TOGETHER", "Scheduler", "is_long", "unit_of"]

TOGETHER: Final = frozenset(
    {
        "tests/contract/test_stored_state.py",  # one upgraded directory
        "tests/contract/test_typing.py",  # one cache of mypy, which two processes at once damage
        "tests/system/test_agents.py",  # one run of the agents
        "tests/system/test_counterparts.py",  # one process of each kind
        "tests/system/test_cron.py",  # one machine
        "tests/system/test_image.py",  # one image
        "tests/system/test_kubernetes.py",  # manifests that kubectl renders once
        "tests/system/test_login.py",  # one process of each kind
        "tests/system/test_page_chromium.py",  # one browser
        "tests/system/test_systemd.py",  # one machine
        "tests/system/test_systemd_user.py",  # one machine
    }
)
"""Modules whose tests share something that takes long to make."""

BY_SERVER: Final = frozenset({"tests/system/test_login_servers.py", "tests/system/test_reconnecting_counterparts.py"})
"""Modules with one server for all tests whose last parameter is the same."""

LONG: Final = (
    "tests/faults/test_demands.py::test_tokens_rotate_on_schedule_without_a_usable_demands_directory",
    "tests/system/test_login_end.py::test_a_refresh_token_that_ends_before_its_access_token_is_rotated_in_time",
    "tests/unit/operations/test_state_machine.py",
    "tests/system/test_readme_commands.py",
    "tests/system/test_page_chromium.py",
    "tests/system/test_agents.py",
    "tests/system/test_systemd.py",
    "tests/faults/test_races.py",
    "tests/faults/test_soak.py::test_a_short_soak_passes_and_prints_every_figure",
    "tests/faults/test_shared_directories.py::test_an_agent_that_replaces_tokens_by_a_link_to_the_grants_harms_no_grant",
    "tests/system/test_image.py",
    "tests/faults/test_damage.py::test_damaged_records_are_reported_and_other_grants_rotate",
    "tests/system/test_token_rejected.py::test_the_service_names_the_grant_stays_ready_and_recovers",
)
"""The beginnings of the names of long tests. The run would end with one busy process if they came last."""


class Scheduler(LoadScopeScheduling):  # type: ignore[misc]  # xdist has no types
    """Gives each process a test, or a unit of tests, whenever it has too few.

    The groups of ``--dist loadgroup`` have no effect with pytest 9.2: xdist 3.8 writes them into a name that is not used.
    """

    def _split_scope(self, nodeid: str) -> str:
        return unit_of(nodeid)


def unit_of(nodeid: str) -> str:
    """Return the name of the unit that a test belongs to."""
    module = nodeid.partition("::")[0]
    if module in TOGETHER:
        return module
    if module in BY_SERVER and nodeid.endswith("]"):
        return f"{module} {nodeid.removesuffix(']').rpartition('[')[2].rpartition('-')[2]}"
    return nodeid


def is_long(nodeid: str) -> bool:
    """Whether a test should start early."""
    return nodeid.startswith(LONG)
