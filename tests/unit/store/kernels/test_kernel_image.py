"""What strangers' compressed files and bzImages hold, within limits."""

import bz2
import gzip
import lzma
import struct
from collections.abc import Callable
from pathlib import Path

import pytest

from testbed.errors import ToolMissing, UsageError
from testbed.host import process
from testbed.store import decompression
from testbed.store.kernels import kernel_image
from tests.support.kernel_images import CONFIG, bzimage, kernel, through, whole

TEXT = b"line\n" * 1000


COMPRESSORS: dict[str, Callable[[bytes], bytes]] = {
    "gzip": gzip.compress,
    "bzip2": bz2.compress,
    "xz": lzma.compress,
    "lzma": lambda data: lzma.compress(data, lzma.FORMAT_ALONE),
    "zstd": through("zstd", "-q"),
    "lz4": through("lz4", "-ql"),
    "lzo": through("lzop", "-q"),
}


@pytest.mark.parametrize("how", COMPRESSORS)
def test_each_format_is_known_by_its_magic_and_unpacked_within_a_limit(tmp_path: Path, how: str) -> None:
    (tmp_path / "file").write_bytes(COMPRESSORS[how](TEXT))
    assert decompression.file_compression(tmp_path / "file") == how
    assert decompression.read_decompressed(tmp_path / "file", len(TEXT)) == TEXT
    with pytest.raises(
        decompression.DecompressionError, match=r"file: expected at most 4.9K when it is unpacked, got more"
    ):
        decompression.read_decompressed(tmp_path / "file", len(TEXT) - 1)


@pytest.mark.parametrize("how", ["gzip", "bzip2", "xz", "zstd"])
def test_a_file_that_is_cut_off_is_refused(tmp_path: Path, how: str) -> None:
    (tmp_path / "file").write_bytes(COMPRESSORS[how](bytes(range(256)) * 64)[:-9])
    with pytest.raises(decompression.DecompressionError, match="file: cannot be unpacked: "):
        decompression.read_decompressed(tmp_path / "file", 1 << 20)


def test_a_bomb_takes_no_more_than_the_limit(tmp_path: Path) -> None:
    (tmp_path / "bomb").write_bytes(gzip.compress(bytes(1 << 26)))
    with (tmp_path / "bomb").open("rb") as file, pytest.raises(decompression.DecompressionError, match="at most 2M"):
        assert max(len(piece) for piece in decompression.decompress_chunks(file, "bomb", 2 << 20)) <= 1 << 20
    # A dictionary is memory that is taken before the first byte.
    greedy = bytearray(lzma.compress(TEXT, lzma.FORMAT_ALONE))
    struct.pack_into("<I", greedy, 1, 1536 << 20)
    (tmp_path / "greedy").write_bytes(greedy)
    with pytest.raises(
        decompression.DecompressionError, match="greedy: cannot be unpacked: Memory usage limit exceeded"
    ):
        decompression.read_decompressed(tmp_path / "greedy", 1 << 20)


def test_several_streams_are_one_file_and_what_is_not_compressed_is_its_own(tmp_path: Path) -> None:
    (tmp_path / "two").write_bytes(gzip.compress(b"one ") + gzip.compress(b"two") + bytes(8))
    assert decompression.read_decompressed(tmp_path / "two", 100) == b"one two"
    (tmp_path / "plain").write_bytes(TEXT)
    assert (
        decompression.file_compression(tmp_path / "plain"),
        decompression.read_decompressed(tmp_path / "plain", len(TEXT)),
    ) == (
        None,
        TEXT,
    )


def test_a_program_that_is_not_there_is_named_with_its_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "find_path", lambda tool: None)
    (tmp_path / "file").write_bytes(b"\x02\x21\x4c\x18")
    with pytest.raises(ToolMissing, match="apt-get install lz4"):
        decompression.read_decompressed(tmp_path / "file", 100)


@pytest.mark.parametrize("how", COMPRESSORS)
def test_the_kernel_and_its_configuration_are_found_in_a_bzimage(tmp_path: Path, how: str) -> None:
    (tmp_path / "bzImage").write_bytes(whole(COMPRESSORS[how](kernel()), with_size=how != "gzip"))
    with kernel_image.vmlinux(tmp_path / "bzImage") as image:
        assert image[:] == kernel()
        assert kernel_image.find_config(image) == CONFIG
        assert kernel_image.find_vermagic(image, "6.9.0-test") == "6.9.0-test SMP preempt mod_unload"
        assert kernel_image.find_vermagic(image, "6.9.0") is None


def test_what_is_not_built_in_is_not_found() -> None:
    assert kernel_image.find_config(kernel(config=None)) is None
    assert kernel_image.find_config(b"IKCFG_ST is a word of scripts") is None
    assert kernel_image.find_vermagic(kernel(magic="6.9.0-test "), "6.9.0-test") is None


@pytest.mark.parametrize(
    ("payload", "message"),
    [
        (gzip.compress(b"no kernel"), "expected a kernel in it, an ELF file"),
        (gzip.compress(kernel())[:-20], "bzImage: cannot be unpacked"),
    ],
    ids=["no ELF", "cut off"],  # of bytes with a time in them they would differ
)
def test_a_bzimage_without_a_kernel_is_refused(tmp_path: Path, payload: bytes, message: str) -> None:
    (tmp_path / "bzImage").write_bytes(whole(payload, with_size=False))
    with pytest.raises(UsageError, match=message), kernel_image.vmlinux(tmp_path / "bzImage"):
        pass


@pytest.mark.parametrize(
    ("payload", "message"), [(b"", "its header names none"), (b"NEW of 2030", "got 4e4557206f66203230")]
)
def test_an_unknown_compression_is_no_damage(tmp_path: Path, payload: bytes, message: str) -> None:
    (tmp_path / "bzImage").write_bytes(whole(payload, with_size=False))
    with pytest.raises(kernel_image.UnknownImage, match=message), kernel_image.vmlinux(tmp_path / "bzImage"):
        pass


def test_a_damaged_configuration_is_refused() -> None:
    with pytest.raises(UsageError, match="configuration that is built into a kernel cannot be read"):
        kernel_image.find_config(kernel().replace(b"IKCFG_ED", b"")[:-20])


@pytest.mark.parametrize("how", ["gzip", "xz", "zstd"])
def test_a_bzimage_that_is_compressed_once_more_is_read_and_copied_plain(tmp_path: Path, how: str) -> None:
    plain = whole(gzip.compress(kernel()), with_size=False)
    (tmp_path / "bzImage-1234.xz").write_bytes(COMPRESSORS[how](plain))
    assert kernel_image.kernel_release(tmp_path / "bzImage-1234.xz") == "6.9.0-test"
    kernel_image.write_plain(tmp_path / "bzImage-1234.xz", tmp_path / "bzImage")
    assert (tmp_path / "bzImage").read_bytes() == plain
    (tmp_path / "half.xz").write_bytes(COMPRESSORS[how](bzimage(size=0x900)))
    with pytest.raises(UsageError, match="truncated"):
        kernel_image.write_plain(tmp_path / "half.xz", tmp_path / "bzImage")


def test_a_kernel_that_only_root_may_read_gets_advice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def denied(self: Path, *arguments: object) -> None:
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "open", denied)
    with pytest.raises(
        UsageError,
        match=r"vmlinuz: only root may read it.*give a copy, which `sudo install -m 644 .*/vmlinuz \.` makes",
    ):
        kernel_image.read_header(tmp_path / "vmlinuz")
