"""The controls that most scenarios share: I/O that every kernel charges, and I/O that no kernel charges."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from testbed.scenarios.harness import Charge, Harness
from testbed.scenarios.verdict import Balance, Control, Gap, share_gap
from testbed.units import MIB

_READ_MIB = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class UsualControls:
    """Controls, and the balances of their measurements."""

    controls: tuple[Control, ...]
    balances: tuple[Balance, ...]


async def usual_controls(
    harness: Harness, command: Callable[[str], str], counter: str, size_bytes: int, *, file: str | None = None
) -> UsualControls:
    """Run a command in three ways whose charge is known. Call it after the claim is measured: it leaves traces.

    `command` returns the command for a path. On the backing file itself (or on `file`), and through a direct-I/O loop,
    every kernel charges its `counter` bytes; through a buffered loop without the io controller, no kernel charges the
    page cache of its `size_bytes`.
    """
    # If O_DIRECT falls back to the page cache (btrfs with checksums, since 6.12 at least), the writer must own the
    # inode.
    await harness.reattach_uncached("--direct-io=on")
    dio = await harness.meter("dio", command(harness.loop))
    direct = await harness.meter("direct", command(file or harness.file))
    await harness.guest.script("echo -io >/sys/fs/cgroup/cgroup.subtree_control")
    # Attach it again: losetup has opened the file with O_DIRECT, and without --direct-io it would be read page by page.
    await harness.reattach()
    ungated = await harness.meter("ungated", command(harness.loop))
    return UsualControls(
        controls=(
            harness.charged_control("file itself, O_DIRECT", direct, counter, asked=size_bytes),
            harness.charged_control("direct-I/O loop", dio, counter, asked=size_bytes),
            _ungated(harness, ungated, counter, size_bytes),
        ),
        balances=(harness.balance(direct, counter), harness.balance(dio, counter)),
    )


async def usual_read_controls(harness: Harness) -> UsualControls:
    """Run the usual controls with a short read at 24M, for claims whose own command does not work on a file."""
    return await usual_controls(
        harness,
        lambda target: f"dd if={target} of=/dev/null bs=1M skip=24 count={_READ_MIB} iflag=direct status=none",
        "rbytes",
        _READ_MIB * MIB,
    )


def owned_pages(gap: Gap, who: str, charged: int, resident: int) -> tuple[Balance, ...]:
    """Compare the page cache charged to a cgroup with the backing files' resident pages, if the gap is closed."""
    return (Balance(what=f"page cache of the {who}", accounted=charged, real=resident),) if gap is Gap.CLOSED else ()


def _ungated(harness: Harness, charge: Charge, counter: str, size_bytes: int) -> Control:
    charged, moved = charge.memory("file"), harness.disk_moved(charge, counter)
    return Control(
        name="no charge without the io controller",
        expected="at most 2 % of the page cache, and the disk's bytes moved",
        got=f"{charged / size_bytes:.1%} of the page cache, {moved} bytes moved",
        holds=share_gap(charged, size_bytes, least=1) is Gap.OPEN and moved >= size_bytes * 0.95,
    )
