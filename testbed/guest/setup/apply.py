"""Sets up a topology's block stack, cgroups and networks on a running guest, reads them back, and undoes them in the
end.
"""

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

# The mark that is reached when the stack is set up.
STACK_MARK = "stack"


def _plan(guest: Guest, model: GuestModel | None) -> tuple[Stack, tuple[Step, ...], tuple[Expected, ...]]:
    """Plan the stack, all steps, and what to read back."""
    own = guest.model
    stacked = own if model is None else model
    disks = {name: device.path for name, device in guest.disks.items()}
    plan = block_stack.plan_stack(stacked, disks, again=guest.spec.surviving_disks is not None)
    group_steps, group_facts = cgroups.plan_cgroups(stacked, plan.devices)
    link_steps, link_facts = networks.plan_links(guest.spec.wiring.ends if model is None else ())
    device_facts = disk_facts.expected_facts(own.disks, guest.disks, own.cpus)
    return plan, link_steps + plan.steps + group_steps, link_facts + device_facts + plan.facts + group_facts


async def apply_steps(guest: Guest, model: GuestModel | None = None) -> tuple[Stack, tuple[Step, ...]]:
    """Set up what the topology, or `model`, puts on the guest's disks; returns the stack, and the steps for
    `undo_steps`.

    :raise CommandFailed: a step failed; the steps before it are undone.
    :raise DeviceMismatch: what was read back differs from the topology; all steps are undone.
    """
    plan, steps, facts = _plan(guest, model)
    if not steps and not facts:
        return plan, steps
    # One command sets up and reads back: under emulation that saves a tenth of a second.
    limit = guest.deadlines.stack_s
    made = await guest.script(do_script(steps) + readback.script(facts), check=False, timeout_s=limit)
    done = steps_done(made.stdout)
    try:
        if made.status != 0:
            raise CommandFailed(
                guest.name, f"step {done + 1} of {len(steps)} of the stack", str(made.status), made.stderr
            )
        if differences := readback.differences(facts, made.stdout):
            raise DeviceMismatch(guest.name, differences)
    except BaseException:
        # Report the first error only; a guest that was lost has no stack to undo.
        with contextlib.suppress(TestbedError):
            await _undo_if_running(guest, steps[:done])
        raise
    return plan, steps


async def undo_steps(guest: Guest, steps: tuple[Step, ...]) -> None:
    """Undo steps in reverse order."""
    if steps:
        await guest.script(undo_script(steps), timeout_s=guest.deadlines.stack_s)


async def _undo_if_running(guest: Guest, steps: tuple[Step, ...]) -> None:
    """Undo steps after an error, unless the guest is paused, as by a debugger: it would not answer."""
    if steps and (await guest.qmp.execute("query-status"))["running"]:
        await undo_steps(guest, steps)


@contextlib.asynccontextmanager
async def stack_applied(guest: Guest, model: GuestModel | None = None, *, built: bool = False) -> AsyncIterator[Stack]:
    """Set up the stack of the guest's topology, or of `model`, and undo it in reverse order at the end.

    `built`: the stack exists already, because the guest was restored from a snapshot. Raises as `apply_steps`.
    """
    plan, steps = _plan(guest, model)[:2] if built else await apply_steps(guest, model)
    guest.marks.reach(STACK_MARK)
    try:
        yield plan
    except BaseException:
        with contextlib.suppress(TestbedError):
            await _undo_if_running(guest, steps)
        raise
    await undo_steps(guest, steps)
