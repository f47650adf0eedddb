"""Folders that QEMU or another user can write to."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from testbed.errors import HostError
from testbed.host import paths
from testbed.qemu import disk_files
from testbed.qemu.blockdev import Storage
from testbed.qemu.nbd_export import Export
from testbed.qemu.nbd_server.settings import Settings
from testbed.store import snapshot_files


async def test_a_link_or_pipe_in_place_of_a_disk_file_is_not_followed(tmp_path: Path) -> None:
    secret, link, pipe = tmp_path / "secret", tmp_path / "data.raw", tmp_path / "other.raw"
    secret.write_text("secret")
    link.symlink_to(secret)
    os.mkfifo(pipe)
    for planted in (link, pipe):
        with pytest.raises(HostError):
            await Export.start("data", Settings(), file=planted, log=tmp_path / "log", host=None, on_end=pytest.fail)
        with pytest.raises(HostError, match="expected a disk's file"):
            await snapshot_files.copy_disk(planted, tmp_path / "copies" / "data.raw")
    for kind in ("raw", "qcow2"):
        with pytest.raises(HostError, match="cannot be made"):
            await disk_files.make_disk_files(Storage(file=link, format=kind, size_bytes=4096))
    assert secret.read_text() == "secret" and not (tmp_path / "copies").exists()


def test_another_users_runtime_folder_is_not_used(tmp_path: Path) -> None:
    (tmp_path / "own").mkdir(mode=0o777)
    assert paths._make_private(tmp_path / "own") and stat.S_IMODE((tmp_path / "own").stat().st_mode) == 0o700
    (tmp_path / "link").symlink_to(tmp_path / "own")
    assert not paths._make_private(tmp_path / "link")
    if os.geteuid() == 0:  # only root can make one that belongs to somebody else
        os.chown(tmp_path / "own", 65534, 65534)
        assert not paths._make_private(tmp_path / "own")


def test_all_sessions_of_an_account_share_one_admission_queue(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    account = tmp_path / "account"
    for folder in (account, tmp_path / "a", tmp_path / "b"):
        folder.mkdir()
    monkeypatch.setattr(paths, "_account_runtime", lambda: account)
    monkeypatch.setattr(paths, "_LONGEST_SOCKET_FOLDER", 4096)  # pytest's folders have long names
    monkeypatch.setenv("TESTBED_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("TESTBED_STATE", str(tmp_path / "state"))
    monkeypatch.delenv("TESTBED_ADMISSION", raising=False)
    found = []
    for runtime in ("a", "b"):
        monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / runtime))
        found.append(paths.folders())
    assert [one.runtime for one in found] == [tmp_path / "a" / "testbed", tmp_path / "b" / "testbed"]
    assert {one.admission for one in found} == {account / "testbed" / "admission"}
    assert stat.S_IMODE((account / "testbed").stat().st_mode) == 0o700
    monkeypatch.setenv("TESTBED_ADMISSION", str(tmp_path / "own"))
    assert paths.folders().admission == tmp_path / "own"
