"""Reads of partitions, with other sector sizes, or by io_uring, libaio and mmap are charged to the reader, too."""

from __future__ import annotations

from testbed.guest.guest import Guest
from testbed.scenarios.controls import UsualControls, owned_pages, usual_read_controls
from testbed.scenarios.harness import FRESH, Charge, Harness, open_harness
from testbed.scenarios.scenario import COMMON_NEEDS, FIO, Point, Scenario, on_each_disk
from testbed.scenarios.verdict import Control, Evidence, Measure, join_parts, pages_of
from testbed.units import MIB, parse_whole

_BYTES = 16 * MIB
# Read one sector at a time; each request takes half a millisecond or more.
_SECTORS_BYTES = 2 * MIB
# Readahead can double such a short read; therefore the share of the bytes that the disk delivered is judged.
_FIO = f"fio --name=reader --rw=read --bs=64k --size={_BYTES} --iodepth=8 --thread --output=/dev/null"
_WARM_FIO = f"{FRESH}\nfio --name=warm --ioengine=null --size=64k --thread --output=/dev/null"


def _dd(target: str, block_bytes: int, size_bytes: int = _BYTES) -> str:
    return f"dd if={target} of=/dev/null bs={block_bytes} count={size_bytes // block_bytes} iflag=direct status=none"


def _evidence(
    harness: Harness,
    charge: Charge,
    resident: int,
    usual: UsualControls,
    *,
    asked: int = _BYTES,
    own_pages: int = 0,
    more: tuple[Measure, ...] = (),
    controls: tuple[Control, ...] = (),
) -> Evidence:
    """Judge the bytes of the disk and the page cache that the reader is charged for.

    `resident`: bytes of the backing file in memory after the read; `asked`: bytes that were requested; `own_pages`:
    bytes of page cache that every kernel charges to the reader, those of a file on the loop.
    """
    share, moved = harness.share(charge, "rbytes"), harness.disk_moved(charge, "rbytes")
    # fio keeps its statistics in shared memory, which `file` counts as well.
    page_cache = charge.memory("file") - charge.memory("shmem") - own_pages
    judged = join_parts(
        harness.part(charge, "rbytes", asked=asked), pages_of("the page cache", page_cache, resident, asked)
    )
    return Evidence(
        claim=judged.gap,
        reason=f"the reader has {share:.1%} of the disk's bytes "
        f"and {page_cache / MIB:.1f} MiB of the backing file's page cache{judged.note}",
        measures=(
            harness.charged_reads(charge),
            Measure(
                name="disk reads", value=moved, unit="bytes", source=f"query-blockstats rd_bytes of {harness.disk}"
            ),
            *more,
        ),
        controls=(*usual.controls, *controls),
        balances=(
            harness.balance(charge, "rbytes"),
            *usual.balances,
            *owned_pages(judged.gap, "reader", page_cache, resident),
        ),
    )


async def _sector_size(guest: Guest, point: Point) -> Evidence:
    size = int(point.variant)
    async with open_harness(guest, point) as harness:
        await harness.reattach("--sector-size", str(size))
        charge = await harness.meter("reader", _dd(harness.loop, size, _SECTORS_BYTES))
        logical = parse_whole(
            (await guest.run("blockdev", "--getss", harness.loop)).stdout.strip(),
            f"guest {guest.name}: blockdev of {harness.loop}",
        )
        requests = charge.io("7:0", "rios")
        resident = await harness.resident_bytes()
        # A loop can do direct I/O only if its sectors are multiples of the block size of its backing device.
        await harness.reattach("--sector-size", "4096")
        usual = await usual_read_controls(harness)
        wanted = _SECTORS_BYTES // size
        return _evidence(
            harness,
            charge,
            resident,
            usual,
            asked=_SECTORS_BYTES,
            more=(
                Measure(name="requests on the loop", value=requests, unit="requests", source="io.stat rios of reader"),
            ),
            controls=(
                Control(name="sector size", expected=f"{size}", got=f"{logical}", holds=logical == size),
                Control(
                    name="a request a sector",
                    expected=f"{wanted} requests",
                    got=f"{requests}",
                    holds=requests == wanted,
                ),
            ),
        )


async def _partition(guest: Guest, point: Point) -> Evidence:
    async with open_harness(guest, point) as harness:
        await guest.script('printf "label: dos\\nstart=2048\\n" | sfdisk -q "$1"', harness.file)
        await harness.reattach("--partscan")
        charge = await harness.meter("reader", _dd(f"{harness.loop}p1", MIB))
        resident = await harness.resident_bytes()
        number = (
            await guest.script('cat "/sys/class/block/$1/dev"', f"{harness.loop.removeprefix('/dev/')}p1")
        ).stdout.strip()
        usual = await usual_read_controls(harness)
        whole, part = charge.io("7:0", "rbytes"), charge.io(number, "rbytes")
        return _evidence(
            harness,
            charge,
            resident,
            usual,
            more=(
                Measure(
                    name="charged reads on the loop", value=whole, unit="bytes", source="io.stat rbytes of reader, 7:0"
                ),
            ),
            controls=(
                Control(
                    name="io.stat is of whole disks",
                    expected=f"{_BYTES} bytes on 7:0 and none on {number}",
                    got=f"{whole} and {part}",
                    holds=whole == _BYTES and part == 0,
                ),
            ),
        )


async def _engine(guest: Guest, point: Point) -> Evidence:
    async with open_harness(guest, point) as harness:
        target = f"--filename={harness.loop} --direct=1"
        if point.variant == "mmap":
            await guest.script(
                # Do not discard: the controls read the backing file, and reads of holes do not reach the disk.
                'mkfs.ext4 -q -F -E nodiscard,lazy_itable_init=0,lazy_journal_init=0 "$1" && '
                'mkdir -p /mnt/upper && mount "$1" /mnt/upper && '
                'dd if=/dev/zero of=/mnt/upper/file bs=1M count="$2" conv=fsync status=none',
                harness.loop,
                str(_BYTES // MIB),
            )
            target = "--filename=/mnt/upper/file"
        command = f"{_FIO} --ioengine={point.variant} {target}"
        try:
            charge = await harness.meter("reader", command, warm=_WARM_FIO)
            resident = await harness.resident_bytes()
        finally:
            if point.variant == "mmap":
                await guest.run("umount", "/mnt/upper", check=False)
        usual = await usual_read_controls(harness)
        if point.variant != "mmap":
            return _evidence(harness, charge, resident, usual)
        upper = Control(
            name="the file's own pages",
            expected=f"{_BYTES} bytes of page cache or more",
            got=f"{charge.memory('file')}",
            holds=charge.memory("file") >= _BYTES * 0.95,
        )
        return _evidence(harness, charge, resident, usual, own_pages=_BYTES, controls=(upper,))


_SOURCE = "loop: charge i/o to mem and blk cg (patch 4)"
_BASE = "none of the disk's bytes and no page cache are the reader's"

SECTOR_SIZE = Scenario(
    name="sector-size",
    claim="A buffered loop with 512, 1024 or 4096 byte sectors charges the same bytes, in other numbers of requests",
    patches=(4,),
    predicted_base=_BASE,
    predicted_patched="all of the disk's bytes are the reader's, and on the loop one request a sector read",
    source=_SOURCE,
    what="2M read with O_DIRECT, a sector at a time, from a loop with that sector size",
    needs=COMMON_NEEDS,
    points=on_each_disk("ext4", variants=("4096", "512", "1024")),
    steps=_sector_size,
)

PARTITION = Scenario(
    name="partition",
    claim="Reads of a partition of a buffered loop are charged to the reader, on the whole loop and the whole disk",
    patches=(4,),
    predicted_base=_BASE,
    predicted_patched="all of the disk's bytes are the reader's; the partition has no line of its own in io.stat",
    source=f"{_SOURCE}; io.stat is per whole disk (block/blk-cgroup.c)",
    what="16M read with O_DIRECT from /dev/loop0p1 of a loop with a DOS label",
    needs=COMMON_NEEDS,
    points=on_each_disk("ext4"),
    steps=_partition,
)

ENGINES = Scenario(
    name="engine",
    claim="Reads by io_uring, libaio or mmap through a buffered loop are charged to the reader",
    patches=(4,),
    predicted_base=_BASE,
    predicted_patched="all of the disk's bytes and the backing file's page cache are the reader's",
    source=_SOURCE,
    what="16M read by fio with that engine: from the loop with O_DIRECT, or by mmap from a file on ext4 on the loop",
    needs=(*COMMON_NEEDS, FIO),
    points=on_each_disk("ext4", variants=("io_uring", "libaio", "mmap")),
    steps=_engine,
)
