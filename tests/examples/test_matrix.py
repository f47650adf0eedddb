"""One test, on each kernel and each point of the matrix of test_matrix.yaml."""

import pytest

from testbed import Vm


@pytest.mark.testbed_kernels("debian-5.10", "debian-6.1")
async def test_the_disk_is_of_its_kind(vm: Vm) -> None:
    kind = vm.model.disks["data"].type
    assert vm.disks["data"].path.startswith({"virtio-blk": "/dev/vd", "nvme": "/dev/nvme"}[kind])
