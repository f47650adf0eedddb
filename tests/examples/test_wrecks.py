"""Tests that destroy their guest; the next one has another."""

from pathlib import Path

import pytest

from testbed import GuestLost, TestbedError, Vm


async def test_a_panic(vm: Vm) -> None:
    with pytest.raises(GuestLost, match="panic"):
        await vm.run("touch /root/before; echo c >/proc/sysrq-trigger")


async def test_the_next_guest_knows_nothing_of_it(vm: Vm) -> None:
    assert (await vm.run("test -e /root/before", check=False)).status == 1


async def test_a_full_memory(vm: Vm) -> None:
    await vm.run("head -c 2G /dev/zero >/dev/shm/all", check=False, timeout_s=120)


async def test_without_its_root_disk(vm: Vm) -> None:
    root = (await vm.run("findmnt -n -o SOURCE /")).stdout.strip()
    await vm.run(f"echo 1 >/sys/class/block/{Path(root).name}/device/../remove")
    with pytest.raises(TestbedError):
        await vm.run("cat $(which fio) >/dev/null && fio --version", timeout_s=60)


@pytest.mark.testbed_timeout(60)
async def test_again_a_clean_one(vm: Vm) -> None:
    assert (await vm.run("ls /dev/shm")).stdout == ""
