"""Images below overlays: the format of their bytes, and the mistakes that `validate` reports."""

from __future__ import annotations

import asyncio
import gzip
import lzma
import os
import shutil
import struct
import subprocess
from pathlib import Path

import pytest

from testbed.errors import HostError, TopologyError
from testbed.hardware import disk_images
from testbed.qemu import blockdev, disk_files
from testbed.qemu.blockdev import Storage
from testbed.topology import load_points
from testbed.topology.disks import make_disk
from tests.support.values import host_limits

HOST_BYTES = 1 << 40
NEW = "convert it first: qemu-img convert -O raw IMAGE NEW.raw"


def qemu_img(*words: str | Path) -> None:
    subprocess.run(["qemu-img", *words], check=True, capture_output=True)


def problems(folder: Path, image: str, more: str = "", size: str = "8M") -> list[str]:
    file = folder / "t.yaml"
    file.write_text(
        f"version: 1\nguests: {{g0: {{disks: {{data: {{type: virtio-blk, size: {size}, image: {image}{more}}}}}}}}}\n"
    )
    try:
        load_points(file, limits=host_limits(HOST_BYTES))
    except TopologyError as error:
        return [f"{problem.path}: {problem.message}" for problem in error.problems]
    return []


def only_mistake(folder: Path, image: str, more: str = "", size: str = "8M") -> str:
    (mistake,) = problems(folder, image, more, size)
    assert mistake.startswith("guests.g0.disks.data.image: "), mistake
    return mistake.removeprefix("guests.g0.disks.data.image: ")


def raw(path: Path, begin: bytes = b"", size: int = 4 << 20) -> None:
    with path.open("wb") as file:
        file.write(begin)
        file.truncate(size)


def test_a_qcow2_named_img_is_not_used_as_a_raw_image(tmp_path: Path) -> None:
    qemu_img("create", "-f", "qcow2", tmp_path / "ubuntu.img", "4M")
    mistake = only_mistake(tmp_path, "ubuntu.img")
    assert mistake.startswith(
        "expected raw, which its name says, got qcow2 by its bytes; write image-format: qcow2, or, where these"
    )
    assert problems(tmp_path, "ubuntu.img", ", image-format: qcow2") == []
    (tmp_path / "ubuntu.img").rename(tmp_path / "ubuntu.qcow2")
    assert problems(tmp_path, "ubuntu.qcow2") == []
    assert only_mistake(tmp_path, "ubuntu.qcow2", ", image-format: raw").startswith(
        "expected raw, which image-format says, got qcow2"
    )


def test_a_disk_is_an_overlay_of_the_requested_format(tmp_path: Path) -> None:
    qemu_img("create", "-f", "qcow2", tmp_path / "ubuntu.img", "4M")
    file = tmp_path / "t.yaml"
    file.write_text(
        "version: 1\nguests: {g0: {disks: {data: {type: virtio-blk, size: 8M, "
        "image: ubuntu.img, image-format: qcow2}}}}\n"
    )
    disk = load_points(file, limits=host_limits(HOST_BYTES))[""].guests["g0"].disks["data"]
    assert disk.image == str(tmp_path / "ubuntu.img") and disk.image_kind == "qcow2"


def test_a_raw_image_named_qcow2_is_refused(tmp_path: Path) -> None:
    raw(tmp_path / "x.qcow2")
    assert (
        only_mistake(tmp_path, "x.qcow2")
        == "expected qcow2, which its name says, got raw by its bytes; write image-format: raw"
    )
    raw(tmp_path / "x.img")
    assert only_mistake(tmp_path, "x.img", ", image-format: qcow2").startswith(
        "expected qcow2, which image-format says, got raw"
    )
    assert problems(tmp_path, "x.img") == problems(tmp_path, "x.img", ", image-format: raw") == []


@pytest.mark.parametrize("kind", ["vmdk", "vdi", "vhdx", "vpc", "qed", "parallels"])
def test_other_formats_are_named(tmp_path: Path, kind: str) -> None:
    qemu_img("create", "-f", kind, tmp_path / "x.img", "4M")
    assert (
        only_mistake(tmp_path, "x.img", size="64M")
        == f"expected raw, which its name says, got {'vhd' if kind == 'vpc' else kind} by its bytes; {NEW}"
    )


def test_compressed_files_and_archives_are_named(tmp_path: Path) -> None:
    (tmp_path / "x.img").write_bytes(gzip.compress(bytes(4096)))
    assert (
        only_mistake(tmp_path, "x.img")
        == "expected raw, which its name says, got gzip by its bytes; unpack it first, with gunzip"
    )
    (tmp_path / "x.img").write_bytes(lzma.compress(bytes(4096)))
    assert only_mistake(tmp_path, "x.img").endswith("got xz by its bytes; unpack it first, with unxz")
    raw(tmp_path / "x.img", b"\x28\xb5\x2f\xfd")
    assert only_mistake(tmp_path, "x.img").endswith("got zstd by its bytes; unpack it first, with unzstd")
    shutil.make_archive(str(tmp_path / "a"), "tar", tmp_path, "x.img")
    (tmp_path / "a.tar").rename(tmp_path / "x.img")
    assert only_mistake(tmp_path, "x.img").endswith("got tar by its bytes; unpack it first, with tar -x")


def test_a_missing_too_large_chained_or_encrypted_image_is_a_mistake_in_the_file(tmp_path: Path) -> None:
    assert only_mistake(tmp_path, "no.img") == f"expected a file, there is no {tmp_path}/no.img"
    (tmp_path / "folder.img").mkdir()
    assert only_mistake(tmp_path, "folder.img") == f"expected a file, {tmp_path}/folder.img is none"
    (tmp_path / "loop.img").symlink_to("loop.img")
    assert "loop.img" in only_mistake(tmp_path, "loop.img")
    (tmp_path / "empty.img").touch()
    assert only_mistake(tmp_path, "empty.img") == "expected the image of a disk, the file is empty"
    raw(tmp_path / "big.img", size=16 << 20)
    assert only_mistake(tmp_path, "big.img") == "it holds 16M, which is more than the disk's size of 8M"
    qemu_img("create", "-f", "qcow2", tmp_path / "big.qcow2", "16M")
    assert only_mistake(tmp_path, "big.qcow2") == "it holds 16M, which is more than the disk's size of 8M"
    qemu_img("create", "-f", "qcow2", "-b", tmp_path / "big.qcow2", "-F", "qcow2", tmp_path / "chained.qcow2", "8M")
    assert only_mistake(tmp_path, "chained.qcow2").startswith(
        f"expected an image that stands alone, got one on {tmp_path}/big.qcow2; make one of"
    )
    qemu_img("create", "-f", "qcow2", "-o", f"data_file={tmp_path}/data.raw", tmp_path / "external.qcow2", "8M")
    assert "got one whose data is in another file" in only_mistake(tmp_path, "external.qcow2")
    qemu_img("create", "-f", "qcow2", tmp_path / "plain.qcow2", "4M")
    header = (tmp_path / "plain.qcow2").read_bytes()
    (tmp_path / "luks.qcow2").write_bytes(header[:32] + struct.pack(">I", 2) + header[36:])
    assert only_mistake(tmp_path, "luks.qcow2").startswith("expected an image that is not encrypted, got one with LUKS")
    (tmp_path / "cut.qcow2").write_bytes(header[:65536])
    assert any(
        "expected a whole qcow2, got 65536 bytes of one" in mistake for mistake in problems(tmp_path, "cut.qcow2")
    )
    (tmp_path / "cut.qcow2").write_bytes(header[:50])
    assert only_mistake(tmp_path, "cut.qcow2") == "expected a qcow2, whose header has 104 bytes, got a file of 50"
    (tmp_path / "old.qcow2").write_bytes(b"QFI\xfb" + struct.pack(">I", 1) + header[8:])
    assert "expected qcow2 of version 2 or 3, got version 1" in only_mistake(tmp_path, "old.qcow2")
    corrupt = bytearray(header)
    corrupt[79] |= 2
    (tmp_path / "corrupt.qcow2").write_bytes(corrupt)
    assert (
        only_mistake(tmp_path, "corrupt.qcow2")
        == "it is marked as corrupt; repair it first: qemu-img check -r all IMAGE"
    )


def changed(folder: Path, name: str, *patches: tuple[int, bytes]) -> None:
    """Write a qcow2 with other bytes at some offsets of its header."""
    qemu_img("create", "-f", "qcow2", folder / name, "4M")
    with (folder / name).open("r+b") as file:
        for place, data in patches:
            file.seek(place)
            file.write(data)


def test_an_image_whose_header_may_name_a_data_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(bytes(8 << 20))
    for name, option in (
        ("named", f"data_file={tmp_path}/a.raw"),
        ("raw", f"data_file={tmp_path}/b.raw,data_file_raw=on"),
    ):
        qemu_img("create", "-f", "qcow2", "-o", option, tmp_path / f"{name}.qcow2", "8M")
    qemu_img("create", "-f", "qcow2", "-o", f"extended_l2=on,data_file={tmp_path}/c.raw", tmp_path / "sub.qcow2", "8M")
    extension = struct.pack(">II", 0x44415441, 6) + b"secret\0\0" + bytes(8)
    changed(tmp_path, "bit.qcow2", (72, struct.pack(">Q", 1 << 2)))  # its name may be given to QEMU in other ways
    changed(tmp_path, "name.qcow2", (112, extension))  # without the bit
    changed(tmp_path, "old.qcow2", (4, struct.pack(">I", 2)), (72, extension))
    far = struct.pack(">II", 0x12345678, 40) + bytes(40)  # behind one that nobody knows
    changed(tmp_path, "far.qcow2", (100, struct.pack(">I", 104)), (104, far + extension))
    for name in ("named", "raw", "sub", "bit", "name", "old", "far"):
        assert "got one whose data is in another file" in "".join(problems(tmp_path, f"{name}.qcow2")), name
    changed(tmp_path, "endless.qcow2", (112, struct.pack(">II", 0x12345678, 0xFFFFFFFF)))
    assert "header extensions end within 64K" in only_mistake(tmp_path, "endless.qcow2")
    changed(tmp_path, "unknown.qcow2", (72, struct.pack(">Q", 1 << 5 | 1 << 63)))
    assert "features of qcow2 that are known (bits 0 to 4), got 0x8000000000000020" in only_mistake(
        tmp_path, "unknown.qcow2"
    )
    changed(tmp_path, "luks.qcow2", (112, struct.pack(">IIQQ", 0x0537BE77, 16, 65536, 4096) + bytes(8)))
    assert "expected an image that is not encrypted" in only_mistake(tmp_path, "luks.qcow2")


def test_features_that_name_no_other_file_are_accepted(tmp_path: Path) -> None:
    for number, options in enumerate(
        ("extended_l2=on", "compression_type=zstd", "lazy_refcounts=on", "cluster_size=2M", "cluster_size=512")
    ):
        qemu_img("create", "-f", "qcow2", "-o", options, tmp_path / f"{number}.qcow2", "4M")
        assert problems(tmp_path, f"{number}.qcow2") == [], options
    qemu_img("bitmap", "--add", tmp_path / "0.qcow2", "b")
    qemu_img("snapshot", "-c", "s", tmp_path / "0.qcow2")
    assert problems(tmp_path, "0.qcow2") == []


@pytest.mark.parametrize("name", ["x.img", "x.qcow2", "x.raw"])
def test_a_vmdk_descriptor_is_refused(tmp_path: Path, name: str) -> None:
    qemu_img("create", "-f", "vmdk", "-o", "subformat=monolithicFlat", tmp_path / "x.vmdk", "4M")
    text = (tmp_path / "x.vmdk").read_bytes()
    for number, described in enumerate((text, b"# of mine\n\n" + text, text.replace(b"# Disk DescriptorFile\n", b""))):
        (tmp_path / name).write_bytes(described)
        assert "got vmdk by its bytes" in only_mistake(tmp_path, name), number


async def test_an_overlay_is_made_without_opening_the_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """qemu-img runs unconfined as the caller, so it must not read a stranger's image."""
    monkeypatch.setattr(disk_files, "image_mistakes", lambda *_: iter(()))
    os.mkfifo(tmp_path / "x.img")
    wanted = Storage(
        file=tmp_path / "disk.qcow2", format="qcow2", size_bytes=8 << 20, image=(tmp_path / "x.img", "raw")
    )
    async with asyncio.timeout(30):
        await disk_files.make_disk_files(wanted)
    assert disk_images.kind(disk_images.Content(head=wanted.file.read_bytes(), tail=b"", size_bytes=1)) == "qcow2"


def test_the_backing_file_is_the_one_we_name_whatever_the_header_has() -> None:
    disk = make_disk(type="virtio-blk", size="8M", image="x.qcow2")
    assert blockdev.image_node("data", "qcow2", "origin-data")[
        "backing"
    ] is None and "backing" not in blockdev.image_node("d", "raw", "o")
    assert blockdev.format_node("data", disk, "qcow2", "store-data")["backing"] == "image-data"
    own = make_disk(type="virtio-blk", size="8M", format="qcow2")
    assert blockdev.format_node("data", own, "qcow2", "store-data")["backing"] is None


def test_a_disk_that_is_opened_again_must_not_name_another_file(tmp_path: Path) -> None:
    def kept(name: str) -> Storage:
        return Storage(file=tmp_path / name, format="qcow2", size_bytes=4 << 20)

    changed(tmp_path, "own.qcow2")
    disk_files.check_kept_disks(kept("own.qcow2"))
    changed(tmp_path, "bit.qcow2", (72, struct.pack(">Q", 1 << 2)))
    with pytest.raises(
        HostError, match=r"bit\.qcow2: expected a disk that stands alone, got one whose data is in another file"
    ):
        disk_files.check_kept_disks(kept("bit.qcow2"))
    (tmp_path / "link.qcow2").symlink_to("own.qcow2")
    os.mkfifo(tmp_path / "pipe.qcow2")
    for name in ("link.qcow2", "pipe.qcow2"):
        with pytest.raises(HostError, match=r"cannot be read: "):
            disk_files.check_kept_disks(kept(name))


def test_old_qcow2_and_raw_content_are_recognized(tmp_path: Path) -> None:
    qemu_img("create", "-f", "qcow2", "-o", "compat=0.10", tmp_path / "x.qcow2", "4M")
    assert problems(tmp_path, "x.qcow2") == []
    for begin in (
        b"",
        b"LUKS\xba\xbe",
        b"\xeb\x63\x90",
        b"hsqs",
        b"\x7fELF",
    ):  # what stands at the beginning of a raw disk
        content = disk_images.Content(head=begin + bytes(1000), tail=bytes(512), size_bytes=1 << 20)
        assert disk_images.kind(content) == "raw"


def test_any_header_is_checked_without_an_exception(tmp_path: Path) -> None:
    """Random headers after qcow2's magic raise no exception, and none that names another file is accepted."""
    for seed in range(2000):
        head = b"QFI\xfb" + (struct.pack(">I", 2 + seed % 2) + (seed * 2654435761 % (1 << 64)).to_bytes(8, "big") * 12)
        content = disk_images.Content(head=head, tail=head[-512:], size_bytes=len(head))
        assert list(disk_images.image_mistakes(content, "qcow2", "its name", 1 << 62)) or not any(head[8:16])


async def test_an_image_that_changed_after_its_validation_is_refused(tmp_path: Path) -> None:
    qemu_img("create", "-f", "qcow2", tmp_path / "x.img", "4M")
    wanted = Storage(
        file=tmp_path / "disk.qcow2", format="qcow2", size_bytes=8 << 20, image=(tmp_path / "x.img", "raw")
    )
    with pytest.raises(
        HostError, match=r"image .*x\.img: expected raw, which the topology says, got qcow2 by its bytes"
    ):
        await disk_files.make_disk_files(wanted)
