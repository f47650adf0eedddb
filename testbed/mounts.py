"""Applies a stack to a running guest, and unwinds it again, whatever happens in between."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Mapping

from testbed import stack
from testbed.errors import CommandFailed, TestbedError
from testbed.guest import Guest
from testbed.stack import LoopDevice
from testbed.topology.model import Loop


@contextlib.asynccontextmanager
async def loops(guest: Guest, wanted: Mapping[str, Loop] | None = None) -> AsyncIterator[dict[str, LoopDevice]]:
    """These loops, or those of the guest's topology, made on the guest and undone in reverse order at the end.

    :raise CommandFailed: a step failed; the ones before it are undone.
    """
    chosen = guest.order.model.loops if wanted is None else wanted
    plan = stack.plan_stack(chosen, {name: device.path for name, device in guest.disks.items()})
    made = await guest.script(stack.do_script(plan), check=False)
    done = stack.steps_done(made.stdout)
    try:
        if made.status != 0:
            raise CommandFailed(guest.name, f"step {done + 1} of {len(plan.steps)} of the loop stack", str(made.status), made.stderr)
        yield plan.loops
    except BaseException:
        # What went wrong first is what is told; a guest that is gone has taken its stack along.
        with contextlib.suppress(TestbedError):
            await guest.script(stack.undo_script(plan, done))
        raise
    await guest.script(stack.undo_script(plan, done))
