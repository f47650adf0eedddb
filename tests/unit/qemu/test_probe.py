"""The probe of QEMU: its answers are parsed, and a QEMU that lacks something is refused."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from testbed.errors import HostError
from testbed.host.facts import Qemu
from testbed.qemu import probe

PACKAGE = Path(probe.__file__).parents[1]
# What QEMU 7.2.22 of Debian 12 said, without the parts of its schema and of its types' properties that nobody looks at.
RECORDED = Path(__file__).parents[2] / "data" / "qemu-7.2.22.jsonl"
Answers = dict[str, Any]


def answers() -> Answers:
    return {
        message["id"]: message["return"]
        for message in map(json.loads, RECORDED.read_text().splitlines())
        if "id" in message
    }


async def asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: Answers) -> Qemu:
    """Return the probe's result for a QEMU with these answers."""
    (tmp_path / "said").write_text(
        "".join(json.dumps({"id": name, "return": value}) + "\n" for name, value in said.items())
    )
    qemu = tmp_path / "qemu"
    qemu.write_text('#!/bin/sh\ncat >/dev/null\necho "{}"\ncat "${0%/*}/said"\n')
    qemu.chmod(0o755)
    monkeypatch.setenv("TESTBED_QEMU", str(qemu))
    return await probe._find_qemu(tmp_path / "cache")


def _without_command(name: str) -> Callable[[Answers], None]:
    def change(said: Answers) -> None:
        said["query-qmp-schema"] = [entry for entry in said["query-qmp-schema"] if entry["name"] != name]

    return change


def _without_type(said: Answers) -> None:
    del said["nvme"]


async def test_the_answers_of_debians_qemu_are_parsed_and_cached(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = await asked(tmp_path, monkeypatch, answers())
    assert (found.version, found.warm_clones, found.seccomp, found.networks) == ("7.2.22", True, True, True)
    assert "nvme" in found.devices and not found.reads_memory
    (tmp_path / "said").unlink()
    assert await probe._find_qemu(tmp_path / "cache") == found


async def test_a_qemu_that_opens_memory_files_read_only_is_recognized(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = answers()
    said["memory-backend-file"].append({"name": "rom", "type": "OnOffAuto"})
    assert (await asked(tmp_path, monkeypatch, said)).reads_memory


@pytest.mark.parametrize(
    ("change", "missing"),
    [
        (_without_command("blockdev-reopen"), "QMP command blockdev-reopen"),
        (_without_command("set-action"), "QMP command set-action"),
        (_without_type, "nvme"),
    ],
)
async def test_a_qemu_that_lacks_a_device_or_command_is_refused_with_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: Callable[[Answers], None], missing: str
) -> None:
    said = answers()
    change(said)
    with pytest.raises(
        HostError,
        match=f"QEMU 7.2.22 has no {missing}; install qemu-system-x86, or name another with --qemu or TESTBED_QEMU",
    ):
        await asked(tmp_path, monkeypatch, said)


async def test_optional_abilities_of_a_qemu_are_recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said = answers()
    said["query-command-line-options"] = [
        one for one in said["query-command-line-options"] if one["option"] != "sandbox"
    ]
    said["query-migrate-capabilities"] = []
    for entry in said["query-qmp-schema"]:
        if "dgram" in entry.get("values", ()):
            entry["values"].remove("dgram")
    found = await asked(tmp_path, monkeypatch, said)
    assert (found.warm_clones, found.seccomp, found.networks) == (False, False, False)
    assert found.why_not_warm == "its migration has no capability x-ignore-shared"


async def test_a_program_that_is_not_qemu_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(HostError, match="expected a QEMU, which answers on QMP"):
        await asked(tmp_path, monkeypatch, {})


def test_the_probe_checks_every_qmp_command_that_the_testbed_uses() -> None:
    used = {
        name
        for path in PACKAGE.rglob("*.py")
        for name in re.findall(r'(?:\bexecute=|\bexecute\(|poller\.ask\()\s*"([a-z_-]+)"', path.read_text())
    }
    assert {"blockdev-add", "set-action", "block-latency-histogram-set"} <= used
    assert used <= set(probe._COMMANDS)
