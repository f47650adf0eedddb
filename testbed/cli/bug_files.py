"""Loads bug files for commands: checks scripts, kernels and trust before any guest starts."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from testbed.bugs import Case, load, syntax_check
from testbed.bugs.load import KernelsCheck, Place, script_places
from testbed.bugs.model import Bug
from testbed.bugs.shell_messages import self_matches
from testbed.errors import TopologyError, UsageError
from testbed.host import paths
from testbed.store.kernels import build_names
from testbed.store.kernels.table import BUILT, BuiltKernel, shipped_table
from testbed.topology import trust
from testbed.topology.host_limits import HostLimits


def load_trusted(file: Path, check_kernels: KernelsCheck | None = None) -> Case:
    """Load a bug file whose guests are to be run. Raises as `load_checked`.

    :raise UsageError: it has `qemu-args` that are not trusted.
    """
    case = load_checked(file, check_kernels)
    trust.check_trusted(case.guest.qemu_args)
    return case


def load_checked(file: Path, check_kernels: KernelsCheck | None = None) -> Case:
    """Load a bug file. `check_kernels`: returns what the kernels of the file cannot do of its guest.

    :raise TopologyError: the file, or one of its scripts, cannot be read or is wrong.
    """
    case = load(file, limits=HostLimits.of_this_host(), check_kernels=check_kernels)
    check_scripts(case.bug, script_places(file))
    return case


def check_scripts(bug: Bug, where: Mapping[str, Place]) -> None:
    """:raise TopologyError: a script of the bug has a syntax error."""
    if problems := syntax_check.find_problems(bug, where):
        raise TopologyError(tuple(problems))


def validate_bug(file: Path, check_kernels: KernelsCheck) -> tuple[str, ...]:
    """Return notes on a valid bug file. `check_kernels`: as of `load_checked`.

    :raise TopologyError: the file is not valid; has every mistake, such as kernels that do not exist.
    """
    case = load(file, limits=HostLimits.of_this_host(), kernel=_check_kernel, check_kernels=check_kernels)
    check_scripts(case.bug, script_places(file))
    notes = [f"{file}: note: {note}" for note in self_matches(case.bug)]
    return (*notes, *([] if trust.are_trusted(case.guest.qemu_args) else [untrusted_note(file, "qemu-args")]))


def untrusted_note(file: Path, place: str) -> str:
    """Return the note on `qemu-args` that are not trusted."""
    return f"note: {file}: {place}: no guest gets them before you trust this file: testbed trust {file}"


def _check_kernel(name: str) -> None:
    """:raise UsageError: there is no such kernel."""
    kernel = shipped_table().resolve(name)
    if isinstance(kernel, BuiltKernel):
        cache = paths.folders().cache
        if build_names.find_name(cache, kernel) is None:
            built = ", ".join(f"{BUILT}{one.name}" for one in build_names.list_names(cache)) or "none"
            raise UsageError(f"kernel {name!r}: expected one that was built, which are: {built}")
