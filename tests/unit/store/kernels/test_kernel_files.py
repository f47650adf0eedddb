"""The files of a user's kernel: how they are named, read and copied."""

from __future__ import annotations

import gzip
import lzma
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from testbed.cli import _refused
from testbed.errors import HostError, UsageError
from testbed.store.kernels.table import LocalKernel, short_name, split_files
from tests.support.kernel_images import (
    RELEASE,
    TABLE,
    config,
    fetched,
    image,
    kernel,
    modules,
    whole,
)

pytestmark = pytest.mark.usefixtures("no_disk")


@pytest.fixture
def unprivileged() -> Iterator[None]:
    """Run the test as a user other than root."""
    if os.geteuid() != 0:
        yield
        return
    os.setegid(65534)
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)
        os.setegid(0)


def test_a_bzimage_of_syzbot_is_unpacked(given: Path, tmp_path: Path) -> None:
    (given / "bzImage-1a2b3c4d.xz").write_bytes(lzma.compress((given / "bzImage").read_bytes()))
    found = fetched(given / "bzImage-1a2b3c4d.xz", tmp_path)
    assert found.bzimage.read_bytes() == (given / "bzImage").read_bytes() and found.release == RELEASE


def test_a_damaged_kernel_is_named_as_its_user_calls_it(given: Path, tmp_path: Path) -> None:
    (given / "bzImage").write_bytes(whole(gzip.compress(kernel())[:-20], with_size=False))
    with pytest.raises(UsageError, match=rf"^{given}/bzImage: cannot be unpacked"):
        fetched(given / "bzImage", tmp_path)


def test_a_kernel_only_root_may_read_gets_advice_that_helps(unprivileged: None) -> None:
    del unprivileged
    folder = Path(subprocess.run(["mktemp", "-d"], capture_output=True, text=True, check=True).stdout.strip())
    try:
        (folder / "vmlinuz-6.9").write_bytes(image(config()))
        (folder / "vmlinuz-6.9").chmod(0)
        with pytest.raises(
            UsageError,
            match=(
                r"vmlinuz-6\.9: only root may read it.*give a copy, "
                r"which `sudo install -m 644 .*vmlinuz-6\.9 \.` makes"
            ),
        ):
            fetched(folder / "vmlinuz-6.9", folder)
        (folder / "vmlinuz-6.9").chmod(0o644)
        modules(folder / "m", "loop")
        (folder / "m").chmod(0)
        with pytest.raises(
            UsageError, match=r"m: only root may read it.* `sudo cp -r .*/m \. && sudo chown -R \$USER m` makes"
        ):
            fetched(f"{folder}/vmlinuz-6.9:{folder}/m", folder)
        with pytest.raises(UsageError, match=r"m/loop: Permission denied; give a path that this user may read"):
            TABLE.resolve(f"{folder}/m/loop")
    finally:
        (folder / "m").chmod(0o755)
        shutil.rmtree(folder)


def test_a_file_that_may_not_be_read_is_not_said_to_be_the_caches() -> None:
    refused = _refused(PermissionError(13, "Permission denied", "/boot/vmlinuz"))
    assert isinstance(
        refused, HostError
    ) and "/boot/vmlinuz: Permission denied; if it is the testbed's own, name other places" in str(refused)


def test_paths_with_colons_are_paths(given: Path) -> None:
    odd = given / "a:b"
    odd.mkdir()
    for name in ("bzImage", "bz:Image", "x.deb", "y:z.deb"):
        (odd / name).touch()
    (odd / "m:n").mkdir()
    (odd / "m").mkdir()

    def of(spec: str) -> tuple[str, ...]:
        found = TABLE.resolve(spec)
        assert isinstance(found, LocalKernel)
        return tuple(str(path.relative_to(odd)) for path in (*found.debs, found.bzimage, found.modules) if path)

    assert of(f"{odd}/bzImage") == ("bzImage",)
    assert of(f"{odd}/bz:Image") == ("bz:Image",)
    assert of(f"{odd}/bz:Image:{odd}/m:n") == ("bz:Image", "m:n")
    assert of(f"{odd}/bzImage:{odd}/m") == ("bzImage", "m")
    assert of(f"{odd}/x.deb:{odd}/y:z.deb") == ("x.deb", "y:z.deb")
    assert (short_name(f"{odd}/bz:Image:{odd}/m"), short_name("debian-6.1"), split_files("debian-6.1")) == (
        "bz:Image",
        "debian-6.1",
        None,
    )
    for spec, said in (
        (f"{odd}/bzImage:", "bzImage is there, '' is not"),
        (f"{odd}/bzImage:none", "bzImage is there, 'none' is not"),
    ):
        with pytest.raises(UsageError, match=said):
            TABLE.resolve(spec)


@pytest.mark.parametrize("spec", ["/dev/zero", "/dev/zero:/tmp", "{pipe}", "{pipe}.deb"])
def test_what_is_no_file_is_not_read(tmp_path: Path, spec: str) -> None:
    for name in ("pipe", "pipe.deb"):
        os.mkfifo(tmp_path / name)
    with pytest.raises(
        UsageError, match=r"expected BZIMAGE\[:MODULES_FOLDER\] or FILE\.deb\[:FILE\.deb\], got what is no file: "
    ):
        fetched(spec.format(pipe=tmp_path / "pipe"), tmp_path)
