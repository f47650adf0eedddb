"""Archives of a guest that wants to write elsewhere, or to fill our memory."""

from __future__ import annotations

import io
import os
import stat
import subprocess
import tarfile
import tracemalloc
from pathlib import Path

import pytest

from testbed.api import vm
from testbed.errors import HostError
from testbed.store import archives


def entry(name: str, kind: bytes = tarfile.REGTYPE, link: str = "", data: bytes = b"", mode: int = 0o644) -> tuple[tarfile.TarInfo, bytes]:
    found = tarfile.TarInfo(name)
    found.type, found.linkname, found.size, found.mode = kind, link, len(data), mode
    return found, data


def archive(path: Path, *entries: tuple[tarfile.TarInfo, bytes], mode: str = "w") -> Path:
    with tarfile.open(path, mode) as tar:  # type: ignore[call-overload]  # of the three that the tests use
        for info, data in entries:
            tar.addfile(info, io.BytesIO(data))
    return path


def chain() -> list[tuple[tarfile.TarInfo, bytes]]:
    """Links whose whole path is longer than PATH_MAX, so that what checks where they lead stops too early (CVE-2025-4517)."""
    found, deep, steps = [], "", "abcdefghijklmnop"
    for step in steps:
        folder = "d" * 247
        found += [entry(f"{deep}{folder}", tarfile.DIRTYPE, mode=0o755), entry(f"{deep}{step}", tarfile.SYMTYPE, folder)]
        deep += f"{folder}/"
    short = "/".join(steps)
    return [
        *found,
        entry(f"{short}/{'l' * 254}", tarfile.SYMTYPE, "../" * len(steps)),
        entry("escape", tarfile.SYMTYPE, f"{short}/{'l' * 254}/../.."),
        entry("escape/owned", data=b"owned"),
    ]


HOSTILE = {
    "a chain of links": chain(),
    "a link out": [entry("out", tarfile.SYMTYPE, "../.."), entry("out/owned", data=b"owned")],
    "a hard link": [entry("owned", tarfile.LNKTYPE, "../../secret")],
    "a way up": [entry("../owned", data=b"owned")],
    "a path of this machine": [entry("/tmp/testbed-owned", data=b"owned")],
    "a pipe": [entry("pipe", tarfile.FIFOTYPE)],
    "a device": [entry("null", tarfile.CHRTYPE)],
}


@pytest.mark.parametrize("what", HOSTILE)
def test_nothing_of_an_archive_gets_out_of_its_folder(what: str, tmp_path: Path) -> None:
    target = tmp_path / "in" / "deep"
    (tmp_path / "secret").write_text("secret")
    with pytest.raises(HostError, match="what the guest gave cannot be unpacked: expected at most 100000 files and folders below it"):
        archives.unpack(archive(tmp_path / "tar", *HOSTILE[what]), target)
    assert not [path for path in tmp_path.rglob("*") if "owned" in path.name or path.is_symlink()]
    assert not Path("/tmp/testbed-owned").exists()


def test_a_link_that_was_there_leads_nowhere(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("secret")
    target = tmp_path / "in"
    target.mkdir()
    (target / "folder").symlink_to(tmp_path)
    (target / "file").symlink_to(tmp_path / "secret")
    for name in ("folder/secret", "file"):
        with pytest.raises(HostError, match="cannot be unpacked"):
            archives.unpack(archive(tmp_path / "tar", entry(name, data=b"owned")), target)
    assert (tmp_path / "secret").read_text() == "secret"


def test_what_is_compressed_is_not_blown_up(tmp_path: Path) -> None:
    packed = archive(tmp_path / "tar", entry("zeroes", data=bytes(20_000_000)), mode="w:gz")
    with pytest.raises(HostError, match="cannot be unpacked"):
        archives.unpack(packed, tmp_path / "in")
    assert list((tmp_path / "in").iterdir()) == []


def test_a_name_without_end_costs_no_memory(tmp_path: Path) -> None:
    header = tarfile.TarInfo("long")
    header.type, header.size = tarfile.XHDTYPE, 1 << 30
    (tmp_path / "tar").write_bytes(header.tobuf())
    os.truncate(tmp_path / "tar", (1 << 30) + 2048)
    tracemalloc.start()
    try:
        with pytest.raises(HostError, match="expected at most 16777216 bytes of one header"):
            archives.unpack(tmp_path / "tar", tmp_path / "in")
        assert tracemalloc.get_traced_memory()[1] < 32 << 20
    finally:
        tracemalloc.stop()


def test_files_and_folders_of_a_guest_come_whole_and_its_links_stay_there(tmp_path: Path) -> None:
    """Packed as in the guest."""
    source, target = tmp_path / "source", tmp_path / "target"
    (source / "sub" / "empty").mkdir(parents=True)
    (source / "sub" / ("n" * 200)).write_text("long")
    (source / "program").write_text("#!/bin/sh\n")
    (source / "program").chmod(0o4755)
    os.link(source / "program", source / "same")
    (source / "link").symlink_to("/etc/passwd")
    (source / "loop").symlink_to(".")
    subprocess.run(["sh", "-c", vm._PACK, "sh", source, tmp_path / "tar"], check=True)
    archives.unpack(tmp_path / "tar", target)
    found = {str(path.relative_to(target)): path for path in target.rglob("*")}
    assert found.keys() == {"sub", "sub/empty", f"sub/{'n' * 200}", "program", "same"}
    assert found["same"].read_text() == found["program"].read_text() == "#!/bin/sh\n"
    assert stat.S_IMODE(found["program"].stat().st_mode) & 0o7111 == 0o111 & ~_umask()


def _umask() -> int:
    old = os.umask(0)
    os.umask(old)
    return old
