"""Make kernel images, modules, configurations and .deb packages for tests; read the kernel table of the testbed."""

from __future__ import annotations

import asyncio
import gzip
import lzma
import shutil
import struct
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from testbed.progress import Silent
from testbed.store.kernels import config_needs, kernel_files
from testbed.store.kernels.kernel_files import KernelFiles
from testbed.store.kernels.table import load_table

ROOT = Path(__file__).parents[2]
TABLE = load_table(ROOT / "images/kernels.yaml")

RELEASE = "6.9.0-test"
MAGIC = f"{RELEASE} SMP preempt mod_unload "
TITLE = "#\n# Automatically generated file; DO NOT EDIT.\n# Linux/x86_64 6.9.0 Kernel Configuration\n#\n"
CONFIG = "# Linux/x86_64 6.9.0 Kernel Configuration\nCONFIG_64BIT=y\n"


def bzimage(release: str = "6.9.0-test", *, size: int = 0x4000) -> bytes:
    head = bytearray(0x3000)
    head[0x1F1] = 4
    struct.pack_into("<I", head, 0x1F4, 16)
    head[0x202:0x206] = b"HdrS"
    struct.pack_into("<H", head, 0x20E, 0x2000)
    head[0x2200 : 0x2200 + len(release) + 4] = f"{release} (x".encode()
    return bytes(head).ljust(size, b"\0")[:size]


def through(program: str, *options: str) -> Callable[[bytes], bytes]:
    """Return a function that compresses with a program; skip the test if the program is not installed."""

    def compressed(data: bytes) -> bytes:
        if shutil.which(program) is None:
            pytest.skip(f"{program} is not installed")
        return subprocess.run([program, "-c", *options], input=data, capture_output=True, check=True).stdout

    return compressed


def kernel(
    payload: bytes = b"", *, config: str | None = CONFIG, magic: str = "6.9.0-test SMP preempt mod_unload "
) -> bytes:
    """Make an uncompressed kernel, as a bzImage contains it."""
    built_in = b"" if config is None else b"IKCFG_ST" + gzip.compress(config.encode()) + b"IKCFG_ED"
    banner = b"Linux version 6.9.0-test (a@b) (gcc 12) #1 SMP\0"
    return b"\x7fELF" + bytes(100) + banner + b"\0" + magic.encode() + b"\0" + built_in + payload


def whole(compressed: bytes, *, with_size: bool, release: str = "6.9.0-test") -> bytes:
    """Make a bzImage: the setup code, then the compressed kernel."""
    head = bytearray(bzimage(release, size=0x3000))
    code, at = (head[0x1F1] + 1) * 512, 0x3000
    struct.pack_into("<H", head, 0x206, 0x020F)
    size = struct.pack("<I", len(compressed)) if with_size else b""
    struct.pack_into("<II", head, 0x248, at - code, len(compressed + size))
    return bytes(head) + compressed + size + b"signature"


def config(**others: str) -> str:
    """Make a configuration with all options that guests and scenarios need; `others` override them."""
    names = {name: "y" for one in (*config_needs.GUEST, *config_needs.EVERY_SCENARIO) for name in one.options} | others
    return TITLE + "".join(
        f"CONFIG_{name}={value}\n" if value != "n" else f"# CONFIG_{name} is not set\n" for name, value in names.items()
    )


def image(text: str | None) -> bytes:
    return whole(gzip.compress(kernel(config=text, magic=MAGIC)), with_size=False)


def module(magic: str = MAGIC) -> bytes:
    return b"\x7fELF" + bytes(60) + b"\0license=GPL\0vermagic=" + magic.encode() + b"\0name=x\0"


def modules(folder: Path, *names: str, magic: str = MAGIC, suffix: str = "") -> Path:
    (folder / "kernel").mkdir(parents=True)
    pack: dict[str, Callable[[bytes], bytes]] = {
        "": bytes,
        ".gz": gzip.compress,
        ".xz": lzma.compress,
        ".zst": through("zstd", "-q"),
    }
    for name in names:
        (folder / "kernel" / f"{name}.ko{suffix}").write_bytes(pack[suffix](module(magic)))
    return folder


class Notes(Silent):
    def __init__(self) -> None:
        self.said: list[str] = []

    def note(self, text: str) -> None:
        self.said.append(text)


def fetched(spec: str | Path, root: Path, notes: Silent | None = None) -> KernelFiles:
    return asyncio.run(kernel_files.fetch(TABLE.resolve(str(spec)), root, notes or Silent()))


def deb(folder: Path, name: str, files: dict[str, bytes | str]) -> Path:
    """Build a .deb package; a file given as a string becomes a symbolic link."""
    top = folder / f"of-{name}"
    (top / "DEBIAN").mkdir(parents=True)
    (top / "DEBIAN/control").write_text(
        "Package: x\nVersion: 1\nArchitecture: amd64\nMaintainer: a <a@example.org>\nDescription: x\n"
    )
    for path, data in files.items():
        (top / path).parent.mkdir(parents=True, exist_ok=True)
        if isinstance(data, str):
            (top / path).symlink_to(data)
        else:
            (top / path).write_bytes(data)
    subprocess.run(
        ["dpkg-deb", "-b", "--root-owner-group", "-Znone", top, folder / name], check=True, capture_output=True
    )
    return folder / name
