"""Tests that destroy their guest; the next one has another."""

import pytest

from testbed import GuestLost, Vm


async def test_a_panic(vm: Vm) -> None:
    with pytest.raises(GuestLost, match="panic"):
        await vm.run("touch /root/before; echo c >/proc/sysrq-trigger")


async def test_the_next_guest_knows_nothing_of_it(vm: Vm) -> None:
    assert (await vm.run("test -e /root/before", check=False)).status == 1


async def test_a_full_memory(vm: Vm) -> None:
    await vm.run("head -c 2G /dev/zero >/dev/shm/all", check=False, timeout_s=120)


@pytest.mark.testbed_timeout(60)
async def test_again_a_clean_one(vm: Vm) -> None:
    assert (await vm.run("ls /dev/shm")).stdout == ""
