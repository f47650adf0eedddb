"""Tells the format of an image file, which a disk can be an overlay of, by its bytes: names lie (Ubuntu's cloud images
are qcow2 files called .img). Pure.

An image is used as raw or qcow2, and only if its name, or `image-format`, agrees with its bytes. A raw disk to which a
guest has written the header of a qcow2 must not be opened as one: that header could name any file of this machine as
its backing file (which is why QEMU no longer guesses formats).
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass

from testbed.units import format_size

# The parts of a file that are read: its beginning, which has everything that is checked, and its end.
HEAD_BYTES, TAIL_BYTES = 1 << 16, 512
_QCOW2 = b"QFI\xfb"
# Magic numbers: offset, bytes, and format (docs/interop of QEMU; file(1)'s magic for compressed files and archives).
_MAGIC: tuple[tuple[int, bytes, str], ...] = (
    (0, _QCOW2, "qcow2"),
    (0, b"QED\0", "qed"),
    (0, b"KDMV", "vmdk"),
    (0, b"COWD", "vmdk"),
    (0, b"# Disk DescriptorFile", "vmdk"),
    (0x40, b"\x7f\x10\xda\xbe", "vdi"),
    (0, b"vhdxfile", "vhdx"),
    (0, b"conectix", "vhd"),
    (0, b"WithoutFreeSpace", "parallels"),
    (0, b"WithouFreSpacExt", "parallels"),
    (0, b"\x3a\xff\x26\xed", "Android sparse"),
    (0, b"\x1f\x8b", "gzip"),
    (0, b"\xfd7zXZ\0", "xz"),
    (0, b"\x28\xb5\x2f\xfd", "zstd"),
    (0, b"\x04\x22\x4d\x18", "lz4"),
    (0, b"BZh", "bzip2"),
    (0, b"PK\x03\x04", "zip"),
    (0, b"7z\xbc\xaf\x27\x1c", "7z"),
    (257, b"ustar", "tar"),
)
_LAST: tuple[tuple[bytes, str], ...] = ((b"conectix", "vhd"), (b"koly", "dmg"))
# The command that unpacks a file to an image that can be used.
_UNPACK_WITH = {
    "gzip": "gunzip",
    "xz": "unxz",
    "zstd": "unzstd",
    "lz4": "unlz4",
    "bzip2": "bunzip2",
    "zip": "unzip",
    "7z": "7z x",
    "tar": "tar -x",
}
_UNPACK_WITH["Android sparse"] = "simg2img"
_CONVERT = "; convert it first: qemu-img convert -O qcow2 IMAGE NEW.qcow2"
_ENCRYPTED = {1: "AES", 2: "LUKS"}
# Incompatible features; no QEMU that we know supports others.
_DIRTY, _CORRUPT, _EXTERNAL_DATA, _COMPRESSION, _SUBCLUSTERS = (1 << bit for bit in range(5))
_KNOWN = _DIRTY | _CORRUPT | _EXTERNAL_DATA | _COMPRESSION | _SUBCLUSTERS
# Header extensions: the name of the data file, and the position of a LUKS header.
_DATA_FILE, _ENCRYPTION = 0x44415441, 0x0537BE77


@dataclass(frozen=True, slots=True, kw_only=True)
class Content:
    """A file's first HEAD_BYTES and last TAIL_BYTES, and its size."""

    head: bytes
    tail: bytes
    size_bytes: int


def kind(content: Content) -> str:
    """Return the format of the bytes, by QEMU's name; `raw` if it is no other known format."""
    if _is_vmdk_descriptor(content.head):
        return "vmdk"
    actual = next((name for place, magic, name in _MAGIC if content.head[place : place + len(magic)] == magic), None)
    return actual or next((name for magic, name in _LAST if content.tail.startswith(magic)), "raw")


def _is_vmdk_descriptor(head: bytes) -> bool:
    """Tell whether it is a VMDK's descriptor: a text that names the data files, and may begin with comments."""
    lines = [line.strip() for line in head[:4096].split(b"\n")]
    first = next((line for line in lines if line and not line.startswith(b"#")), b"")
    return first.startswith(b"version=") and any(line.startswith(b"createType=") for line in lines)


def image_mistakes(content: Content, wanted: str, demanded_by: str, disk_bytes: int) -> Iterator[str]:
    """Yield why a disk of `disk_bytes` cannot be an overlay of a file.

    `wanted`: raw or qcow2; `said_by`: what demands that format.
    """
    actual = kind(content)
    if content.size_bytes == 0:
        yield "expected the image of a disk, the file is empty"
    elif actual != wanted:
        yield f"expected {wanted}, which {demanded_by} says, got {actual} by its bytes{_advice(actual, wanted)}"
    elif wanted == "raw":
        yield from _too_large(content.size_bytes, disk_bytes)
    else:
        yield from _qcow2_mistakes(content, disk_bytes)


def _advice(actual: str, wanted: str) -> str:
    if actual == "qcow2":
        return (
            "; write image-format: qcow2, or, where these bytes are what a guest wrote to a raw disk, convert it: "
            "qemu-img convert -f raw -O qcow2 IMAGE NEW.qcow2"
        )
    if actual == "raw":
        return "; write image-format: raw"
    unpacked = _UNPACK_WITH.get(actual)
    return (
        f"; unpack it first, with {unpacked}"
        if unpacked
        else f"; convert it first: qemu-img convert -O {wanted} IMAGE NEW.{wanted}"
    )


def _too_large(size_bytes: int, disk_bytes: int) -> Iterator[str]:
    if size_bytes > disk_bytes:
        yield f"it holds {format_size(size_bytes)}, which is more than the disk's size of {format_size(disk_bytes)}"


def _qcow2_mistakes(content: Content, disk_bytes: int) -> Iterator[str]:
    """Yield the mistakes of a header (docs/interop/qcow2.txt: big-endian, 72 bytes in version 2, followed by features
    in version 3).
    """
    head = content.head
    if len(head) < 104:
        yield f"expected a qcow2, whose header has 104 bytes, got a file of {content.size_bytes}"
        return
    version, backing, backing_bytes, _, size_bytes, crypt, l1_entries, l1_place = struct.unpack_from(
        ">IQIIQIIQ", head, 4
    )
    features = struct.unpack_from(">Q", head, 72)[0] if version == 3 else 0
    if version not in (2, 3):
        yield f"expected qcow2 of version 2 or 3, got version {version}{_CONVERT}"
        return
    if l1_place + l1_entries * 8 > content.size_bytes:
        yield f"expected a whole qcow2, got {content.size_bytes} bytes of one, less than its header says"
    if backing:
        name = head[backing : backing + backing_bytes].decode(errors="replace") or "another file"
        yield (
            f"expected an image that stands alone, got one on {name}; make one of both: qemu-img convert -O qcow2 "
            "IMAGE NEW.qcow2"
        )
    extensions = _extensions(head, version)
    if external_data(head):
        yield (
            "expected an image that stands alone, got one whose data is in another file; qemu-img convert -O qcow2 "
            "IMAGE NEW.qcow2"
        )
    elif extensions is None:
        yield (
            f"expected a qcow2 whose header extensions end within {format_size(HEAD_BYTES)}, got one where they do "
            f"not{_CONVERT}"
        )
    if unknown := features & ~_KNOWN:
        yield f"expected features of qcow2 that are known (bits 0 to 4), got {unknown:#x}{_CONVERT}"
    if crypt or _ENCRYPTION in (extensions or ()):
        how = _ENCRYPTED.get(crypt, f"method {crypt}")
        yield f"expected an image that is not encrypted, got one with {how}; decrypt it first, with qemu-img convert"
    if features & _CORRUPT:
        yield "it is marked as corrupt; repair it first: qemu-img check -r all IMAGE"
    yield from _too_large(size_bytes, disk_bytes)


def external_data(head: bytes) -> bool:
    """Tell whether a file is a qcow2 whose header names, or may name, another file for the disk's data: it could be any
    file of this machine.

    QEMU checks the feature bit only; a name without the bit has no legitimate use.
    """
    if not head.startswith(_QCOW2) or len(head) < 80:
        return False
    version, features = struct.unpack_from(">I", head, 4)[0], struct.unpack_from(">Q", head, 72)[0]
    return bool(version >= 3 and features & _EXTERNAL_DATA) or _DATA_FILE in (_extensions(head, version) or ())


def _extensions(head: bytes, version: int) -> frozenset[int] | None:
    """Return the types of a qcow2's header extensions; None if they do not end within the part of the file that was
    read.
    """
    at = struct.unpack_from(">I", head, 100)[0] if version >= 3 and len(head) >= 104 else 72
    actual: set[int] = set()
    while at + 8 <= len(head):
        kind, size_bytes = struct.unpack_from(">II", head, at)
        if kind == 0:
            return frozenset(actual)
        actual.add(kind)
        at += 8 + (size_bytes + 7) // 8 * 8
    return None
