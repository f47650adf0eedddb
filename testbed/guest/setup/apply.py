"""Makes a topology's stack and control groups on a running guest, reads them back, and unwinds them again, whatever happens in between."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator

from testbed.errors import CommandFailed, DeviceMismatch, TestbedError
from testbed.guest.guest import Guest
from testbed.guest.setup import block_stack, cgroups, disk_facts, networks, readback
from testbed.guest.setup.block_stack import Stack
from testbed.guest.setup.readback import Expected
from testbed.guest.setup.steps import Step, do_script, steps_done, undo_script
from testbed.topology.model import GuestModel

# The mark that a guest reaches when its stack stands.
STACK_MARK = "stack"


def _planned(guest: Guest, wanted: GuestModel | None) -> tuple[Stack, tuple[Step, ...], tuple[Expected, ...]]:
    own = guest.model
    model = own if wanted is None else wanted
    disks = {name: device.path for name, device in guest.disks.items()}
    plan = block_stack.plan_stack(model, disks, again=guest.spec.surviving_disks is not None)
    group_steps, group_facts = cgroups.plan_cgroups(model, plan.devices)
    link_steps, link_facts = networks.plan_links(guest.spec.wiring.ends if wanted is None else ())
    device_facts = disk_facts.expected_facts(own.disks, guest.disks, own.cpus)
    return plan, link_steps + plan.steps + group_steps, link_facts + device_facts + plan.facts + group_facts


async def apply_steps(guest: Guest, wanted: GuestModel | None = None) -> tuple[Stack, tuple[Step, ...]]:
    """Make everything that stands on a guest's disks; returns what is there, and its steps for `unwind`.

    :raise CommandFailed: a step failed; the ones before it are undone. :raise DeviceMismatch: the guest has it otherwise; all is undone.
    """
    plan, steps, facts = _planned(guest, wanted)
    if not steps and not facts:
        return plan, steps
    # One command for both: under emulation that saves a tenth of a second.
    limit = guest.deadlines.stack_s
    made = await guest.script(do_script(steps) + readback.script(facts), check=False, timeout_s=limit)
    done = steps_done(made.stdout)
    try:
        if made.status != 0:
            raise CommandFailed(
                guest.name, f"step {done + 1} of {len(steps)} of the stack", str(made.status), made.stderr
            )
        said = readback.differences(facts, made.stdout)
        if said:
            raise DeviceMismatch(guest.name, said)
    except BaseException:
        # What went wrong first is what is told; a guest that is gone has taken its stack along.
        with contextlib.suppress(TestbedError):
            await _unwind_running(guest, steps[:done])
        raise
    return plan, steps


async def undo_steps(guest: Guest, steps: tuple[Step, ...]) -> None:
    """Undo steps in reverse order."""
    if steps:
        await guest.script(undo_script(steps), timeout_s=guest.deadlines.stack_s)


async def _unwind_running(guest: Guest, steps: tuple[Step, ...]) -> None:
    """The same after an error: a guest that stands still, as in a debugger, undoes nothing, and shall not hold up whoever ends it."""
    if steps and (await guest.qmp.execute("query-status"))["running"]:
        await undo_steps(guest, steps)


@contextlib.asynccontextmanager
async def stack_applied(guest: Guest, wanted: GuestModel | None = None, *, built: bool = False) -> AsyncIterator[Stack]:
    """The stack of the guest's topology, or of `wanted`, undone in reverse order at the end; raises as `build`.

    `built`: it stands already, for the guest is a snapshot's.
    """
    plan, steps = _planned(guest, wanted)[:2] if built else await apply_steps(guest, wanted)
    guest.marks.reach(STACK_MARK)
    try:
        yield plan
    except BaseException:
        with contextlib.suppress(TestbedError):
            await _unwind_running(guest, steps)
        raise
    await undo_steps(guest, steps)
