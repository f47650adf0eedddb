"""Users' kernels: a package, a bzImage, an ELF file."""

from __future__ import annotations

from pathlib import Path

from testbed.guest.debug import kallsyms
from testbed.store.kernels import debs, kernel_image
from tests.fuzz.readers import place


def package(data: bytes) -> None:
    """Read the files of a .deb, as dpkg-deb prints them: a tar."""
    path = place.file(data, "package.tar")
    with place.folder() as tree:
        debs.unpack_tar(path, tree, Path("a.deb"))


def bzimage(data: bytes) -> None:
    """Read a kernel's header and its payload, except payloads that a program of this machine decompresses (zstd, lz4,
    lzo).
    """
    path = place.file(data, "bzImage")
    header = kernel_image.read_header(path)
    kernel_image.find_config(data)
    kernel_image.find_vermagic(data, header.release)
    if header.payload is not None and data[header.payload[0] :][:4] not in _OF_PROGRAMS:
        with kernel_image.vmlinux(path) as image:
            kernel_image.find_config(image)
            kernel_image.find_vermagic(image, header.release)


_OF_PROGRAMS = (b"\x28\xb5\x2f\xfd", b"\x02\x21\x4c\x18", b"\x04\x22\x4d\x18", b"\x89LZO")


def elf(data: bytes) -> None:
    """Read the symbols of a vmlinux, and kallsyms."""
    kallsyms.make_elf(kallsyms.parse(place.text(data)))
    kallsyms.make_elf(kallsyms.read_elf(data))
