"""Makes ext4 images of folders, without mounting anything and without root."""

from __future__ import annotations

from pathlib import Path

from testbed.host import process
from testbed.units import MIB

# Without a journal, a read-only mount writes nothing, so that any number of guests can share the file. Fixed UUID and
# hash seed: the same folder gives the same image. Inode tables are written here, so that no guest starts a thread
# (ext4lazyinit) to do it.
OPTIONS = (
    "-q",
    "-F",
    "-t",
    "ext4",
    "-O",
    "^has_journal",
    "-m",
    "0",
    "-U",
    "6c6f6f70-0000-4000-8000-636772747374",
    "-E",
    "root_owner=0:0,hash_seed=6c6f6f70-0000-4000-8000-636772747374,lazy_itable_init=0",
)


async def make_ext4(folder: Path, image: Path) -> None:
    """Make an `image` that is just large enough for the files of `folder`.

    :raise HostError: no space, or mke2fs fails.
    """
    files = [path.lstat() for path in folder.rglob("*")]
    # For each file a rounding to blocks and an inode, and a tenth more for the filesystem's own tables.
    size_bytes = sum(status.st_size + 4096 + 256 for status in files) * 11 // 10 + 16 * MIB
    await process.run(["mke2fs", *OPTIONS, "-d", folder, image, f"{size_bytes // 1024}k"], timeout_s=300)
