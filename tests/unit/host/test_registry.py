"""The registry of VMs: records, names, and what killed supervisors leave."""

import stat
from dataclasses import replace

import pytest

from testbed.errors import UsageError
from testbed.host import registry
from testbed.host.paths import Folders
from tests.support.vm_records import RECORD


def test_a_folder_that_was_made_for_a_lock_is_ours_alone_once_it_is_claimed(folders: Folders) -> None:
    with registry.claim_name(folders, "g0") as folder:
        made = folder
    made.mkdir(mode=0o755)
    with registry.claim_name(folders, "g0") as folder:
        assert folder == made and stat.S_IMODE(folder.stat().st_mode) == 0o700


def test_a_record_is_there_while_its_folder_is_held_and_no_longer(folders: Folders) -> None:
    with registry.claim_name(folders, "g0") as folder:
        assert registry.list_vms(folders) == ()  # it has no record yet
        registry.write_record(folder, RECORD)
        assert registry.find_vm(folders, "g0").record == RECORD
        with pytest.raises(UsageError, match="g1: there is no such guest; there are g0"):
            registry.find_vm(folders, "g1")
        with pytest.raises(UsageError, match="end it with: testbed down g0"), registry.claim_name(folders, "g0"):
            pass
    assert registry.list_vms(folders) == ()


def test_what_a_killed_supervisor_leaves_is_removed(folders: Folders) -> None:
    (left := folders.runtime / "vms" / "g0").mkdir(parents=True)
    registry.write_record(left, RECORD)
    (network := folders.runtime / "net-1").mkdir()
    assert registry.list_vms(folders) == ()  # and takes the news of it from nobody
    assert registry.remove_dead(folders) == (RECORD,)
    assert not left.exists() and not network.exists()
    left.mkdir()
    registry.write_record(left, RECORD)
    with pytest.raises(
        UsageError, match="g0: its supervisor was killed, and the guest ended with it; its logs: /evidence"
    ):
        registry.find_vm(folders, "g0")
    assert registry.remove_dead(folders) == ()


def test_a_network_stays_while_a_guest_names_it(folders: Folders) -> None:
    (network := folders.runtime / "net-1").mkdir()
    with registry.claim_name(folders, "g0") as folder:
        registry.write_record(folder, replace(RECORD, networks=str(network)))
        registry.remove_dead(folders)
        assert network.exists()
    registry.remove_dead(folders)
    assert not network.exists()


def test_the_folder_of_guests_that_stay_is_their_users_alone(folders: Folders) -> None:
    with registry.claim_name(folders, "g0") as folder:
        assert [stat.S_IMODE(path.stat().st_mode) for path in (folder.parent, folder)] == [0o700, 0o700]
