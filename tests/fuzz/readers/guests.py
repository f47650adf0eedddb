"""Data from a guest: console and log, agent, kernel files, output of programs and suites, and folders that are copied
out.
"""

from __future__ import annotations

import asyncio
import functools
import json

from testbed import cgroupfs
from testbed.api import blktests
from testbed.bugs.model import Condition
from testbed.bugs.script_files import script
from testbed.bugs.signature import SignatureMatcher, render
from testbed.guest import cpu_memory, devices, shell_functions
from testbed.guest.channels import dmesg, kernel_log
from testbed.guest.channels.agent import Agent
from testbed.guest.clock import parse_uptime
from testbed.guest.metrics import fio
from testbed.guest.setup import readback, survey_parser
from testbed.guest.setup.readback import Expected
from testbed.guest.setup.survey import Hardware
from testbed.qemu.io_errors import IoErrors
from testbed.store import archives
from tests.fuzz.readers import place


def console_lines(data: bytes) -> None:
    """Parse a console line by line, as guests are watched; write its findings as JSON."""
    reader = kernel_log.ConsoleReader()
    found = [one.seconds for line in place.text(data).split("\n") if (one := reader.take(line)) is not None]
    json.dumps(found, allow_nan=False)


def log(data: bytes) -> None:
    """Parse a guest's log, merged with a console that has shown the same."""
    text = place.text(data)
    reader = kernel_log.ConsoleReader()
    shown = [one for line in text.split("\n") if (one := reader.take(line)) is not None]
    dmesg.merge(shown, dmesg.parse(text), 500)


_SCRIPT = (
    'set -x\nprepare() { mkdir a; }\nprepare && echo "BYPASSED $1" <<EOF\nx\nEOF\n'
    "for i in 1 2; do\n  sleep 1 & wait\ndone\n"
)


@functools.cache
def _bug() -> tuple[Condition, ...]:
    said = (
        {"output": "BYPASSED"},
        {"output": r"a\nb", "console": "WARNING"},
        {"expect": "oom_kill [1-9]"},
        {"status": "failure"},
    )
    return tuple(Condition.model_validate(one) for one in said)


def script_output(data: bytes) -> None:
    """Parse errors, output and console of a bug's script, separated by NUL; the length selects the interpreter."""
    errors, output, shown = [*data.split(b"\0", 2), b"", b""][:3]
    first = ("", "#!/bin/sh\n", "#!/usr/bin/python3\n")[len(data) % 3]
    watch = SignatureMatcher(_bug(), script("crash.sh", first + _SCRIPT))
    for at in range(0, len(errors), 4096):
        watch.feed_errors(errors[at : at + 4096])
    watch.feed_output(output)
    watch.feed_console(shown)
    watch.feed_counters(render({"a/memory.events": place.text(shown)}))
    watch.script_ended(3)
    watch.drop_doubtful_hit()
    watch.why_unknown(3)
    watch.describe_exit(3)


class _Wire:
    """Receives what is sent to the agent."""

    def write(self, data: bytes) -> None:
        del data


@functools.cache
def _loop() -> asyncio.AbstractEventLoop:
    return asyncio.new_event_loop()


def agent(data: bytes) -> None:
    """Parse answers on the agent's port, for each kind of request, until the end."""
    _loop().run_until_complete(_asked(data))


async def _asked(data: bytes) -> None:
    reader = asyncio.StreamReader(limit=16 << 10)
    reader.feed_data(data)
    reader.feed_eof()
    one = Agent("g0")
    one._reader, one._writer = reader, _Wire()  # type: ignore[assignment]  # a stream that is only written to
    found = devices.parse(await one.expect("disks"))
    devices.differences({}, found)
    devices.by_number({}, found)
    lines, rest = await one.ask("time")
    parse_uptime(rest)
    cgroupfs.parse_group_counts(lines)
    await one.exchange("freeze", "frozen")


def group_lines(data: bytes) -> None:
    """Parse the agent's lines of cgroups."""
    cgroupfs.parse_group_counts(place.text(data).rstrip("\n").split("\n"))


def disk_listing(data: bytes) -> None:
    """Parse the agent's listing of disks."""
    found = devices.parse(place.text(data))
    devices.differences({}, found)
    devices.by_number({}, found)


def counter_files(data: bytes) -> None:
    """Parse a nested keyed file of the cgroup filesystem, such as io.stat, and compute its growth."""
    text = place.text(data)
    before, _, after = text.partition("\0")
    cgroupfs.parse_io_stat(before, "g0: io.stat")
    cgroupfs.bytes_moved(before, after or before, "7:0", "rbytes", "g0: io.stat")


def flat_files(data: bytes) -> None:
    """Parse a flat keyed file of the cgroup filesystem."""
    text = place.text(data)
    cgroupfs.parse_flat(text, "g0: memory.stat")
    cgroupfs.parse_value(text, "oom_kill", "g0: memory.events")


def shell_output(data: bytes) -> None:
    """Parse the output of our shell functions in guests: files, words and numbers."""
    text = place.text(data)
    shell_functions.sections(text, "7a3f", "g0")
    shell_functions.lines(text, "number")
    shell_functions.printed_number(text, "pid", "g0")
    shell_functions.named_values(text, "rate", ("a",), "g0")


def online(data: bytes) -> None:
    """Parse a guest's list of CPUs."""
    cpu_memory.online_cpus(place.text(data), "g0: cpu/online")


_DISKS = {
    "/dev/vdc": Hardware(name="data", type="virtio-blk", profile="hdd-7200"),
    "/dev/nvme0n1": Hardware(name="fast", type="nvme"),
}
_FACTS = (
    Expected(where="disks.data.queues", file="/sys/block/vdc/mq", expected="2"),
    Expected(
        where="cgroups.a.io-max",
        file="/sys/fs/cgroup/a/io.max",
        expected="rbps=1048576",
        line="{NUMBER} ",
        of="/dev/vdc",
    ),
)


def survey_of(data: bytes) -> None:
    """Parse the survey of a guest's stack, and the read-back of stated values."""
    text = place.text(data)
    survey_parser.parse(text, _DISKS)
    readback.differences(_FACTS, text)


def suite_records(data: bytes) -> None:
    """Parse records and output of a test of blktests, separated by two NULs; records are separated by one."""
    left, _, printed = place.text(data).partition("\0\0")
    for source in ("test() {\n    true\n}\n", "test_device() {\n    true\n}\n"):
        for devices_there in (False, True):
            blktests.read_results("loop/001", left, printed, source, devices=devices_there)


def fio_figures(data: bytes) -> None:
    """Parse fio's output."""
    for rw in ("randread", "write"):
        fio.parse_load(place.text(data), rw)


def copied_out(data: bytes) -> None:
    """Unpack a folder that is copied out of a guest."""
    path = place.file(data, "copied.tar")
    with place.folder() as target:
        archives.unpack(path, target)


def monitor_events(data: bytes) -> None:
    """Handle events about disks from a QEMU that a guest has taken over, a line of JSON each."""
    heard = IoErrors()
    for line in data.splitlines():
        try:
            said = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(said, dict) and isinstance(said.get("event"), str) and isinstance(said.get("data", {}), dict):
            heard.on_event(said["event"], said.get("data", {}))
    heard.describe("data", {"read": 1, "write": 0})
