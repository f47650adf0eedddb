"""The ProxyCommand through which an SSH client gets a connection to a guest."""

from __future__ import annotations

import array
import contextlib
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from testbed.host import ssh_proxy


@contextlib.contextmanager
def keeper(path: Path, said: bytes, *, hands: bool = True, ends: bool = False) -> Iterator[None]:
    """Serve connections to a guest that echoes its input; `ends`: only one."""

    def serve() -> None:
        wire, _ = listening.accept()
        with wire:
            ours, theirs = socket.socketpair()
            if hands:
                socket.send_fds(wire, [said], [theirs.fileno()])
            elif said:
                wire.sendall(said)
            theirs.close()
            with ours:
                while hands and (data := ours.recv(65536)):
                    ours.sendall(data)
                    if ends:
                        break

    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(path))
        listening.listen()
        thread = threading.Thread(target=serve)
        thread.start()
        yield
        thread.join()


def words(path: Path, limit_s: float = 20) -> list[str]:
    return [sys.executable, "-I", "-S", ssh_proxy.__file__, str(path), str(limit_s)]


def test_openssh_gets_the_connection_itself(tmp_path: Path) -> None:
    """Receive what ssh expects with ProxyUseFdpass: one byte and a descriptor."""
    ours, theirs = socket.socketpair()
    with ours, keeper(tmp_path / "ssh", b"\n"):
        done = subprocess.run(
            words(tmp_path / "ssh"), stdin=theirs.fileno(), stdout=theirs.fileno(), stderr=subprocess.PIPE, check=True
        )
        theirs.close()
        data, descriptors, _, _ = socket.recv_fds(ours, 10, 2)
        assert data == b"\0" and len(descriptors) == 1 and done.stderr == b""
        with socket.socket(fileno=descriptors[0]) as guest:
            guest.sendall(b"hello")
            assert guest.recv(10) == b"hello"


def test_a_client_that_cannot_take_a_descriptor_gets_bytes(tmp_path: Path) -> None:
    sent = array.array("I", range(1 << 18)).tobytes()
    with keeper(tmp_path / "ssh", b"\n"):
        done = subprocess.run(words(tmp_path / "ssh"), input=sent, capture_output=True, check=True)
    assert done.stdout == sent and done.stderr == b""


def test_a_client_that_keeps_sending_notices_when_the_guest_closes(tmp_path: Path) -> None:
    with (
        keeper(tmp_path / "ssh", b"\n", ends=True),
        subprocess.Popen(words(tmp_path / "ssh"), stdin=subprocess.PIPE, stdout=subprocess.PIPE) as proxy,
    ):
        assert proxy.stdin is not None and proxy.stdout is not None
        proxy.stdin.write(b"once")
        proxy.stdin.flush()
        assert proxy.stdout.read() == b"once" and proxy.wait() == 0


def test_the_reason_why_the_ssh_server_does_not_answer_is_printed(tmp_path: Path) -> None:
    with keeper(tmp_path / "ssh", b"; nobody (uid 65534) holds 40 connections"):
        done = subprocess.run(words(tmp_path / "ssh"), input=b"x", capture_output=True, check=True)
    assert done.stdout == b"x" and b"nobody (uid 65534) holds 40 connections" in done.stderr


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        (b"guest g0: SSH: refused", "testbed: guest g0: SSH: refused\n"),
        (b"", "testbed: who keeps this guest went away\n"),
    ],
)
def test_a_failure_to_connect_has_a_message(said: bytes, expected: str, tmp_path: Path) -> None:
    with keeper(tmp_path / "ssh", said, hands=False):
        done = subprocess.run(words(tmp_path / "ssh"), capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (1, expected)


def test_the_wait_for_a_supervisor_that_does_not_answer_is_limited(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(tmp_path / "ssh"))
        listening.listen()
        done = subprocess.run(words(tmp_path / "ssh", 0.2), capture_output=True, text=True, check=False)
    assert done.returncode == 1 and "does not answer within" in done.stderr
    gone = subprocess.run(words(tmp_path / "none"), capture_output=True, text=True, check=False)
    assert gone.returncode == 1 and gone.stderr == "testbed: [Errno 2] No such file or directory\n"
