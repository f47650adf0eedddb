"""Other users' processes that hold connections to a port of this machine, or a lock."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import pytest

from testbed.host import other_users
from testbed.host.other_users import PeerConnection

TABLE = """\
  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 0100007F:8B79 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 4001 1 0000000000000000 100 0 0 10 0
   1: 0100007F:D2A0 0100007F:8B79 01 00000000:00000000 00:00000000 00000000 65534        0 4002 1 0000000000000000 20 0 0 10 -1
   2: 0100007F:8B79 0100007F:D2A0 01 00000000:00000000 00:00000000 00000000     0        0 4003 1 0000000000000000 20 0 0 10 -1
   3: 0100007F:D2A2 0100007F:8B79 02 00000000:00000000 00:00000000 00000000  1000        0 4004 1 0000000000000000 20 0 0 10 -1
   4: 0200007F:D2A4 0200007F:8B79 01 00000000:00000000 00:00000000 00000000  1000        0 4005 1 0000000000000000 20 0 0 10 -1
   5: 0100007F:D2A8 0100007F:8B79 06 00000000:00000000 03:000009B0 00000000     0        0 0 3 0000000000000000
   6: damaged
"""  # noqa: E501 - a recorded table
TABLE_6 = """\
   0: 0000000000000000FFFF00000100007F:D2A6 0000000000000000FFFF00000100007F:8B79 01 0:0 00:0 0  1001        0 4006 1
"""


@pytest.mark.skipif(sys.byteorder != "little", reason="the table of a little-endian machine")
def test_connections_are_parsed_from_the_kernels_tables() -> None:
    assert other_users.parse_connections(TABLE.splitlines(), 0x8B79) == (
        PeerConnection(uid=65534, inode=4002),
        PeerConnection(uid=1000, inode=4004),
    )
    assert other_users.parse_connections(TABLE_6.splitlines(), 0x8B79) == (PeerConnection(uid=1001, inode=4006),)
    assert other_users.parse_connections(TABLE.splitlines(), 0x8B7A) == ()


@contextlib.contextmanager
def holding(address: str, count: int, *, uid: int) -> Iterator[tuple[int, int]]:
    """Yield a listening port, and the process of another user that holds connections to it."""
    code = (
        "import os, socket, sys, time\nos.setuid(int(sys.argv[3])) if os.geteuid() == 0 else None\n"
        "held = [socket.create_connection((sys.argv[4], int(sys.argv[1]))) for _ in range(int(sys.argv[2]))]\n"
        "print('there', flush=True)\nsys.stdin.read()\n"
    )
    with socket.create_server(("127.0.0.1", 0), backlog=100) as server:
        port = server.getsockname()[1]
        words = [
            "/usr/bin/python3" if uid else sys.executable,
            "-I",
            "-S",
            "-c",
            code,
            str(port),
            str(count),
            str(uid),
            address,
        ]
        with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
            assert other.stdout is not None and other.stdout.readline() == "there\n"
            yield port, other.pid


# Makes its command line as long as requested: prctl(PR_SET_MM, PR_SET_MM_MAP, a struct prctl_mm_map, its size), which
# needs no privilege.
_LONG_COMMAND = """
import ctypes, mmap, struct, sys
libc = ctypes.CDLL(None, use_errno=True)
libc.sbrk.restype = ctypes.c_void_p
libc.prctl.argtypes = [ctypes.c_int, *[ctypes.c_ulong] * 4]
size = int(sys.argv[1])
words = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
begin = ctypes.addressof(ctypes.c_char.from_buffer(words))
stat = open("/proc/self/stat").read().rpartition(")")[2].split()
numbers = (26, 27, 28, 45, 46, 47, 50, 51)
code, code_end, stack, data, data_end, heap, environ, environ_end = (int(stat[number - 3]) for number in numbers)
places = (code, code_end, data, data_end, heap, libc.sbrk(0), stack, begin, begin + size, environ, environ_end)
given = ctypes.create_string_buffer(struct.pack("11QQIi", *places, 0, 0, -1))
failed = libc.prctl(35, 14, ctypes.addressof(given), 104, 0)
print("failed" if failed else "there", flush=True)
sys.stdin.read()
"""


def test_a_huge_command_line_of_another_process_costs_no_memory() -> None:
    size_bytes = 64 << 20
    words = [sys.executable, "-I", "-S", "-c", _LONG_COMMAND, str(size_bytes)]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        if other.stdout.readline() != "there\n":
            pytest.skip("this kernel lets no process say where its command line is")
        tracemalloc.start()
        try:
            said = other_users.describe_process(other.pid)
            _, most_bytes = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        other.communicate("")
    assert f"pid {other.pid} of" in said and most_bytes < size_bytes // 8


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be another user")
@pytest.mark.parametrize("address", ["127.0.0.1", "::ffff:127.0.0.1"])
def test_another_user_who_holds_connections_is_named(address: str) -> None:
    with holding(address, 40, uid=65534) as (port, pid):
        said = other_users.describe_connections(port)
    assert said.startswith(
        f"; nobody (uid 65534) holds 40 connections to 127.0.0.1:{port} (pid {pid} of nobody (uid 65534), since 20"
    )
    assert ": /usr/bin/python3 -I -S " in said


def test_our_own_connections_are_not_reported() -> None:
    with holding("127.0.0.1", 2, uid=0) as (port, _):
        assert other_users.describe_connections(port) == ""


LOCKS = """\
1: FLOCK  ADVISORY  WRITE 1234 fe:00:42 0 EOF
1: -> FLOCK  ADVISORY  WRITE 1235 fe:00:42 0 EOF
2: POSIX  ADVISORY  READ 1236 fe:00:42 0 EOF
3: FLOCK  ADVISORY  WRITE 1237 00:2f:42 0 EOF
"""


def test_holders_of_a_lock_are_parsed_from_the_kernels_table_without_waiters() -> None:
    assert other_users.lock_holders(LOCKS.splitlines(), 0xFE, 0, 42) == (1234,)
    assert other_users.lock_holders(LOCKS.splitlines(), 0, 0x2F, 42) == (1237,)
    assert other_users.lock_holders(LOCKS.splitlines(), 0xFE, 0, 43) == ()


def test_a_process_that_inherited_a_lock_counts_as_its_holder(tmp_path: Path) -> None:
    """Takes the lock as `flock 9` does in a shell: the program that took it has ended.

    A process with the file open, but without the lock, is not named.
    """
    script = 'exec 9>>"$0"; flock 9; echo there; read -r _'
    with (
        (tmp_path / "lock").open("a"),
        subprocess.Popen(
            ["sh", "-c", script, tmp_path / "lock"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        ) as shell,
    ):
        assert shell.stdout is not None and shell.stdout.readline() == "there\n"
        assert other_users.lock_holder(tmp_path / "lock").startswith(f"pid {shell.pid} of ")
    assert (
        other_users.lock_holder(tmp_path / "lock")
        == "a process that /proc does not show"
        == other_users.lock_holder(tmp_path / "none")
    )


def test_names_of_processes_contain_no_control_characters() -> None:
    code = "import sys; print('there', flush=True); sys.stdin.read()"
    with subprocess.Popen(
        ["\033[2Jevil", "-c", code], executable=sys.executable, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout is not None and other.stdout.readline() == "there\n"
        said = other_users.describe_process(other.pid)
    assert "evil" in said and "\033" not in said
    assert other_users.describe_process(2**22 + 1) == f"pid {2**22 + 1}"
