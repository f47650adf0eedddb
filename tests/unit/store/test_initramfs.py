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
