from __future__ import annotations

from pathlib import Path

import pytest

from testbed.errors import CommandFailed, DeviceMismatch, HostError
from testbed.guest.factory import GuestFactory
from testbed.guest.guest import Guest
from testbed.guest.metrics import readings
from testbed.guest.setup import apply
from testbed.store.kernels.kernel_files import KernelFiles
from testbed.topology import GuestModel
from testbed.topology.storage import Loop

# A loop on a file on ext4 on each kind of disk, and one on a file on tmpfs.
MODEL = GuestModel.model_validate(
    {
        "cpus": 1,
        "disks": {"data": {"type": "virtio-blk", "size": "1G"}, "fast": {"type": "nvme", "size": "1G"}},
        "loops": {
            "l0": {"backing": "data/disk.img", "size": "64M"},
            "l1": {"backing": "fast/disk.img", "size": "64M"},
            "l2": {"backing": "ram/disk.img", "filesystem": "tmpfs", "size": "256M"},
        },
    }
)


async def attached(guest: Guest) -> dict[str, str]:
    """Return the backing file of each loop device."""
    listed = await guest.run("losetup", "--list", "--noheadings", "--raw", "--output", "NAME,BACK-FILE")
    return dict(line.split(maxsplit=1) for line in listed.stdout.splitlines())


async def mounted(guest: Guest) -> set[str]:
    table = (await guest.run("cat", "/proc/mounts")).stdout
    return {line.split()[1] for line in table.splitlines() if line.split()[1].startswith("/mnt/")}


@pytest.mark.slow
async def test_a_stack_is_made_and_unmade(factory: GuestFactory, kernel: KernelFiles, logs: Path) -> None:
    async with factory.guest("g0", MODEL, kernel, logs) as guest:
        async with apply.stack_applied(guest) as made:
            assert await attached(guest) == {loop.path: loop.backing_file for loop in made.loops.values()}
            assert await mounted(guest) == {"/mnt/data", "/mnt/fast", "/mnt/ram"}
            for name, loop in made.loops.items():
                size = await guest.run("blockdev", "--getsize64", loop.path)
                assert int(size.stdout) == MODEL.loops[name].size
        assert await attached(guest) == {} and await mounted(guest) == set()


@pytest.mark.slow
async def test_loops_on_loops(factory: GuestFactory, kernel: KernelFiles, logs: Path) -> None:
    nested = GuestModel.model_validate(
        {
            "disks": {"data": {"type": "nvme", "size": "1G"}},
            "loops": {
                "l0": {"backing": "data/outer.img", "size": "512M", "filesystem": "xfs"},
                "l1": {"backing": "l0/inner.img", "size": "64M", "direct-io": True},
            },
        }
    )
    async with factory.guest("g0", nested, kernel, logs) as guest, apply.stack_applied(guest) as made:
        assert await attached(guest) == {"/dev/loop0": "/mnt/data/outer.img", "/dev/loop1": "/mnt/l0/inner.img"}
        assert made.loops["l1"].disks == ("data",)
        assert (await guest.run("cat", "/sys/block/loop1/loop/dio")).stdout == "1\n"


async def test_finished_steps_are_undone_when_a_step_fails(
    factory: GuestFactory, kernel: KernelFiles, logs: Path
) -> None:
    async with factory.guest("g0", MODEL, kernel, logs) as guest:
        # Another file is attached to the second loop's device.
        await guest.script("truncate -s 1M /tmp/other && losetup /dev/loop1 /tmp/other")
        with pytest.raises(CommandFailed, match=r"failed: /dev/loop1 on /mnt/fast/disk\.img"):
            async with apply.stack_applied(guest):
                pass
        assert await attached(guest) == {"/dev/loop1": "/tmp/other"} and await mounted(guest) == set()


async def test_the_stack_is_undone_when_the_work_on_it_fails(
    factory: GuestFactory, model: GuestModel, kernel: KernelFiles, logs: Path
) -> None:
    async with factory.guest("g0", model, kernel, logs) as guest:
        with pytest.raises(CommandFailed):
            async with apply.stack_applied(guest, MODEL.model_copy(update={"loops": {"l2": MODEL.loops["l2"]}})):
                await guest.run("false")
        assert await attached(guest) == {} and await mounted(guest) == set()


async def test_a_throttled_disk_is_as_slow_as_its_limit(factory: GuestFactory, kernel: KernelFiles, logs: Path) -> None:
    """100 direct reads at 50 IOPS take two seconds or more, however fast or slow the host is."""
    slow = GuestModel.model_validate(
        {
            "disks": {
                name: {"type": kind, "size": "64M", "throttle": {"iops-total": 50}}
                for name, kind in (("a", "virtio-blk"), ("b", "nvme"))
            }
        }
    )
    async with factory.guest("g0", slow, kernel, logs) as guest:
        for name, device in guest.disks.items():
            before = (await readings.read_disk_bytes(guest))[name][0]
            done = await guest.run(
                "dd", f"if={device.path}", "of=/dev/null", "bs=4k", "count=100", "iflag=direct", "status=none"
            )
            # The bucket holds a tenth of a second: the first five or so are free.
            assert done.took_s > 1.6
            assert (await readings.read_disk_bytes(guest))[name][0] - before >= 100 * 4096


async def test_a_guest_that_differs_from_the_file_after_its_setup_is_refused(
    factory: GuestFactory, kernel: KernelFiles, logs: Path
) -> None:
    """The kernel silently gives no direct I/O to a loop with sectors smaller than the disk's, or that start in one."""
    small = GuestModel.model_validate(
        {
            "disks": {"native": {"type": "nvme", "size": "512M", "logical-block-size": 4096}},
            "loops": {"l0": {"backing": "native/f", "size": "64M", "logical-block-size": 512, "direct-io": True}},
        }
    )
    async with factory.guest("g0", small, kernel, logs) as guest:
        said = (
            r"loops\.l0\.direct-io: expected 1, got 0 \(/sys/block/loop0/loop/dio\); "
            r"a kernel gives a loop no direct I/O, without an error"
        )
        with pytest.raises(DeviceMismatch, match=said):
            async with apply.stack_applied(guest):
                pass
        odd = Loop.model_validate({"backing": "native/f", "size": "64M", "offset": 512, "direct-io": True})
        with pytest.raises(DeviceMismatch, match=said):
            async with apply.stack_applied(guest, small.model_copy(update={"loops": {"l0": odd}})):
                pass
        assert await attached(guest) == {} and await mounted(guest) == set()


async def test_an_overlay_shows_its_image_and_never_writes_it(
    factory: GuestFactory, kernel: KernelFiles, logs: Path, tmp_path: Path
) -> None:
    image = tmp_path / "an image, of mine.img"
    image.write_bytes(b"mine" * 1024 + bytes(4 << 20))
    before = image.read_bytes()
    over = GuestModel.model_validate({"disks": {"d": {"type": "virtio-blk", "size": "8M", "image": str(image)}}})
    async with factory.guest("g0", over, kernel, logs) as guest:
        path = guest.disks["d"].path
        assert (await guest.run("head", "-c", "8", path)).stdout == "minemine"
        await guest.script('echo other | dd of="$1" conv=fsync status=none', path)
        assert (await guest.run("head", "-c", "6", path)).stdout == "other\n"
    assert image.read_bytes() == before


async def test_an_image_that_is_too_large_or_missing_is_an_error(
    factory: GuestFactory, kernel: KernelFiles, tmp_path: Path
) -> None:
    (tmp_path / "large.img").write_bytes(bytes(16 << 20))
    for name, words in (
        ("large.img", "it holds 16M, which is more than the disk's size of 8M"),
        ("none.img", "expected a file, there is no "),
    ):
        wrong = GuestModel.model_validate(
            {"disks": {"d": {"type": "nvme", "size": "8M", "image": str(tmp_path / name)}}}
        )
        with pytest.raises(HostError, match=words):
            async with factory.guest("g0", wrong, kernel, tmp_path / name.replace(".", "-")):
                pass
