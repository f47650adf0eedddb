"""The faults that the testbed must survive: where each strikes, how it is reported, and the tests of it.

No fault leaves a process; after the next command there is no socket, scratch file or held lock; the guest's logs stay.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass

from testbed import errors
from testbed.guest.lifecycle import NEXT, Event, State
from tests.support.places import Ended

# Taken from the lifecycle's table, so that new states are tested, too: states with a QEMU, and all states in which
# something could be left.
ALIVE = tuple(state for state, event in NEXT if event is Event.ENDED)
STARTED = tuple(state for state in State if state is not State.STOPPED)
NAMES = tuple(state.name for state in STARTED)


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """`stages`: where it strikes; none: not in a guest's life. `error`, `status`: what is raised, and the command's
    exit code; None if the command continues, or was killed. `tests`: FILE::FUNCTION.

    `within_s`: how long a test of it may take from its start to its end: many times what it takes, since it is to
    detect hangs.
    """

    stages: tuple[State, ...] = ()
    error: type[errors.TestbedError] | None
    status: int | None
    within_s: float
    tests: tuple[str, ...]


class Met:
    """What a fault caused: `error` is what was raised here."""

    def __init__(self, fault: Fault) -> None:
        self.fault = fault
        self.error: errors.TestbedError | None = None
        self._commands = 0

    def by(self, command: Ended, *, coded: bool = True) -> Ended:
        """Check that a command (with `--json`) ended with the table's exit code and error. `coded`: False if it has a
        result anyway, as a run has whose guest was lost.
        """
        assert self.fault.status in (None, command.status), command
        if coded and self.fault.error is not None:
            assert json.loads(command.err.splitlines()[-1])["code"] == self.fault.error.code, command
        self._commands += 1
        return command

    def _check(self) -> None:
        if not self._commands:
            assert type(self.error) is (self.fault.error or type(None)), repr(self.error)


@contextlib.contextmanager
def expect(name: str) -> Iterator[Met]:
    """Check that the block ends as the table says of the fault `name`, and in time: by raising its error, or by a
    command's exit code.

    :raise AssertionError: it does not.
    """
    met, began = Met(FAULTS[name]), time.monotonic()
    try:
        yield met
    except errors.TestbedError as error:
        met.error = error
    met._check()
    assert time.monotonic() - began < met.fault.within_s


def _of_the_monitor(error: type[errors.TestbedError]) -> Fault:
    return Fault(
        stages=(State.AWAKE, State.READY),
        error=error,
        status=2,
        within_s=120,
        tests=("guest/test_faults.py::test_the_monitor_is_damaged",),
    )


FAULTS: dict[str, Fault] = {
    "kill -9 of the testbed": Fault(
        stages=STARTED,
        error=None,
        status=None,
        within_s=300,
        tests=(
            "cli/test_kills.py::test_a_killed_run_leaves_nothing",
            "cli/test_kills.py::test_a_killed_supervisor_leaves_nothing",
            "cli/test_kills.py::test_a_killed_up_ends_its_guest",
            "cli/test_kills.py::test_a_killed_template_leaves_nothing",
            "cli/test_kills.py::test_a_killed_image_build_leaves_nothing",
            "cli/test_kills.py::test_random_kills_leave_nothing",
        ),
    ),
    "kill -9 of QEMU": Fault(
        stages=ALIVE,
        error=errors.GuestLost,
        status=2,
        within_s=300,
        tests=(
            "guest/test_faults.py::test_qemu_is_killed",
            "cli/test_kills.py::test_a_command_reports_that_its_qemu_was_killed",
        ),
    ),
    "QMP socket closed": _of_the_monitor(errors.GuestLost),
    "half a JSON message": _of_the_monitor(errors.HostError),
    "half a JSON message and the end": _of_the_monitor(errors.GuestLost),
    "a QMP answer that never comes": _of_the_monitor(errors.HostError),
    "SSH dropped in a command": Fault(
        stages=(State.READY,),
        error=errors.WireBroken,
        status=2,
        within_s=120,
        tests=("guest/test_faults.py::test_ssh_is_dropped_in_a_command",),
    ),
    "SIGSTOP of QEMU": Fault(
        stages=(State.READY,),
        error=None,
        status=0,
        within_s=180,
        tests=(
            "guest/test_faults.py::test_qemu_is_stopped_and_continued",
            "guest/test_faults.py::test_qemu_is_stopped_for_30_s",
        ),
    ),
    "clock jump": Fault(
        stages=ALIVE, error=None, status=0, within_s=120, tests=("guest/test_faults.py::test_the_clock_jumps",)
    ),
    "wrong clock of a booted guest": Fault(
        stages=(State.READY,),
        error=None,
        status=0,
        within_s=300,
        tests=("guest/test_faults.py::test_a_guest_whose_clock_is_wrong_is_booted_again",),
    ),
    "corrupt or foreign template": Fault(
        stages=(State.LAUNCHED, State.MONITORED),
        error=None,
        status=0,
        within_s=300,
        tests=(
            "guest/test_faults.py::test_a_damaged_template_is_made_again",
            "guest/test_clone.py::test_a_template_that_does_not_load_is_made_again_once_and_says_why",
        ),
    ),
    "corrupt image": Fault(
        error=errors.GuestLost, status=2, within_s=600, tests=("guest/test_faults.py::test_an_image_is_corrupt",)
    ),
    "truncated kernel": Fault(
        error=errors.UsageError, status=2, within_s=300, tests=("host/test_places.py::test_a_kernel_is_truncated",)
    ),
    "host disk full: cache": Fault(
        stages=(State.READY,),
        error=errors.HostError,
        status=2,
        within_s=300,
        tests=("host/test_places.py::test_the_disk_is_full_below_the_cache",),
    ),
    "host disk full: runs": Fault(
        error=errors.HostError,
        status=2,
        within_s=300,
        tests=("host/test_places.py::test_the_disk_is_full_below_the_runs",),
    ),
    "host disk full: template": Fault(
        error=errors.HostError,
        status=2,
        within_s=300,
        tests=("host/test_places.py::test_the_disk_is_full_where_a_template_is_made",),
    ),
    "more than a run may take": Fault(
        stages=(State.READY,),
        error=errors.HostError,
        status=2,
        within_s=300,
        tests=("host/test_places.py::test_a_run_exceeds_its_disk_limit",),
    ),
    "read-only cache": Fault(
        error=errors.HostError, status=2, within_s=300, tests=("host/test_places.py::test_the_cache_is_read_only",)
    ),
    "unwritable runtime dir": Fault(
        error=errors.HostError,
        status=2,
        within_s=300,
        tests=("host/test_places.py::test_no_folder_for_sockets_can_be_made",),
    ),
    "no memory for a guest": Fault(
        stages=(State.LAUNCHED,),
        error=errors.HostError,
        status=2,
        within_s=300,
        tests=("host/test_places.py::test_no_memory_for_a_guest",),
    ),
    "spaces and unicode in paths, TMPDIR elsewhere, no HOME": Fault(
        error=None, status=0, within_s=300, tests=("host/test_places.py::test_odd_paths_and_no_home",)
    ),
    "two commands build the same image": Fault(
        error=None, status=0, within_s=900, tests=("cli/test_kills.py::test_two_commands_build_an_image_once",)
    ),
    "20 commands at once": Fault(
        error=None, status=0, within_s=900, tests=("cli/test_kills.py::test_twenty_commands_at_once",)
    ),
}
