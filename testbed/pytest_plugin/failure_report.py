"""Describes a guest whose test has failed: the command, the kernel log since the start, cgroup counters, and log
files.
"""

from __future__ import annotations

import time
from collections.abc import Mapping

from testbed import cgroupfs
from testbed.api.vm import CommandResult, Vm
from testbed.errors import ReadingError
from testbed.guest import shell_functions
from testbed.guest.channels.kernel_log import clean, split_stamp
from testbed.guest.shell_functions import FileTexts
from testbed.units import is_number

_LIMIT_S = 15.0
_MOST_LINES = 60
_MOST_CHARACTERS = 6000
# Reads the uptime, dmesg, and the counters of cgroups one and two levels deep.
_SCRIPT = """\
take /proc/uptime
echo "MARK file dmesg"; dmesg; echo; echo "MARK whole dmesg"
section cgroups
GROUPS
finish
""".replace(
    "GROUPS\n",
    shell_functions.take_cgroups(("io.stat", "memory.current", "memory.stat", "memory.events"), depths=(1, 2)),
)
_SHOWN = {"memory.stat": ("anon", "file", "shmem"), "memory.events": ("high", "max", "oom", "oom_kill")}


async def describe(vm: Vm, qemu: str) -> str:
    """Return the description as text that is safe for a terminal; from the logs only if the guest does not answer."""
    mark = shell_functions.new_separator()
    output = await vm.ask(shell_functions.function_definitions(mark) + _SCRIPT.replace("MARK", mark), _LIMIT_S)
    answered_after_s = time.monotonic() - vm.ready_at
    lines = [f"{vm.release} ({vm.kernel}), QEMU {qemu}"]
    lines += _last_command(vm)
    try:
        taken = shell_functions.sections(output, mark, vm.name)
    except ReadingError:
        taken = {}
    first = taken.get("", FileTexts(guest=vm.name))
    uptime = first.texts.get("/proc/uptime", "").partition(" ")[0]
    if (dmesg := first.texts.get("dmesg")) and is_number(uptime):
        (vm.evidence / "dmesg.txt").write_text(dmesg, encoding="utf-8")
        ready_at = float(uptime) - answered_after_s
        log = [line for line in dmesg.splitlines() if line.startswith("[") and (split_stamp(line)[0] or 0) >= ready_at]
        lines += _block("kernel log since the guest was ready", log or ["nothing"])
    else:
        console = vm.evidence / "console.log"
        text = console.read_text(encoding="utf-8", errors="replace").splitlines() if console.exists() else []
        lines += _block("the guest does not answer; the last of its console", text)
    groups = _cgroup_lines(vm, taken.get("cgroups", FileTexts(guest=vm.name)))
    lines += _block("control groups", groups) if groups else []
    kept = vm.keep()
    lines += [kept] if kept else []
    lines += [
        f"console: {vm.evidence / 'console.log'}",
        f"QMP log: {vm.evidence / 'qmp.jsonl'}",
        f"all logs: {vm.evidence}",
    ]
    return "\n".join(lines)


def _last_command(vm: Vm) -> list[str]:
    shown = vm.failed or (vm.last[-1] if vm.last else None)
    if shown is None:
        return ["no command was run"]
    return _block(
        f"{'failed' if vm.failed else 'last'} command: {clean(shown.command)} {_status(shown)}", _output(shown)
    )


def _status(command: CommandResult) -> str:
    if (result := command.result) is None:
        return "[did not end]"
    return f"[status {' '.join((str(result.status), result.signal)).strip()}, {result.took_s:.2f} s]"


def _output(command: CommandResult) -> list[str]:
    return [] if command.result is None else (command.result.stdout + command.result.stderr).splitlines()


def _cgroup_lines(vm: Vm, read: FileTexts) -> list[str]:
    numbers = {disk.number: name for name, disk in vm.disks.items()}
    groups: dict[str, list[str]] = {}
    for texts in (read, *vm.left_groups.values()):
        for path, content in texts.texts.items():
            group, _, file = path.removeprefix("/sys/fs/cgroup/").rpartition("/")
            counters = groups.setdefault(group, [])
            try:
                counters += _format_counters(file, content, texts.where(path), numbers)
            except ReadingError as error:
                counters.append(str(error))
    return [f"{group}: {'; '.join(counters)}" for group, counters in groups.items() if counters]


def _format_counters(file: str, content: str, where: str, numbers: Mapping[str, str]) -> list[str]:
    """:raise ReadingError: the file is malformed."""
    if file == "io.stat":
        return [
            f"io.stat {numbers.get(number, number)} " + " ".join(f"{name}={value}" for name, value in counters.items())
            for number, counters in cgroupfs.parse_io_stat(content, where).items()
        ]
    if file == "memory.current":
        return [f"memory.current={cgroupfs.parse_single(content, where)}"]
    if file in _SHOWN:
        flat = cgroupfs.parse_flat(content, where)
        shown = " ".join(f"{name}={flat[name]}" for name in _SHOWN[file] if flat.get(name))
        return [f"{file} {shown}"] if shown else []
    return []


def _block(title: str, lines: list[str]) -> list[str]:
    """Return a title and below it the last of the lines, indented."""
    cut = len(lines) - _MOST_LINES
    shown = ([f"... {cut} lines before"] if cut > 0 else []) + lines[-_MOST_LINES:]
    while len(shown) > 1 and sum(map(len, shown)) > _MOST_CHARACTERS:
        shown.pop(0)
    return [title + (":" if shown else ""), *(f"    {clean(line)}" for line in shown)]
