"""What a program can do that is confined, tried by programs that try it. Each is first tried where nothing is confined, and works."""

from __future__ import annotations

import errno
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
from tests.support.values import may_mount, qemu

PROGRAMS = (*jail.landlock_rules(qemu()), (jail_exec.RUN, sys.base_prefix))


def since(landlock: int) -> pytest.MarkDecorator:
    have = jail_exec.landlock_abi()
    return pytest.mark.skipif(
        have < landlock, reason=f"this kernel's Landlock has come to version {have}, not to {landlock}"
    )


TOUCH = shutil.which("touch") or ""
# What the programs have: calls that Python has no name for, with their errors.
TOOLS = f"""
import ctypes, os, socket
libc = ctypes.CDLL(None, use_errno=True)
parent = {os.getpid()}
def asked(result):
    if result < 0:
        raise OSError(ctypes.get_errno(), "")
"""


def tried(
    code: str, *rules: tuple[str, str], mount_ns: list[str] | None = None, confined: bool = True, cwd: str | None = None
) -> tuple[str, str]:
    """What a Python program says of what it tries, free and kept from this machine: `done`, or the error."""
    program = f"{TOOLS}try:\n    {code}\nexcept OSError as error: print(type(error).__name__)\nelse: print('done')"
    kept = jail_exec.command_prefix(sys.executable, (*PROGRAMS, *rules) if confined else None, mount_ns=mount_ns)
    before, after = (
        subprocess.run(
            [*within, sys.executable, "-I", "-S", "-c", program], capture_output=True, text=True, check=False, cwd=cwd
        )
        for within in ((), kept)
    )
    assert before.returncode == 0 == after.returncode, before.stderr + after.stderr
    return before.stdout.strip(), after.stdout.strip()


@since(jail_exec.FILES_SINCE)
def test_files_are_what_was_given_as_far_as_it_was(tmp_path: Path) -> None:
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
def test_what_it_makes_it_cannot_start(tmp_path: Path) -> None:
    (tmp_path / "program").write_text("#!/bin/sh\n")
    (tmp_path / "program").chmod(0o755)
    assert tried(f"os.posix_spawn('{tmp_path}/program', ['program'], {{}})", (jail_exec.OWN, str(tmp_path))) == (
        "done",
        "PermissionError",
    )


@since(jail_exec.PORTS_SINCE)
def test_tcp_is_listened_on_at_a_port_that_the_kernel_chooses_and_never_connected() -> None:
    listening = "with socket.create_server(('127.0.0.1', 0)) as listener:\n        "
    assert tried(listening + "assert listener.getsockname()[1]") == ("done", "done")
    assert tried(listening + "socket.create_connection(listener.getsockname())") == ("done", "PermissionError")
    fast = "caller = socket.socket(); caller.sendto(b'hello', socket.MSG_FASTOPEN, listener.getsockname())"
    assert tried(listening + fast) == ("done", "PermissionError")
    free = "port = socket.create_server(('127.0.0.1', 0)).getsockname()[1]; socket.socket().bind(('127.0.0.1', port))"
    assert tried(free) == ("done", "PermissionError")


@pytest.mark.parametrize(
    "words", ["AF_INET, SOCK_DGRAM", "AF_INET6, SOCK_STREAM", "AF_NETLINK, SOCK_RAW", "AF_INET, SOCK_STREAM, 262"]
)
def test_no_socket_but_tcp_and_this_machines_is_made(words: str) -> None:
    named = ", ".join(f"socket.{word}" if word[0] in "AS" else word for word in words.split(", "))
    free, confined = tried(f"socket.socket({named})")
    assert confined == "PermissionError"
    assert free in ("done", "OSError"), "MPTCP and IPv6 are not on every machine"


def test_sockets_of_this_machine_are_made_and_connected_to_nothing() -> None:
    assert tried("socket.socketpair()") == ("done", "done")
    assert tried("socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)") == ("done", "done")
    assert tried("socket.socketpair(socket.AF_NETLINK, socket.SOCK_RAW)") == ("OSError", "PermissionError")
    for name in ("'\\0none'", "'/run/none'"):
        assert tried(f"socket.socket(socket.AF_UNIX).connect({name})")[1] == "PermissionError"


def test_it_stays_ours_to_wait_for_and_dies_with_us() -> None:
    """Another tracer would hear of its end in our place."""
    assert tried("asked(libc.ptrace(0, 0, None, None))") == ("done", "PermissionError")
    assert tried("asked(libc.prctl(1, 0, 0, 0, 0))") == ("done", "PermissionError")
    assert tried("asked(libc.prctl(ctypes.c_ulong(1 << 32 | 1), 0, 0, 0, 0))")[1] == "PermissionError"


def test_no_memory_of_others_is_shared() -> None:
    assert tried("asked(libc.shmget(0, 4096, 0o1600))")[1] == "PermissionError"


def test_what_a_qemu_is_started_with_starts_by_this_python() -> None:
    """Which may lie where the program, once it is confined, reads nothing."""
    words = jail.command_prefix(None, rules=jail.landlock_rules(qemu()))
    done = subprocess.run([*words, "true"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_no_ring_goes_around_the_filter() -> None:
    free, confined = tried("asked(libc.syscall(425, 8, ctypes.create_string_buffer(120)))")
    assert free in ("done", "OSError", "PermissionError"), "machines may have no io_uring, or forbid it"
    assert confined == "PermissionError"


@pytest.mark.parametrize(
    "code",
    [
        "os.kill(parent, 0)",
        "os.kill(0, 0)",
        "os.kill(-1, 0)",
        "signal.pidfd_send_signal(os.pidfd_open(parent), 0)",
        "asked(libc.syscall(234, parent, parent, 0))",
        "fcntl.fcntl(socket.socketpair()[0], fcntl.F_SETOWN, parent)",
        "fcntl.fcntl(socket.socketpair()[0], 15, struct.pack('ii', 1, parent))",
        "fcntl.ioctl(socket.socketpair()[0], 0x8902, struct.pack('i', parent))",
        "fcntl.ioctl(socket.socketpair()[0], 0x8901, struct.pack('i', parent))",
    ],
)
def test_nobody_else_is_signalled(code: str) -> None:
    """Whatever Landlock this kernel has."""
    assert tried(f"import fcntl, signal, struct; {code}") == ("done", "PermissionError")
    assert tried(f"import fcntl, signal, struct; {code}".replace("parent", "os.getpid()"))[0] == "done"


def test_it_signals_itself() -> None:
    assert tried("os.kill(os.getpid(), 0); asked(libc.syscall(234, os.getpid(), os.getpid(), 0))") == ("done", "done")


@since(jail_exec.SCOPES_SINCE)
def test_nothing_is_sent_to_an_abstract_socket_of_others() -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as others:
        others.bind("")  # a name that the kernel chooses
        code = f"socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM).sendto(b'hello', {others.getsockname()!r})"
        assert tried(code) == ("done", "PermissionError")


# By their numbers on x86-64, as none of these may ever be done; each is refused before its arguments are looked at.
REFUSED = {
    "connect": 42, "io_uring_setup": 425, "inotify_add_watch": 254, "fanotify_init": 300, "symlink": 88, "symlinkat": 266, "link": 86,
    "linkat": 265, "mknod": 133, "mknodat": 259, "chmod": 90, "fchmod": 91, "fchmodat": 268, "fchmodat2": 452, "chown": 92, "fchown": 93,
    "lchown": 94, "fchownat": 260, "truncate": 76, "utime": 132, "utimes": 235, "futimesat": 261, "utimensat": 280, "file_setattr": 469,
    "setxattr": 188, "lsetxattr": 189, "fsetxattr": 190, "setxattrat": 463, "removexattr": 197, "lremovexattr": 198, "fremovexattr": 199,
    "removexattrat": 466, "ptrace": 101, "process_vm_readv": 310, "process_vm_writev": 311, "shmget": 29, "shmat": 30, "shmctl": 31,
    "msgget": 68, "semget": 64, "mq_open": 240, "mq_unlink": 241, "add_key": 248, "keyctl": 250, "request_key": 249, "ioprio_set": 251,
    "sched_setscheduler": 144, "sched_setattr": 314, "sched_setparam": 142, "sched_setaffinity": 203, "setpriority": 141, "tkill": 200,
    "pidfd_send_signal": 424, "pidfd_getfd": 438, "unshare": 272, "setns": 308, "bpf": 321, "perf_event_open": 298,
}  # fmt: skip


@pytest.mark.skipif(os.uname().machine != "x86_64", reason="the numbers are those of x86-64")
def test_what_is_never_done_is_refused_call_by_call() -> None:
    code = f"for name, number in {REFUSED}.items(): assert libc.syscall(number, -1, -1, -1, -1, -1, -1) < 0; print(name, ctypes.get_errno())"
    words = jail_exec.command_prefix(sys.executable, PROGRAMS, mount_ns=None)
    done = subprocess.run(
        [*words, sys.executable, "-I", "-S", "-c", TOOLS + code], capture_output=True, text=True, check=True
    )
    errors = dict(line.split() for line in done.stdout.splitlines())
    assert errors == dict.fromkeys(REFUSED, str(errno.EPERM))


def test_a_file_that_may_be_read_only_keeps_its_flags(tmp_path: Path) -> None:
    given = tmp_path / "given"
    given.write_text("text")
    for asked in (0x40086602, 0x401C5820, 0x40806685):
        code = f"import fcntl; fcntl.ioctl(os.open('{given}', os.O_RDONLY), {asked}, bytes(128))"
        assert tried(code, (jail_exec.READ, str(given)))[1] == "PermissionError"


def test_nobody_else_is_ended_by_a_limit_or_made_slow() -> None:
    limits = "import resource; resource.prlimit({pid}, resource.RLIMIT_CPU, (1 << 40, resource.RLIM_INFINITY))"
    with subprocess.Popen(["sleep", "100"]) as other:
        try:
            assert tried(limits.format(pid=other.pid)) == ("done", "PermissionError")
            assert tried(f"asked(libc.syscall(251, 1, {other.pid}, 3 << 13))") == ("done", "PermissionError"), (
                "ioprio_set"
            )
            slow = f"os.sched_setscheduler({other.pid}, os.SCHED_IDLE, os.sched_param(0))"
            assert tried(slow) == ("done", "PermissionError")
        finally:
            other.kill()
    assert tried(limits.format(pid=0)) == ("done", "done")


# What changes a file without writing to it, or leaves something for others to open: nothing that Landlock has rules for.
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
def test_what_is_its_own_is_written_to_and_nothing_else(code: str, tmp_path: Path) -> None:
    own = tmp_path / "own"
    own.write_text("text")
    free, confined = tried(f"file = '{own}'; new = file + str(os.getpid()); {code}", (jail_exec.OWN, str(tmp_path)))
    if free != "done":
        pytest.skip("this machine cannot do that at all")
    if code.startswith("os.mkdir") and jail_exec.landlock_abi() < jail_exec.FILES_SINCE:
        pytest.skip("this kernel's Landlock holds no files")
    assert (free, confined) == ("done", "PermissionError")


@since(jail_exec.FILES_SINCE)
def test_nobody_else_is_traced() -> None:
    """Not even one of the same user, as another guest's QEMU is."""
    with subprocess.Popen(["sleep", "100"]) as other:
        try:
            found = tried(f"asked(libc.ptrace(16, {other.pid}, None, None))")
        finally:
            other.kill()
    if found[0] != "done":
        pytest.skip("this machine lets no program trace another one that it did not start (Yama)")
    assert found == ("done", "PermissionError")


@since(jail_exec.FILES_SINCE)
def test_what_is_kept_apart_has_its_folders_and_reaches_nothing_of_others() -> None:
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
def test_what_is_kept_apart_hides_nothing_from_others(tmp_path: Path) -> None:
    """Also where mounts are passed on, as systemd has them."""
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
def test_an_older_landlock_holds_what_it_knows(abi: int, tmp_path: Path) -> None:
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


def test_what_cannot_be_confined_is_not_started(tmp_path: Path) -> None:
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
def test_what_is_not_held_is_said(landlock: int, said: str) -> None:
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
