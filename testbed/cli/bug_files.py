"""Bug files as verbs take them: whole, with scripts that can be read and kernels that are there, before any guest starts."""

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


def ready(file: Path, check_kernels: KernelsCheck | None = None) -> Case:
    """The bug in a file that guests are to run. Raises as `planned`.

    :raise UsageError: it has `qemu-args` that are not trusted.
    """
    case = planned(file, check_kernels)
    trust.check_trusted(case.guest.qemu_args)
    return case


def planned(file: Path, check_kernels: KernelsCheck | None = None) -> Case:
    """The bug in a file. `check_kernels`: says what of its guest the kernels that it names cannot do.

    :raise TopologyError: it cannot be read, or says something wrong; or one of its scripts cannot be read.
    """
    case = load(file, limits=HostLimits.of_this_host(), check_kernels=check_kernels)
    check_scripts(case.bug, script_places(file))
    return case


def check_scripts(bug: Bug, where: Mapping[str, Place]) -> None:
    """:raise TopologyError: one of the bug's scripts cannot be read."""
    if found := syntax_check.find_problems(bug, where):
        raise TopologyError(tuple(found))


def validated(file: Path, check_kernels: KernelsCheck) -> tuple[str, ...]:
    """What should be known of a bug file that is valid. `check_kernels`: as of `ready`.

    :raise TopologyError: it is not: every mistake, kernels that are not there among them.
    """
    case = load(file, limits=HostLimits.of_this_host(), kernel=_known, check_kernels=check_kernels)
    check_scripts(case.bug, script_places(file))
    notes = [f"{file}: note: {said}" for said in self_matches(case.bug)]
    return (*notes, *([] if trust.are_trusted(case.guest.qemu_args) else [untrusted(file, "qemu-args")]))


def untrusted(file: Path, place: str) -> str:
    """What to know of `qemu-args` that are not trusted."""
    return f"note: {file}: {place}: no guest gets them before you trust this file: testbed trust {file}"


def _known(spec: str) -> None:
    """:raise UsageError: there is no such kernel."""
    found = shipped_table().resolve(spec)
    if isinstance(found, BuiltKernel):
        cache = paths.folders().cache
        if build_names.find_name(cache, found) is None:
            there = ", ".join(f"{BUILT}{one.name}" for one in build_names.list_names(cache)) or "none"
            raise UsageError(f"kernel {spec!r}: expected one that was built, which are: {there}")
