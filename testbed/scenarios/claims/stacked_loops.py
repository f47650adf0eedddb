"""Loops on files on loops: the issuer is charged on every level, because it has a worker of its own on each."""

from __future__ import annotations

from testbed.guest.guest import Guest
from testbed.scenarios.claims.read import READ_BYTES, read_command
from testbed.scenarios.controls import owned_pages, usual_controls
from testbed.scenarios.harness import open_harness
from testbed.scenarios.scenario import COMMON_NEEDS, Point, Scenario, on_each_disk
from testbed.scenarios.verdict import Evidence, Measure, join_parts, pages_of, share_of


async def _steps(guest: Guest, point: Point) -> Evidence:
    async with open_harness(guest, point) as harness:
        charge = await harness.meter("reader", read_command(harness.loop))
        resident = await harness.resident_bytes()
        usual = await usual_controls(harness, read_command, "rbytes", READ_BYTES)
        # Every kernel charges the topmost loop, whose bio comes from the reader itself. The claim is about the rest.
        top, *lower = (f"7:{number}" for number in reversed(range(point.depth)))
        read = {device: charge.io(device, "rbytes") for device in (top, *lower)}
        read[harness.disk] = charge.io(harness.device, "rbytes")
        page_cache = charge.memory("file")
        whole = {device: charge.whole_io(device, "rbytes") for device in lower}
        shares = ", ".join(f"{device} {bytes_read / READ_BYTES:.2f}" for device, bytes_read in read.items())
        judged = join_parts(
            harness.part(charge, "rbytes", asked=READ_BYTES),
            *(
                share_of(f"the bytes of {device}", read[device], whole[device], least=READ_BYTES * 0.95)
                for device in lower
            ),
            pages_of("the page cache", page_cache, resident, READ_BYTES * point.depth),
        )
        return Evidence(
            claim=judged.gap,
            reason=f"of what it read the reader is charged on {shares}, "
            f"and {page_cache / READ_BYTES:.2f} times as page cache{judged.note}",
            measures=(
                *(
                    Measure(
                        name=f"charged reads on {device}", value=count, unit="bytes", source="io.stat rbytes of reader"
                    )
                    for device, count in read.items()
                ),
                Measure(name="charged page cache", value=page_cache, unit="bytes", source="memory.stat file of reader"),
            ),
            controls=usual.controls[-1:],
            balances=(harness.balance(charge, "rbytes"), *owned_pages(judged.gap, "reader", page_cache, resident)),
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
