"""The controls that most scenarios share: what is known to be charged on every kernel, and what on none."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from testbed.scenarios.harness import Charge, Harness
from testbed.scenarios.verdict import Balance, Control, Gap, share_gap
from testbed.units import MIB

_READ_MIB = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class UsualControls:
    """Controls, and the balances of their readings."""

    controls: tuple[Control, ...]
    balances: tuple[Balance, ...]


async def usual_controls(
    at: Harness, command: Callable[[str], str], counter: str, size_bytes: int, *, file: str | None = None
) -> UsualControls:
    """The same command, made for a file or device by `command`, where its outcome is known; run after the claim, for they leave traces.

    On the backing file itself (or on `file`) and through a direct-I/O loop every kernel charges its `counter` bytes; through a buffered
    loop with the io controller off no kernel charges the page cache of its `size_bytes`.
    """
    # Where O_DIRECT falls back to the page cache (btrfs with checksums, since 6.12 at least) a writer must own the inode.
    await at.forget("--direct-io=on")
    dio = await at.meter("dio", command(at.loop))
    direct = await at.meter("direct", command(file or at.file))
    await at.guest.script("echo -io >/sys/fs/cgroup/cgroup.subtree_control")
    # Attached anew: losetup opened the file with O_DIRECT, and without --direct-io it stays open so, read page by page.
    await at.attach()
    ungated = await at.meter("ungated", command(at.loop))
    return UsualControls(
        controls=(
            at.charged("file itself, O_DIRECT", direct, counter, asked=size_bytes),
            at.charged("direct-I/O loop", dio, counter, asked=size_bytes),
            _ungated(at, ungated, counter, size_bytes),
        ),
        balances=(at.balance(direct, counter), at.balance(dio, counter)),
    )


async def usual_read_controls(at: Harness) -> UsualControls:
    """The same of a short read, where the claim's own command is not for a file: of the last but one quarter of 32M and more."""
    return await usual_controls(
        at,
        lambda target: f"dd if={target} of=/dev/null bs=1M skip=24 count={_READ_MIB} iflag=direct status=none",
        "rbytes",
        _READ_MIB * MIB,
    )


def owned_pages(gap: Gap, who: str, charged: int, resident: int) -> tuple[Balance, ...]:
    """The page cache that a cgroup pays for against the backing files' pages in memory, bytes, where they are claimed to be its own."""
    return (Balance(what=f"page cache of the {who}", accounted=charged, real=resident),) if gap is Gap.CLOSED else ()


def _ungated(at: Harness, reading: Charge, counter: str, size_bytes: int) -> Control:
    charged, moved = reading.memory("file"), at.moved(reading, counter)
    return Control(
        name="no charge without the io controller",
        expected="at most 2 % of the page cache, and the disk's bytes moved",
        got=f"{charged / size_bytes:.1%} of the page cache, {moved} bytes moved",
        holds=share_gap(charged, size_bytes, least=1) is Gap.OPEN and moved >= size_bytes * 0.95,
    )
