"""Decompresses files of users, which may be hostile: in chunks, and never more than a limit.

Magic numbers tell the format. Python's own library does what it can; zstd, lz4 and lzop are programs of the host, which
read the file themselves and write into a pipe. A decompressor may use as much memory as the usual dictionaries of its
format need, and no more.
"""

from __future__ import annotations

import bz2
import lzma
import os
import subprocess
import tempfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO, Protocol

from testbed.host import process
from testbed.units import format_size

_PIECE_BYTES = 1 << 20
# `xz -9e` needs 65 MiB; a kernel with dictionaries of 128 MiB (scripts/xz_wrap.sh since 6.8) needs 129 MiB.
_MOST_MEMORY_BYTES = 256 << 20


class DecompressionError(ValueError):
    """A file is damaged, cut off, or too large when decompressed; the message begins with the name of the file."""


class _Decompressor(Protocol):
    """The interface of the decompressors of bz2 and lzma."""

    @property
    def eof(self) -> bool: ...
    @property
    def needs_input(self) -> bool: ...
    @property
    def unused_data(self) -> bytes: ...
    def decompress(self, data: bytes, max_length: int) -> bytes: ...


class _Gzip:
    """zlib's decompressor behind the interface of those of bz2 and lzma."""

    def __init__(self) -> None:
        self._zlib = zlib.decompressobj(wbits=zlib.MAX_WBITS | 16)

    @property
    def eof(self) -> bool:
        return self._zlib.eof

    @property
    def needs_input(self) -> bool:
        return not self._zlib.unconsumed_tail

    @property
    def unused_data(self) -> bytes:
        return self._zlib.unused_data

    def decompress(self, data: bytes, max_length: int) -> bytes:
        return self._zlib.decompress(self._zlib.unconsumed_tail + data, max_length)


def _lzma() -> lzma.LZMADecompressor:
    return lzma.LZMADecompressor(memlimit=_MOST_MEMORY_BYTES)


# Format, magic number, and what decompresses it. lz4 and lzop, in packages of these names, may be missing: they are not
# in `process.PACKAGES`, which `doctor` requires. The kernel's `lz4 -l` is the legacy frame; its lzo is an lzop file.
_FORMATS: tuple[tuple[str, bytes, Callable[[], _Decompressor] | tuple[str, ...]], ...] = (
    ("gzip", b"\x1f\x8b", _Gzip),
    ("bzip2", b"BZh", bz2.BZ2Decompressor),
    ("xz", b"\xfd7zXZ\0", _lzma),
    ("lzma", b"\x5d\0\0", _lzma),
    ("zstd", b"\x28\xb5\x2f\xfd", ("zstd", "-dcq")),
    ("lz4", b"\x02\x21\x4c\x18", ("lz4", "-dcq")),
    ("lz4", b"\x04\x22\x4d\x18", ("lz4", "-dcq")),
    ("lzo", b"\x89LZO\0\r\n\x1a\n", ("lzop", "-dcq")),
)
HEAD_BYTES = 9


def compression_format(head: bytes) -> str | None:
    """Return the compression format of a file that begins with `head` (at least `HEAD_BYTES`); None if uncompressed."""
    return next((name for name, magic, _ in _FORMATS if head.startswith(magic)), None)


def file_compression(path: Path) -> str | None:
    """Return the compression format of a file, None if it is not compressed.

    :raise OSError: it cannot be read.
    """
    with path.open("rb") as file:
        return compression_format(file.read(HEAD_BYTES))


def decompress_chunks(file: BinaryIO, name: str, limit_bytes: int) -> Iterator[bytes]:
    """Yield the content of a compressed file from its position to its end; of an uncompressed file its own bytes.

    `file` is a real file, with a descriptor.

    :raise DecompressionError: it is damaged, or has more than `limit_bytes`.
    :raise ToolMissing: the program that decompresses it is not installed.
    """
    start = file.tell()
    head = file.read(HEAD_BYTES)
    file.seek(start)
    decompressor = next((way for _, magic, way in _FORMATS if head.startswith(magic)), None)
    if decompressor is None:
        chunks = iter(lambda: file.read(_PIECE_BYTES), b"")
    elif isinstance(decompressor, tuple):
        chunks = _run_program(decompressor, file, name)
    else:
        chunks = _decompress(decompressor, file, name)
    yield from _limited(chunks, name, limit_bytes)


def program_output(argv: tuple[str, ...], name: str, limit_bytes: int) -> Iterator[bytes]:
    """Yield what a program writes that unpacks the file `name` itself.

    :raise DecompressionError: it fails, or writes more than `limit_bytes`. :raise ToolMissing: it is not installed.
    """
    yield from _limited(_run_program(argv, None, name), name, limit_bytes)


def _limited(chunks: Iterator[bytes], name: str, limit_bytes: int) -> Iterator[bytes]:
    total = 0
    for chunk in chunks:
        total += len(chunk)
        if total > limit_bytes:
            raise DecompressionError(
                f"{name}: expected at most {format_size(limit_bytes)} when it is unpacked, got more"
            )
        yield chunk


def _decompress(new: Callable[[], _Decompressor], file: BinaryIO, name: str) -> Iterator[bytes]:
    """Decompress all streams of a file, one after the other; ignore what follows them, as gzip does."""
    data, decompressor = file.read(_PIECE_BYTES), new()
    head = data[:2]
    try:
        while True:
            yield decompressor.decompress(data, _PIECE_BYTES)
            data = b""
            if decompressor.eof:
                data = decompressor.unused_data or file.read(_PIECE_BYTES)
                if not data.startswith(head):
                    return
                decompressor = new()
            elif decompressor.needs_input:
                data = file.read(_PIECE_BYTES)
                if not data:
                    raise EOFError("it is cut off")
    except (zlib.error, lzma.LZMAError, OSError, EOFError, ValueError) as error:
        raise DecompressionError(f"{name}: cannot be unpacked: {error}") from error


def _run_program(argv: tuple[str, ...], file: BinaryIO | None, name: str) -> Iterator[bytes]:
    if file is not None:
        os.lseek(file.fileno(), file.tell(), os.SEEK_SET)  # Python has read ahead; the program reads that itself
    words, source = [str(process.find(argv[0])), *argv[1:]], file or subprocess.DEVNULL
    with (
        tempfile.TemporaryFile() as errors,
        subprocess.Popen(words, stdin=source, stdout=subprocess.PIPE, stderr=errors) as child,  # noqa: S603 - our argv
    ):
        output = child.stdout
        assert output is not None
        try:
            yield from iter(lambda: output.read(_PIECE_BYTES), b"")
            if child.wait() != 0:
                errors.seek(0)
                reason = (
                    errors.read(1000).decode(errors="replace").strip()
                    or f"{argv[0]} ended with status {child.returncode}"
                )
                raise DecompressionError(f"{name}: cannot be unpacked: {reason}")
        finally:
            child.kill()


def read_decompressed(path: Path, limit_bytes: int) -> bytes:
    """Return the decompressed content of a file.

    :raise DecompressionError: as `decompress_chunks`. :raise OSError: it cannot be read.
    """
    with path.open("rb") as file:
        return b"".join(decompress_chunks(file, str(path), limit_bytes))


def write_decompressed(path: Path, target: Path, limit_bytes: int) -> None:
    """Write the decompressed content of a file into another file.

    :raise DecompressionError: as `decompress_chunks`. :raise OSError: the one cannot be read, or the other not written.
    """
    with path.open("rb") as file, target.open("wb") as decompressed:
        for chunk in decompress_chunks(file, str(path), limit_bytes):
            decompressed.write(chunk)
