"""Loops on files on loops: the issuer pays on every level, for the worker of each is the issuer's."""

from __future__ import annotations

from testbed.guest.guest import Guest
from testbed.scenarios.claims.read import READ_BYTES, read_command
from testbed.scenarios.controls import owned_pages, usual_controls
from testbed.scenarios.harness import open_harness
from testbed.scenarios.scenario import COMMON_NEEDS, Point, Scenario, on_each_disk
from testbed.scenarios.verdict import Evidence, Measure, join_parts, pages_of, share_of


async def _steps(guest: Guest, point: Point) -> Evidence:
    async with open_harness(guest, point) as at:
        claim = await at.meter("reader", read_command(at.loop))
        resident = await at.resident()
        known = await usual_controls(at, read_command, "rbytes", READ_BYTES)
        # The topmost loop is charged on every kernel: its bio comes from the reader itself. The others, and the disk, are the claim.
        top, *lower = (f"7:{number}" for number in reversed(range(point.depth)))
        read = {device: claim.io(device, "rbytes") for device in (top, *lower)}
        read[at.disk] = claim.io(at.device, "rbytes")
        page_cache = claim.memory("file")
        whole = {device: claim.whole_io(device, "rbytes") for device in lower}
        said = ", ".join(f"{device} {bytes_read / READ_BYTES:.2f}" for device, bytes_read in read.items())
        judged = join_parts(
            at.part(claim, "rbytes", asked=READ_BYTES),
            *(
                share_of(f"the bytes of {device}", read[device], whole[device], least=READ_BYTES * 0.95)
                for device in lower
            ),
            pages_of("the page cache", page_cache, resident, READ_BYTES * point.depth),
        )
        return Evidence(
            claim=judged.gap,
            reason=f"of what it read the reader is charged on {said}, and {page_cache / READ_BYTES:.2f} times as page cache{judged.note}",
            measures=(
                *(
                    Measure(
                        name=f"charged reads on {device}", value=count, unit="bytes", source="io.stat rbytes of reader"
                    )
                    for device, count in read.items()
                ),
                Measure(name="charged page cache", value=page_cache, unit="bytes", source="memory.stat file of reader"),
            ),
            controls=known.controls[-1:],
            balances=(at.balance(claim, "rbytes"), *owned_pages(judged.gap, "reader", page_cache, resident)),
        )


NESTED = Scenario(
    name="nested",
    claim="With loops on files on loops the reader is charged on every level",
    patches=(1, 4),
    predicted_base="only the topmost loop's bytes are the reader's",
    predicted_patched="each loop's and the disk's bytes, and the page cache of each backing file, are the reader's",
    source="loop: use worker per cgroup instead of kworker (patch 1), charge i/o to mem and blk cg (patch 4)",
    what="16M read with O_DIRECT from the topmost of two or three loops, each on a file on ext4 on the one below",
    needs=COMMON_NEEDS,
    points=tuple(
        point for depth in (2, 3) for point in on_each_disk("ext4", variants=(f"{depth}-levels",), depth=depth)
    ),
    steps=_steps,
)
