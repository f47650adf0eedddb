"""Confinement by `jail_exec.py`: files, mount namespaces, older kernels."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import tempfile
import textwrap
from dataclasses import replace
from pathlib import Path

import pytest

from testbed.host.facts import JailSupport
from testbed.qemu import jail, jail_exec
from tests.support.confined import PROGRAMS, TOUCH, since, tried
from tests.support.values import may_mount, qemu


@since(jail_exec.FILES_SINCE)
def test_only_granted_files_are_accessible_and_only_as_granted(tmp_path: Path) -> None:
    for name in ("own", "other"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text("text")
    own, given, other = tmp_path / "own", tmp_path / "other" / "file", tmp_path / "secret"
    other.write_text("text")
    rules = ((jail_exec.OWN, str(own)), (jail_exec.READ, str(given)), (jail_exec.READ, str(tmp_path / "none")))
    assert tried(
        f"open('{own}/new', 'w'); os.rename('{own}/new', '{own}/newer'); os.unlink('{own}/newer')", *rules
    ) == ("done", "done")
    assert tried(f"socket.socket(socket.AF_UNIX).bind('{own}/' + str(os.getpid()))", *rules) == ("done", "done")
    assert tried(f"open('{given}')", *rules) == ("done", "done")
    assert tried(f"open('{given}', 'r+')", *rules) == ("done", "PermissionError")
    assert tried(f"open('{given}', 'r+')", (jail_exec.WRITE, str(given))) == ("done", "done")
    # By its name, by way of what it has, and by a link that is there.
    (own / "link").symlink_to(other)
    for name in (str(other), f"{own}/../secret", f"{own}/link"):
        assert tried(f"open('{name}')", *rules) == ("done", "PermissionError")
    assert tried(f"os.listdir('{tmp_path}')", *rules) == ("done", "PermissionError")
    assert tried(f"open('{tmp_path}/made', 'w')", *rules) == ("done", "PermissionError")


@since(jail_exec.FILES_SINCE)
def test_a_program_cannot_execute_a_file_that_it_made(tmp_path: Path) -> None:
    (tmp_path / "program").write_text("#!/bin/sh\n")
    (tmp_path / "program").chmod(0o755)
    assert tried(f"os.posix_spawn('{tmp_path}/program', ['program'], {{}})", (jail_exec.OWN, str(tmp_path))) == (
        "done",
        "PermissionError",
    )


def test_a_confined_program_stays_our_child_and_dies_with_us() -> None:
    """Another tracer would be notified of its end instead of us."""
    assert tried("asked(libc.ptrace(0, 0, None, None))") == ("done", "PermissionError")
    assert tried("asked(libc.prctl(1, 0, 0, 0, 0))") == ("done", "PermissionError")
    assert tried("asked(libc.prctl(ctypes.c_ulong(1 << 32 | 1), 0, 0, 0, 0))")[1] == "PermissionError"


def test_the_wrappers_of_qemu_can_be_executed() -> None:
    """Python may lie in a folder that the confined program cannot read."""
    words = jail.command_prefix(None, rules=jail.landlock_rules(qemu()))
    done = subprocess.run([*words, "true"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_the_flags_of_a_read_only_file_cannot_be_changed(tmp_path: Path) -> None:
    given = tmp_path / "given"
    given.write_text("text")
    for asked in (0x40086602, 0x401C5820, 0x40806685):
        code = f"import fcntl; fcntl.ioctl(os.open('{given}', os.O_RDONLY), {asked}, bytes(128))"
        assert tried(code, (jail_exec.READ, str(given)))[1] == "PermissionError"


# What changes a file without writing to it, or leaves something for others to open: nothing that Landlock has rules
# for.
@pytest.mark.parametrize(
    "code",
    [
        "os.chmod(file, 0o644)",
        "os.fchmod(os.open(file, os.O_RDONLY), 0o4755)",
        "os.chown(file, os.getuid(), os.getgid())",
        "os.truncate(file, 0)",
        "os.utime(file)",
        "os.setxattr(file, 'user.own', b'text')",
        "os.symlink('/etc/shadow', new)",
        "os.link(file, new)",
        "os.mkfifo(new)",
        "os.mkdir(new)",
        "asked(libc.inotify_add_watch(libc.inotify_init(), file.encode(), 2))",
        "asked(libc.syscall(248, b'user', b'name', b'text', 4, -2))",
    ],
)
def test_only_its_own_files_are_changed_and_only_by_writing(code: str, tmp_path: Path) -> None:
    own = tmp_path / "own"
    own.write_text("text")
    free, confined = tried(f"file = '{own}'; new = file + str(os.getpid()); {code}", (jail_exec.OWN, str(tmp_path)))
    if free != "done":
        pytest.skip("this machine cannot do that at all")
    if code.startswith("os.mkdir") and jail_exec.landlock_abi() < jail_exec.FILES_SINCE:
        pytest.skip("this kernel's Landlock holds no files")
    assert (free, confined) == ("done", "PermissionError")


@since(jail_exec.FILES_SINCE)
def test_a_mount_namespace_has_only_the_granted_folders() -> None:
    with (
        tempfile.TemporaryDirectory(dir="/tmp") as everybodys,
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as others,
    ):
        own, path = f"{everybodys}/own", f"{everybodys}/others"
        Path(own).mkdir()
        others.bind(path)
        if not may_mount():
            pytest.skip("nobody like us may mount here")
        if Path(sys.executable).resolve().is_relative_to("/tmp") or sys.executable.startswith("/tmp/"):
            pytest.skip("this Python would be hidden")
        rules = ((jail_exec.OWN, own), (jail_exec.OWN, jail_exec.mounted_name(0)), (jail_exec.READ, everybodys))

        def sent(name: str, cwd: str | None = None) -> tuple[str, str]:
            return tried(
                f"socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM).sendto(b'hello', '{name}')",
                *rules,
                mount_ns=[own],
                cwd=cwd,
            )

        assert sent(path) == ("done", "FileNotFoundError")
        # By way of what it has, of where it is, and of who started it.
        assert sent(f"{jail_exec.mounted_name(0)}/../others")[1] == "FileNotFoundError"
        assert sent("others", cwd=everybodys) == ("done", "FileNotFoundError")
        assert sent(f"/proc/{os.getpid()}/root{path}") == ("done", "PermissionError")
        making = f"open(('{own}' if os.path.exists('{own}') else '{jail_exec.mounted_name(0)}') + '/made', 'w')"
        assert tried(making, *rules, mount_ns=[own]) == ("done", "done")
        shared, own_ipc = tried("print(os.readlink('/proc/self/ns/ipc'))", mount_ns=[own], confined=False)
        assert shared != own_ipc
        for folder in ("/run", "/tmp", "/var/tmp"):
            making = f"os.mkdir('{folder}/{os.getpid()}'); os.rmdir('{folder}/{os.getpid()}')"
            # Whether anything else holds it or not: for root it is read-only, in a namespace of users nobody's.
            assert tried(making, mount_ns=[own], confined=False)[1] in ("OSError", "PermissionError")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root's mounts could reach anybody else")
def test_a_mount_namespace_hides_nothing_from_other_processes(tmp_path: Path) -> None:
    """This also holds where mounts are shared, as under systemd."""
    words = jail_exec.command_prefix(sys.executable, None, mount_ns=[str(tmp_path)])
    shared = [
        "unshare",
        "--mount",
        "--propagation",
        "shared",
        "sh",
        "-c",
        '"$@" && grep -c " /tmp .*tmpfs none" /proc/self/mountinfo',
        "sh",
    ]
    done = subprocess.run([*shared, *words, shutil.which("true") or ""], capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == ("0\n", "")


@pytest.mark.parametrize("abi", range(1, jail_exec.landlock_abi() + 1))
def test_older_landlock_versions_enforce_what_they_support(abi: int, tmp_path: Path) -> None:
    script = Path(jail_exec.__file__).read_text()
    assert script.count("abi = landlock_abi()") == 1
    (tmp_path / "confine.py").write_text(script.replace("abi = landlock_abi()", f"abi = {abi}"))
    (tmp_path / "secret").touch()
    code = """
        import socket, sys
        port = socket.create_server(("127.0.0.1", 0)).getsockname()[1]
        for tried in (lambda: open(sys.argv[1]), lambda: socket.socket().bind(("127.0.0.1", port))):
            try:
                tried()
            except PermissionError:
                print("held")
            else:
                print("free")
    """
    program = [sys.executable, "-I", "-S", "-c", textwrap.dedent(code), str(tmp_path / "secret")]
    words = [
        sys.executable,
        "-I",
        "-S",
        str(tmp_path / "confine.py"),
        *jail_exec.command_prefix("", PROGRAMS, mount_ns=None)[4:],
        *program,
    ]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.stdout.split() == ["held", "held" if abi >= jail_exec.PORTS_SINCE else "free"], done.stderr


def test_a_program_that_cannot_be_confined_is_not_started(tmp_path: Path) -> None:
    script = Path(jail_exec.__file__).read_text().replace("libseccomp.so.2", "libnone.so.2")
    (tmp_path / "confine.py").write_text(script)
    asked = jail_exec.command_prefix("", [], mount_ns=None)[4:]
    words = [sys.executable, "-I", "-S", str(tmp_path / "confine.py"), *asked, TOUCH, str(tmp_path / "started")]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert (
        done.returncode == 1
        and done.stderr.startswith("cannot be kept from this machine: libnone.so.2:")
        and not (tmp_path / "started").exists()
    )


@pytest.mark.parametrize(
    ("landlock", "said"), [(0, "listen"), (1, "listen"), (3, "listen"), (4, "send"), (5, "send"), (6, "")]
)
def test_missing_confinement_is_reported(landlock: int, said: str) -> None:
    together_with_others = JailSupport(confined=True, landlock_abi=landlock, mount_ns=True, why_no_net_ns="no networks")
    left = [text for text in jail.unconfined_parts(together_with_others) if not text.startswith("open files:")]
    assert [text[: len(said)] for text in left] == ([said] if said else []) and all(
        text.endswith(": no networks") for text in left
    )
    files = ["open files: this kernel's Landlock is absent or switched off"] if landlock == 0 else []
    assert list(jail.unconfined_parts(replace(together_with_others, net_ns=True))) == files, (
        "a network of its own holds the others"
    )
    assert jail.open_to_other_users(together_with_others).endswith("keep them from answering: no networks")
    assert jail.open_to_other_users(replace(together_with_others, net_ns=True)) == ""
    together = jail.unconfined_parts(
        JailSupport(confined=True, landlock_abi=landlock, why_no_mount_ns="no mounts", net_ns=True)
    )
    assert together[-1] == "look into /run and /tmp, and send to sockets there: no mounts"
    assert jail.unconfined_parts(JailSupport(why_unconfined="no libseccomp", landlock_abi=landlock))[0].endswith(
        "no libseccomp"
    )
