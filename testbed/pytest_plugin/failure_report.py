"""What a guest has to say when its test has failed: the command, the kernel's log since then, control groups, and where the logs are."""

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
# Control groups of one and two levels: what they count.
_ASK = """\
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
    """All of it as text; from the logs alone where the guest does not answer. What a guest printed is made harmless for a terminal."""
    mark = shell_functions.new_separator()
    said = await vm.ask(shell_functions.function_definitions(mark) + _ASK.replace("MARK", mark), _LIMIT_S)
    answered_after_s = time.monotonic() - vm.ready_at
    lines = [f"{vm.release} ({vm.kernel}), QEMU {qemu}"]
    lines += _commands(vm)
    try:
        taken = shell_functions.sections(said, mark, vm.name)
    except ReadingError:
        taken = {}
    first = taken.get("", FileTexts(guest=vm.name))
    uptime = first.texts.get("/proc/uptime", "").partition(" ")[0]
    if (dmesg := first.texts.get("dmesg")) and is_number(uptime):
        (vm.evidence / "dmesg.txt").write_text(dmesg, encoding="utf-8")
        began = float(uptime) - answered_after_s
        log = [line for line in dmesg.splitlines() if line.startswith("[") and (split_stamp(line)[0] or 0) >= began]
        lines += _block("kernel log since the guest was ready", log or ["nothing"])
    else:
        console = vm.evidence / "console.log"
        text = console.read_text(encoding="utf-8", errors="replace").splitlines() if console.exists() else []
        lines += _block("the guest does not answer; the last of its console", text)
    groups = _groups(vm, taken.get("cgroups", FileTexts(guest=vm.name)))
    lines += _block("control groups", groups) if groups else []
    stays = vm.keep()
    lines += [stays] if stays else []
    lines += [
        f"console: {vm.evidence / 'console.log'}",
        f"QMP log: {vm.evidence / 'qmp.jsonl'}",
        f"all logs: {vm.evidence}",
    ]
    return "\n".join(lines)


def _commands(vm: Vm) -> list[str]:
    shown = vm.failed or (vm.last[-1] if vm.last else None)
    if shown is None:
        return ["no command was run"]
    return _block(
        f"{'failed' if vm.failed else 'last'} command: {clean(shown.command)} {_ended(shown)}", _output(shown)
    )


def _ended(ran: CommandResult) -> str:
    if ran.result is None:
        return "[did not end]"
    return f"[status {' '.join((str(ran.result.status), ran.result.signal)).strip()}, {ran.result.took_s:.2f} s]"


def _output(ran: CommandResult) -> list[str]:
    return [] if ran.result is None else (ran.result.stdout + ran.result.stderr).splitlines()


def _groups(vm: Vm, there: FileTexts) -> list[str]:
    numbers = {disk.number: name for name, disk in vm.disks.items()}
    found: dict[str, list[str]] = {}
    for texts in (there, *vm.left_groups.values()):
        for path, content in texts.texts.items():
            group, _, file = path.removeprefix("/sys/fs/cgroup/").rpartition("/")
            told = found.setdefault(group, [])
            try:
                told += _counted(file, content, texts.where(path), numbers)
            except ReadingError as error:
                told.append(str(error))
    return [f"{group}: {'; '.join(told)}" for group, told in found.items() if told]


def _counted(file: str, content: str, where: str, numbers: Mapping[str, str]) -> list[str]:
    """:raise ReadingError: it has another form than the kernel's."""
    if file == "io.stat":
        return [
            f"io.stat {numbers.get(number, number)} " + " ".join(f"{name}={value}" for name, value in counted.items())
            for number, counted in cgroupfs.parse_io_stat(content, where).items()
        ]
    if file == "memory.current":
        return [f"memory.current={cgroupfs.parse_single(content, where)}"]
    if file in _SHOWN:
        flat = cgroupfs.parse_flat(content, where)
        there = " ".join(f"{name}={flat[name]}" for name in _SHOWN[file] if flat.get(name))
        return [f"{file} {there}"] if there else []
    return []


def _block(title: str, lines: list[str]) -> list[str]:
    """Lines below a title, cut to the last of them."""
    cut = len(lines) - _MOST_LINES
    shown = ([f"... {cut} lines before"] if cut > 0 else []) + lines[-_MOST_LINES:]
    while len(shown) > 1 and sum(map(len, shown)) > _MOST_CHARACTERS:
        shown.pop(0)
    return [title + (":" if shown else ""), *(f"    {clean(line)}" for line in shown)]
