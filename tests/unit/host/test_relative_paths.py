"""Relative paths are relative to the working directory of the command, or to the file that names them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from testbed.host import paths
from testbed.topology import load_points
from testbed.topology.load import parse_points
from tests.support.kernel_images import TABLE
from tests.support.values import host_limits

IMAGE = "version: 1\nguests: {g0: {disks: {data: {type: virtio-blk, size: 8M, image: ../images/d.img}}}}\n"


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Change to a working directory."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "here"


def test_the_image_of_a_disk_is_found_from_any_working_directory(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (here / "files").mkdir()
    (here / "images").mkdir()
    (here / "images/d.img").write_bytes(bytes(512))
    (here / "files/t.yaml").write_text(IMAGE)
    found = [
        load_points(Path("files/t.yaml"), limits=host_limits(1 << 40)),
        parse_points(IMAGE, "inline", Path("files")),
    ]
    monkeypatch.chdir("/")
    for topologies in found:
        image = topologies[""].guests["g0"].disks["data"].image
        assert image is not None and Path(image).is_absolute() and Path(image).samefile(here / "images/d.img")


def test_the_files_of_a_kernel_are_found_from_any_working_directory(here: Path) -> None:
    for name in ("bzImage", "a:b.deb", "c.deb"):
        (here / name).touch()
    (here / "m").mkdir()
    assert TABLE.absolute("bzImage:m") == f"{here}/bzImage:{here}/m"
    assert TABLE.absolute("./a:b.deb:c.deb") == f"{here}/a:b.deb:{here}/c.deb"
    for name in ("debian-6.1", "built-x", "nothing-there"):
        assert TABLE.absolute(name) == name


def test_paths_in_the_environment_are_made_absolute(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = {
        "TESTBED_CACHE": "a:b",
        "TESTBED_STATE": "../s",
        "TESTBED_ADMISSION": "q",
        "XDG_RUNTIME_DIR": "r",
        "TESTBED_QEMU": "./qemu",
    }
    for name, value in (wanted | {"PATH": "bin:/usr/bin:", "TMPDIR": ""}).items():
        monkeypatch.setenv(name, value)
    paths.resolve_environment()
    for name, value in wanted.items():
        assert os.environ[name] == os.path.normpath(here / value)
    assert (os.environ["PATH"], os.environ["TMPDIR"]) == (f"{here}/bin:/usr/bin:{here}", "")
    monkeypatch.setenv("TESTBED_QEMU", "qemu-system-x86_64")
    paths.resolve_environment()
    assert os.environ["TESTBED_QEMU"] == "qemu-system-x86_64"  # looked for in PATH


def test_folders_are_absolute_whatever_the_environment_has(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(paths, "_LONGEST_SOCKET_FOLDER", 4096)  # pytest's folders have long names
    (here / "r").mkdir()
    for name, value in {
        "TESTBED_CACHE": "c",
        "TESTBED_STATE": "s",
        "TESTBED_ADMISSION": "q",
        "XDG_RUNTIME_DIR": "r",
    }.items():
        monkeypatch.setenv(name, value)
    found = paths.folders()
    assert (found.cache, found.state, found.runtime, found.admission) == (
        here / "c",
        here / "s",
        here / "r/testbed",
        here / "q",
    )
