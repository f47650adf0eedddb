import shutil
import subprocess
from pathlib import Path

import pytest

from testbed.store import initramfs

DEP = """\
kernel/drivers/virtio/virtio.ko:
kernel/drivers/virtio/virtio_ring.ko: kernel/drivers/virtio/virtio.ko
kernel/drivers/virtio/virtio_pci.ko.xz: kernel/drivers/virtio/virtio_ring.ko kernel/drivers/virtio/virtio.ko
"""


def test_modules_are_loaded_after_what_they_need_and_once() -> None:
    order = initramfs.module_order(DEP, ["virtio-pci", "virtio_ring", "built_in"])
    assert [initramfs.module_name(path) for path in order] == ["virtio", "virtio_ring", "virtio_pci"]


def test_the_same_parts_give_the_same_bytes() -> None:
    parts = (b"init", b"busybox", {"a.ko": b"1", "b.ko": b"2"})
    assert initramfs.build(*parts, with_modules_disk=True) == initramfs.build(*parts, with_modules_disk=True)
    assert initramfs.build(*parts, with_modules_disk=True) != initramfs.build(*parts, with_modules_disk=False)


@pytest.mark.skipif(shutil.which("cpio") is None, reason="needs cpio, as a second reader of the format")
def test_another_cpio_reads_it(tmp_path: Path) -> None:
    archive = initramfs.cpio([initramfs.directory("d"), initramfs.file("d/f", b"content", 0o755)])
    subprocess.run(["cpio", "-idm", "--quiet"], input=archive, cwd=tmp_path, check=True)
    assert (tmp_path / "d/f").read_bytes() == b"content"
    assert (tmp_path / "d/f").stat().st_mode & 0o777 == 0o755
