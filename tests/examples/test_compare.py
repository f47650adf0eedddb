"""What the patch series changes: which cgroup is charged for a loop device's reads."""

import pytest

from testbed import CgroupMaker, Compare, Vm

SIZE = 16 << 20


async def charged(vm: Vm) -> int:
    """Return the bytes of the disk that a reader of the loop device is charged for."""
    async with vm.cgroup("reader") as reader:
        before = await reader.counters()
        await reader.run(f"dd if={vm.loops['l0']} of=/dev/null bs=1M count={SIZE >> 20} iflag=direct")
        return (await reader.counters() - before).of("data", "rbytes")


@pytest.mark.testbed_kernels(base="debian-5.10", patched="debian-6.1")
async def test_the_reader_of_a_loop_device_pays(compare: Compare) -> None:
    def all_of_it(got: int) -> bool:
        """at least all that was read"""
        return got >= SIZE

    result = await compare(charged)
    result.expect("bytes that the reader is charged for", base=0, patched=all_of_it)


async def test_a_limit_of_memory(vm: Vm, cgroup: CgroupMaker) -> None:
    async with cgroup("small", {"memory.max": "32M", "memory.swap.max": 0}) as small:
        await small.run("head -c 64M /dev/zero >/dev/shm/file", check=False)
        assert (await small.counters()).events["oom_kill"] >= 1
