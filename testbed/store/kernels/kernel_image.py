"""Reads a bzImage: its release, and the vmlinux inside it, which may have its configuration built in.

Sources: Documentation/arch/x86/boot.rst (setup header), arch/x86/boot/compressed/Makefile and scripts/Makefile.lib (the
payload, and the size after it), kernel/configs.c (IKCONFIG), include/linux/vermagic.h.
"""

from __future__ import annotations

import contextlib
import mmap
import re
import shlex
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from testbed.errors import UsageError
from testbed.host import tempdirs
from testbed.store import decompression
from testbed.units import format_size

# A kernel with KASAN and everything built in unpacks to some 0.4 GiB; its bzImage is smaller than that.
MOST_BYTES = 1 << 30
_HEAD_BYTES, _PIECE_BYTES = 0x10000, 1 << 20
MOST_CONFIG_BYTES = 16 << 20
# The size of a file that has all fields of the setup header that are read here, and the first version with a payload.
_FIELDS_BYTES, _PAYLOAD_VERSION = 0x250, 0x0208
_CONFIG_START, _CONFIG_END = b"IKCFG_ST", b"IKCFG_ED"


class UnknownImage(decompression.DecompressionError):
    """The kernel inside a bzImage is compressed in an unknown format."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Header:
    """The setup header of a bzImage. `release`: as of `uname -r`; `banner`: also who built it and when; `size_bytes`:
    the smallest size that it can have.

    `payload`: offset and length of the compressed kernel in bytes; None for a kernel older than Linux 2.6.26.
    """

    release: str
    banner: str
    size_bytes: int
    payload: tuple[int, int] | None


def read_header(path: Path, name: str | None = None) -> Header:
    """Read the header of a bzImage, also of a compressed one, as syzbot publishes them. `name`: what the user calls it.

    :raise UsageError: the file is not a bzImage, or cannot be read.
    """
    name = name or str(path)
    try:
        with path.open("rb") as file:
            head = b""
            for piece in decompression.decompress_chunks(file, name, MOST_BYTES):
                head += piece
                if len(head) >= _HEAD_BYTES:
                    break
        # The whole size of a compressed file is known only if it is small.
        size_bytes = (
            path.stat().st_size
            if decompression.file_compression(path) is None
            else len(head)
            if len(head) < _HEAD_BYTES
            else None
        )
    except OSError as error:
        raise unreadable_error(path, error) from error
    except decompression.DecompressionError as error:
        raise UsageError(str(error)) from error
    if len(head) < _FIELDS_BYTES or head[0x202:0x206] != b"HdrS":
        raise UsageError(
            f"{name}: expected a bzImage (`HdrS` at 0x202), found none; an ELF vmlinux does not boot here, "
            "arch/x86/boot/bzImage does"
        )
    (version, offset), (paragraphs,) = struct.unpack_from("<H6xH", head, 0x206), struct.unpack_from("<I", head, 0x1F4)
    code = ((head[0x1F1] or 4) + 1) * 512
    expected = code + paragraphs * 16
    if size_bytes is not None and size_bytes < expected:
        raise UsageError(f"{name}: truncated: its header promises {expected} bytes, the file has {size_bytes}")
    banner = head[offset + 0x200 : offset + 0x200 + 512].split(b"\0")[0].decode("ascii", "replace")
    release = banner.split(" ")[0]
    if not release or not release.isprintable() or "/" in release or release in (".", ".."):
        raise UsageError(f"{name}: expected a kernel release in its header, got {release!r}")
    at, length = struct.unpack_from("<II", head, 0x248)
    payload = (code + at, length) if version >= _PAYLOAD_VERSION and length else None
    return Header(release=release, banner=banner, size_bytes=expected, payload=payload)


def kernel_release(path: Path) -> str:
    """Return `uname -r` of a bzImage.

    :raise UsageError: the file is not a bzImage, or cannot be read.
    """
    return read_header(path).release


def write_plain(path: Path, target: Path) -> None:
    """Copy a bzImage, and decompress it if it is compressed as a whole.

    :raise UsageError: it is damaged or too large. :raise OSError: the copy cannot be written.
    """
    read_header(path)
    try:
        decompression.write_decompressed(path, target, MOST_BYTES)
    except decompression.DecompressionError as error:
        raise UsageError(str(error)) from error
    read_header(target, str(path))


@contextlib.contextmanager
def vmlinux(path: Path, name: str | None = None) -> Iterator[mmap.mmap]:
    """Unpack the vmlinux inside a plain bzImage into a temporary file, and map it for searching.

    It is an ELF file without symbols, with more data after it. `name`: what the user calls it.

    :raise UnknownImage: its compression format is unknown. :raise ToolMissing: its decompressor is not installed.
    :raise UsageError: it is damaged, or too large.
    """
    with tempdirs.temporary() as folder:
        try:
            _unpack(path, name or str(path), folder / "payload", folder / "vmlinux")
        except UnknownImage:
            raise
        except decompression.DecompressionError as error:
            raise UsageError(str(error)) from error
        with (folder / "vmlinux").open("rb") as kernel, mmap.mmap(kernel.fileno(), 0, access=mmap.ACCESS_READ) as image:
            yield image


def _unpack(path: Path, name: str, payload: Path, kernel: Path) -> None:
    """Raises as `vmlinux`, and `DecompressionError` for a damaged or too large one."""
    found = read_header(path, name).payload
    if found is None:
        raise UnknownImage(f"{name}: expected a compressed kernel in it, its header names none")
    at, length = found
    with path.open("rb") as file, payload.open("wb") as part:
        file.seek(at)
        head = file.read(decompression.HEAD_BYTES)
        file.seek(at)
        form = decompression.compression_format(head)
        if form is None:
            raise UnknownImage(
                f"{name}: expected a kernel that gzip, bzip2, lzma, xz, lzo, lz4 or zstd has compressed, "
                f"got {head.hex()}"
            )
        # In all formats but gzip, which stores it itself, four bytes with the kernel's size follow.
        left = length if form == "gzip" else length - 4
        while left > 0 and (data := file.read(min(left, _PIECE_BYTES))):
            part.write(data)
            left -= len(data)
    head = b""
    with payload.open("rb") as file, kernel.open("wb") as made:
        for piece in decompression.decompress_chunks(file, name, MOST_BYTES):
            head = head or piece[:4]
            made.write(piece)
    if head != b"\x7fELF":
        raise decompression.DecompressionError(f"{name}: expected a kernel in it, an ELF file, found none")


def find_config(image: mmap.mmap | bytes) -> str | None:
    """Return the configuration that is built into a kernel, or into its module `configs` (IKCONFIG), None if none is.

    :raise UsageError: it is damaged, or far too large.
    """
    found = re.search(re.escape(_CONFIG_START) + rb"(?=\x1f\x8b\x08)", image)
    if found is None:
        return None
    end = image.find(_CONFIG_END, found.end(), found.end() + MOST_CONFIG_BYTES)
    try:
        inflated = zlib.decompressobj(wbits=zlib.MAX_WBITS | 16)
        text = inflated.decompress(
            image[found.end() : end if end > 0 else found.end() + MOST_CONFIG_BYTES], MOST_CONFIG_BYTES
        )
        if not inflated.eof:
            raise ValueError(f"expected its end within {format_size(MOST_CONFIG_BYTES)}")
        return text.decode()
    except (zlib.error, ValueError) as error:
        raise UsageError(f"the configuration that is built into a kernel cannot be read: {error}") from error


def find_vermagic(image: mmap.mmap | bytes, release: str) -> str | None:
    """Return what a kernel compares with the vermagic of modules (`6.9.0 SMP preempt mod_unload`), None if not found.

    In vermagic only words without brackets follow the release, which distinguishes it from the banner.
    """
    found = re.search(rb"\0(" + re.escape(release.encode()) + rb"(?: [A-Za-z0-9_]{1,100}){1,30}) ?\0", image)
    return found[1].decode() if found else None


def unreadable_error(path: Path, error: OSError) -> UsageError:
    """Return the error for an unreadable file of the user's, with advice: distributions let only root read kernels."""
    if isinstance(error, PermissionError):
        copy = f"sudo install -m 644 {shlex.quote(str(path))} ."
        if path.is_dir():
            copy = f"sudo cp -r {shlex.quote(str(path))} . && sudo chown -R $USER {shlex.quote(path.name)}"
        return UsageError(f"{path}: only root may read it, as distributions have it; give a copy, which `{copy}` makes")
    return UsageError(f"{path}: cannot be read: {error.strerror}")
