"""QEMU's jail: its privileges, the files that it is granted, and the names of these files."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from testbed.errors import HostError
from testbed.host import process
from testbed.host.facts import Account
from testbed.qemu import jail, jail_probe, probe
from testbed.qemu.jail import Jail
from tests.support.values import may_mount, qemu

NOBODY = Account(uid=65534, gid=65534)
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")


@pytest.mark.parametrize(
    "words", [jail.command_prefix(None), process.death_signal_prefix("KILL")], ids=["held", "not held"]
)
def test_a_program_whose_parent_has_ended_is_not_started(words: tuple[str, ...], tmp_path: Path) -> None:
    program = (*words, "touch", str(tmp_path / "started"))
    # Its parent is not the testbed, as when the testbed ended before the program could ask for a death signal.
    subprocess.run(["sh", "-c", '"$@"; true', "sh", *program], check=True)
    assert not (tmp_path / "started").exists()
    subprocess.run(program, check=True)
    assert (tmp_path / "started").exists()


def status(words: tuple[str, ...]) -> dict[str, str]:
    """Return /proc/self/status of a program that is started with this command prefix."""
    said = subprocess.run([*words, "cat", "/proc/self/status"], capture_output=True, text=True, check=True).stdout
    return {key: value.strip() for key, _, value in (line.partition(":") for line in said.splitlines())}


@pytest.mark.parametrize("account", [None, pytest.param(NOBODY, marks=as_root)])
def test_a_jailed_program_has_no_privileges_and_can_gain_none(account: Account | None) -> None:
    found = status(jail.command_prefix(account))
    assert found["NoNewPrivs"] == "1"
    if account is not None:
        assert found["Uid"].split() == ["65534"] * 4 == found["Gid"].split() and found["Groups"] == ""
        assert {int(found[f"Cap{kind}"], 16) for kind in ("Inh", "Prm", "Eff", "Bnd", "Amb")} == {0}
    limits = subprocess.run(
        [*jail.command_prefix(account), "prlimit", "--raw", "--noheadings"], capture_output=True, text=True, check=True
    )
    of = {line.split()[0]: line.split()[-3:-1] for line in limits.stdout.splitlines()}
    assert of["CORE"] == ["0", "0"] and int(of["NOFILE"][1]) <= 4096


@as_root
def test_the_group_of_kvm_is_the_only_one_that_the_account_gets() -> None:
    assert status(jail.command_prefix(NOBODY, (12345,)))["Groups"] == "12345"


@pytest.mark.parametrize("account", [None, pytest.param(NOBODY, marks=as_root)])
def test_run_and_tmp_are_empty_in_a_mount_namespace(account: Account | None) -> None:
    words = jail.command_prefix(account, mount_ns=())
    tried = subprocess.run([*words, "true"], capture_output=True, text=True, check=False)
    if not may_mount():
        assert tried.returncode != 0
        pytest.skip("nobody like us may mount here, and the testbed leaves it")
    assert tried.returncode == 0, tried.stderr
    with tempfile.NamedTemporaryFile(dir="/tmp") as everybodys:
        Path(everybodys.name).chmod(0o644)
        seen = subprocess.run(
            [*words, "ls", "-A", "/run", "/tmp", "/var/tmp"], capture_output=True, text=True, check=True
        ).stdout
        written = subprocess.run([*words, "touch", "/tmp/owned"], capture_output=True, text=True, check=False).stderr
    assert seen.split() == ["/run:", "/tmp:", "/var/tmp:"] and "Read-only file system" in written
    found = status(words)
    assert found["NoNewPrivs"] == "1"
    if account is not None or os.geteuid() != 0:
        assert {int(found[f"Cap{kind}"], 16) for kind in ("Inh", "Prm", "Eff", "Bnd", "Amb")} == {0}


@pytest.mark.parametrize("account", [None, pytest.param(NOBODY, marks=as_root)])
def test_a_jailed_program_dies_with_us_under_any_account(account: Account | None, tmp_path: Path) -> None:
    script = (
        "import asyncio, os, pathlib, sys\nfrom testbed.qemu import jail; from testbed.host import process\n"
        "async def main():\n"
        f"    prefix = jail.command_prefix({account!r})\n"
        "    child = await process.start(['sleep', '1000'], output=pathlib.Path('log'), prefix=prefix)\n"
        "    while pathlib.Path(f'/proc/{child.pid}/comm').read_text() != 'sleep\\n':\n"
        "        await asyncio.sleep(0.01)\n"
        "    print(child.pid, flush=True)\n    os.kill(os.getpid(), 9)\n"
        "from testbed.host.facts import Account\nasyncio.run(main())\n"
    )
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False, cwd=tmp_path)
    assert ended.returncode == -9, ended.stderr
    gone = Path(f"/proc/{int(ended.stdout)}")
    until = time.monotonic() + 20
    while gone.exists() and (gone / "stat").read_text().split()[2] != "Z" and time.monotonic() < until:
        time.sleep(0.01)
    assert not gone.exists() or (gone / "stat").read_text().split()[2] == "Z"


def test_without_an_account_all_paths_keep_their_names(tmp_path: Path) -> None:
    own = Jail(None)
    own.grant_folders(tmp_path)
    own.grant_start_files(tmp_path / "none")
    own.grant_images([tmp_path / "none"])
    own.grant_memory(tmp_path / "memory")
    assert own.visible({"filename": f"{tmp_path}/x"}) == {"filename": f"{tmp_path}/x"}
    assert own.descriptors == () == own.options
    assert stat.S_IMODE((tmp_path / "memory").stat().st_mode) == (0o666 if os.geteuid() == 0 else 0o600)


@as_root
def test_only_granted_paths_are_renamed_to_descriptors(tmp_path: Path) -> None:
    folder, image, other = tmp_path / 'ä, "b"' / "1", tmp_path / "disk.img", tmp_path / "disk.img2"
    folder.mkdir(parents=True)
    image.write_text("image")
    other.write_text("other")
    image.chmod(0o600)
    held = Jail(NOBODY)
    held.grant_folders(folder)
    held.grant_images([image, image])
    first, second = held.descriptors
    assert held.options == (("-add-fd", f"fd={second},set=1"),)
    assert (folder.stat().st_uid, image.stat().st_uid) == (NOBODY.uid, 0), "an image stays its owner's"
    assert (
        held.visible(f"socket,path={str(folder).replace(',', ',,')}/qmp,server=on")
        == f"socket,path=/proc/self/fd/{first}/qmp,server=on"
    )
    assert held.visible(json.dumps({"filename": str(image), "folder": f"{folder}/é"})) == (
        f'{{"filename": "/dev/fdset/1", "folder": "/proc/self/fd/{first}/\\u00e9"}}'
    )
    assert held.visible([{"filename": str(image)}, (str(other), str(folder) + "0/x", 3)]) == [
        {"filename": "/dev/fdset/1"},
        (str(other), str(folder) + "0/x", 3),
    ]
    held.release()
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(first)


@as_root
def test_the_account_writes_to_memory_files_that_stay_ours(tmp_path: Path) -> None:
    private = tmp_path / "private"
    private.mkdir(mode=0o700)
    Jail(None).grant_memory(private / "memory")
    before = (private / "memory").stat()
    held = Jail(NOBODY)
    held.grant_memory(private / "memory")
    after = (private / "memory").stat()
    assert (after.st_uid, after.st_ctime_ns) == (0, before.st_ctime_ns)
    words = [*jail.command_prefix(NOBODY), *held.visible(("tee", str(private / "memory")))]
    assert (
        subprocess.run(
            words, input=b"ram", check=False, pass_fds=held.descriptors, stdout=subprocess.DEVNULL
        ).returncode
        == 0
    )
    assert (private / "memory").read_bytes() == b"ram"
    held.release()


@as_root
def test_an_account_can_use_granted_files_in_folders_that_it_cannot_enter(tmp_path: Path) -> None:
    private = tmp_path / "private"
    (private / "own").mkdir(parents=True)
    private.chmod(0o700)
    (private / "kernel").write_text("kernel")
    (private / "secret").write_text("secret")
    (private / "kernel").chmod(0o600)
    held = Jail(NOBODY)
    held.grant_folders(private / "own")
    held.grant_start_files(private / "kernel")

    def run(*words: str) -> subprocess.CompletedProcess[str]:
        own = [*jail.command_prefix(NOBODY), *held.visible(words)]
        return subprocess.run(own, capture_output=True, text=True, check=False, pass_fds=held.descriptors)

    assert run("cat", str(private / "kernel")).stdout == "kernel"
    assert (
        run("touch", str(private / "own" / "disk")).returncode == 0
        and (private / "own" / "disk").stat().st_uid == NOBODY.uid
    )
    assert run("tee", str(private / "kernel")).returncode != 0
    # Neither by its path, nor through a folder that was granted.
    assert run("cat", str(private / "secret")).returncode != 0
    assert run("cat", str(private / "own") + "/../secret").returncode != 0
    held.release()


def test_a_missing_file_cannot_be_granted(tmp_path: Path) -> None:
    with pytest.raises(HostError, match="none: cannot be opened for QEMU: No such file"):
        Jail(Account(uid=os.getuid(), gid=os.getgid())).grant_start_files(tmp_path / "none")


@pytest.mark.parametrize(("named", "uid"), [("nobody", 65534), ("4242", 4242)])
def test_the_user_of_qemu_is_given_by_name_or_number(named: str, uid: int) -> None:
    assert jail_probe._of_name(named).uid == uid


def test_an_unknown_user_is_an_error() -> None:
    with pytest.raises(HostError, match="expected a user of this machine, or a uid, got 'no such'"):
        jail_probe._of_name("no such")


def test_an_extracted_qemu_uses_the_modules_beside_it(tmp_path: Path) -> None:
    program = tmp_path / "usr" / "bin" / "qemu-system-x86_64"
    modules = tmp_path / "usr" / "lib" / "x86_64-linux-gnu" / "qemu"
    program.parent.mkdir(parents=True)
    program.touch()
    modules.mkdir(parents=True)
    assert probe._modules(program) == ""
    (modules / "hw-display-qxl.so").touch()
    assert probe._modules(program) == str(modules)
    assert qemu(modules=str(modules)).environment == {"QEMU_MODULE_DIR": str(modules)} and qemu().environment == {}


@pytest.mark.parametrize("place", ["/home/me/bin", "/home/me", "/opt", ""])
def test_a_qemu_in_a_home_folder_does_not_open_the_home(place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LD_LIBRARY_PATH", ":.:/opt/own/lib")
    given = {path for _, path in jail.landlock_rules(qemu(path=f"{place}/qemu-system-x86_64"))}
    assert {f"{place}/qemu-system-x86_64", f"{place}/pc-bios", "/usr", "/opt/own/lib"} <= given
    assert not given & {"/home/me/bin", "/home/me", "/home", "/opt", "/", "", "."}
