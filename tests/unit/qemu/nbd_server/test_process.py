"""The exporting process, with QEMU's own client."""

import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.nbd_server import KIB, Process


@pytest.fixture
def exported(tmp_path: Path) -> Iterator[Process]:
    process = Process(tmp_path, cache_bytes=1 << 20, block_bytes=512, confined=True)
    yield process
    assert process.end() == 0


def qemu_io(client: socket.socket, *commands: str) -> str:
    image = f"driver=raw,file.driver=nbd,file.server.type=fd,file.server.str={client.fileno()}"
    words = ["qemu-io", "--image-opts", image, *(word for command in commands for word in ("-c", command))]
    done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=60, pass_fds=(client.fileno(),))
    return done.stdout + done.stderr


def test_qemu_reads_and_writes_an_export(exported: Process, tmp_path: Path) -> None:
    said = qemu_io(
        exported.client,
        *(
            "write -P 90 0 64k",
            "read -P 90 0 64k",
            "discard 0 4k",
            "read -P 0 0 4k",
            "write -z 8k 4k",
            "write -f -P 7 512k 512",
        ),
        *("write -P 5 700 100", "read -P 5 700 100", "read -P 90 4k 4k", "read -P 0 8k 4k"),
    )
    assert "failed" not in said and said.count("wrote ") == 4 and said.count("read ") == 5, said
    assert (tmp_path / "disk").read_bytes()[512 * KIB] == 7


def test_qemu_gets_the_faults_of_an_export(exported: Process) -> None:
    assert exported.tell(verb="faults", faults=[{"operation": "write", "effect": "ENOSPC", "count": 1}]) == {
        "number": None
    }
    said = qemu_io(exported.client, "write 0 4k", "write -P 1 0 4k")
    assert "No space left on device" in said and said.count("wrote ") == 1


def test_no_request_completes_after_a_power_cut(exported: Process, tmp_path: Path) -> None:
    before = (tmp_path / "disk").read_bytes()
    assert exported.tell(verb="lose", share=0.0, seed=1, end=True, number=7) == {"lost_blocks": 0, "number": 7}
    assert (tmp_path / "disk").read_bytes() == before


def test_a_wrong_command_of_the_owner_is_answered_with_an_error(exported: Process) -> None:
    assert "unexpected keyword" in exported.tell(verb="latency", reed_us=1)["error"]
    assert "expected a verb" in exported.tell(verb="loose")["error"]
    assert exported.tell(verb="latency", read_us=1, number=3) == {"number": 3}
