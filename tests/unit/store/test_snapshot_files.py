"""Snapshots as folders: whole or not there, whoever is killed."""

import subprocess
import sys
from pathlib import Path

import pytest

from testbed.errors import UsageError
from testbed.store import snapshot_files

# Fills an unfinished snapshot, says so, and waits to be killed.
SAVING = """\
import sys
from pathlib import Path
from testbed.store import snapshot_files as snapshots

with snapshots.new_snapshot(snapshots.snapshot_folder(Path(sys.argv[1]), "g", "now")) as made:
    (made / "state").write_bytes(b"memory")
    print("there", flush=True)
    sys.stdin.read()
"""


def test_what_a_killed_supervisor_has_half_saved_goes_and_no_other(tmp_path: Path) -> None:
    unfinished = tmp_path / "snapshots" / "g" / ".now.unfinished" / "state"
    child = subprocess.Popen(
        [sys.executable, "-c", SAVING, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    with child:
        assert child.stdout is not None and child.stdout.readline() == b"there\n"
        assert snapshot_files.remove_unfinished(tmp_path) == () and unfinished.exists()
        child.kill()
    assert snapshot_files.list_snapshots(tmp_path) == ()
    assert snapshot_files.remove_unfinished(tmp_path) == (unfinished.parent,)
    assert list((tmp_path / "snapshots").iterdir()) == []


def test_one_that_is_saved_is_found_until_it_is_removed_with_its_guests_folder(tmp_path: Path) -> None:
    folder = snapshot_files.snapshot_folder(tmp_path, "g", "now")
    with snapshot_files.new_snapshot(folder) as made:
        snapshot_files.write_record(made, host_key=b"key", boot_s=8.5, machine="m", order={"kernel": "k"})
    assert snapshot_files.remove_unfinished(tmp_path) == ()
    found = snapshot_files.find_snapshot(tmp_path, "g", "now")
    assert (found.host_key, found.boot_s, found.machine, found.vm_spec, found.complete) == (
        b"key",
        8.5,
        "m",
        {"kernel": "k"},
        False,
    )
    with pytest.raises(ZeroDivisionError), snapshot_files.new_snapshot(folder.with_name("other")) as made:
        1 / 0  # noqa: B018 - any error
    assert [path.name for path in folder.parent.iterdir()] == ["now"]
    with pytest.raises(UsageError, match="it has now"):
        snapshot_files.find_snapshot(tmp_path, "g", "other")
    snapshot_files.remove_snapshot(found)
    assert not folder.parent.exists()
