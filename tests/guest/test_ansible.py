"""Ansible against a live guest: the inventory, both roles, and the playbook from a topology to its results."""

import asyncio
import json
import os
import re
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.guest.vms.test_vms import Commands, Ended
from tests.guest.vms.test_vms import testbed as testbed

ANSIBLE = Path(__file__).parents[2] / "ansible"
PROGRAMS = os.environ.get("TESTBED_ANSIBLE", "")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not PROGRAMS, reason="TESTBED_ANSIBLE names no Ansible; ./tb test installs one"),
]

TOPOLOGY = (
    "version: 1\nguests:\n  managed:\n    disks: {data: {type: virtio-blk, size: 512M}}\n"
    "    loops: {l0: {backing: data}}\n"
)


async def ansible(commands: Commands, program: str, *words: str | Path) -> Ended:
    """Run one of Ansible's programs with the inventory of only these guests."""
    here = commands.folder / "tb"
    here.write_text(f'#!/bin/sh\nexec {sys.executable} -m testbed "$@"\n')
    here.chmod(0o755)
    env = {
        **commands.env,
        "PATH": f"{PROGRAMS}:{os.environ['PATH']}",
        "TESTBED": str(here),
        "ANSIBLE_CONFIG": str(ANSIBLE / "ansible.cfg"),
        "ANSIBLE_HOME": str(commands.folder / "ansible"),
        "ANSIBLE_SSH_CONTROL_PATH_DIR": str(commands.runtime / "cp"),
    }
    child = await asyncio.create_subprocess_exec(
        f"{PROGRAMS}/{program}",
        *words,
        env=env,
        cwd=ANSIBLE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, err = await child.communicate()
    return Ended(child.returncode or 0, out.decode(), err.decode())


def recap(ended: Ended, host: str) -> dict[str, int]:
    """Return the counts of a host in a play's last line."""
    assert ended.status == 0, ended
    (line,) = re.findall(rf"^{host}\s+: (.*)$", ended.out, re.MULTILINE)
    return {word: int(number) for word, number in re.findall(r"(\w+)=(\d+)", line)}


async def test_a_guest_is_provisioned_and_the_second_time_nothing_changes(testbed: Commands) -> None:
    await testbed("up", testbed.file(TOPOLOGY), "-q")
    listed: dict[str, Any] = json.loads((await ansible(testbed, "ansible-inventory", "-i", "inventory", "--list")).out)
    known = listed["_meta"]["hostvars"]["managed"]
    assert known["testbed_disks"].keys() == {"data"} and known["testbed_loops"] == {"l0": "/dev/loop0"}
    assert listed["testbed"]["hosts"] == ["managed"] and listed["kernel_debian_6_1"]["hosts"] == ["managed"]

    suite = testbed.folder / "suite"
    suite.mkdir()
    (suite / "check").write_text("#!/bin/sh\ncat /proc/sys/kernel/ostype\n")
    (suite / "check").chmod(0o755)
    (testbed.folder / "file").write_text("of the host\n")
    given = testbed.folder / "given.yml"
    given.write_text(
        json.dumps(
            {
                "topology": str(testbed.folder / "topology.yaml"),
                "results": str(testbed.folder / "results"),
                "stay": True,
                "guest_files": [{"src": str(testbed.folder / "file"), "dest": "/root/file"}],
                "guest_modules": ["dm-crypt"],
                "guest_suites": {"own": str(suite)},
                "guest_commands": {"first": "cd own && ./check"},
            }
        )
    )
    play = ("playbooks/scenario.yml", "-e", f"@{given}")
    assert recap(await ansible(testbed, "ansible-playbook", *play), "managed")["changed"] > 0
    assert recap(await ansible(testbed, "ansible-playbook", *play), "managed")["changed"] == 0
    assert (testbed.folder / "results" / "managed" / "first.log").read_text() == "Linux\n"
    assert (
        await testbed("ssh", "managed", "--", "cat /root/file; ls -d /sys/module/dm_crypt")
    ).out == "of the host\n/sys/module/dm_crypt\n"


async def test_a_playbook_goes_from_a_topology_to_a_verdict_and_leaves_nothing(testbed: Commands) -> None:
    words = (
        "-e",
        f"topology={testbed.file(TOPOLOGY)}",
        "-e",
        "scenario=oom-tmpfs",
        "-e",
        "ignore_stack=true",
        "-e",
        f"results={testbed.folder / 'results'}",
    )
    ended = await ansible(testbed, "ansible-playbook", "playbooks/scenario.yml", *words)
    assert recap(ended, "localhost")["failed"] == 0
    results = json.loads((testbed.folder / "results" / "results.json").read_text())
    assert results["verdict"] == "PASS" and [one["name"] for one in results["scenarios"]] == ["oom-tmpfs"]
    assert await testbed.records() == []


async def test_the_role_host_can_be_tried_on_this_machine(testbed: Commands) -> None:
    play = ("playbooks/host.yml", "-c", "local", "-i", "localhost,", "--check", "-e", "ansible_become=false")
    assert recap(await ansible(testbed, "ansible-playbook", *play), "localhost")["failed"] == 0


async def test_ansible_lint_has_nothing_to_say(testbed: Commands) -> None:
    ended = await ansible(testbed, "ansible-lint", "--offline", "--strict", "--nocolor")
    assert ended.status == 0, ended
