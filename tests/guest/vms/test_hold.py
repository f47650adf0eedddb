"""A guest held when its signature matches: entered, debugged, dumped and ended, each by a process of its own."""

from __future__ import annotations

import asyncio
import json
import os
import struct
import sys
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import drgn
import pytest

from testbed.bugs.attempt import AttemptSpec, run_attempt
from testbed.bugs.load import parse_mapping
from testbed.bugs.outcome import Outcome
from testbed.bugs.signature import End, Match
from testbed.errors import HostError
from testbed.guest import snapshot
from testbed.guest.debug import gdb, vmcore
from testbed.guest.debug import kallsyms as symbols
from testbed.guest.factory import GuestFactory
from testbed.guest.guest import Guest
from testbed.host import process, quota
from testbed.store.kernels.kernel_files import KernelFiles

SCRIPT = "echo here it is; while read -r line </proc/uptime; do sleep 0.1; done\n"
GUEST: dict[str, Any] = {"guests": {"g0": {"cpus": 1, "memory": "512M"}}}


@pytest.fixture
def folder() -> Any:
    with tempfile.TemporaryDirectory(prefix="tb-hold-") as made:
        (Path(made) / "run").mkdir(mode=0o700)
        yield Path(made)


@pytest.fixture
async def held(folder: Path, request: pytest.FixtureRequest) -> AsyncIterator[Any]:
    """Run `testbed` in its own folders while `testbed repro --hold` holds a guest; the parameter: its arguments."""
    own = {
        "XDG_RUNTIME_DIR": folder / "run",
        "TESTBED_ADMISSION": folder / "run" / "admission",
        "TESTBED_STATE": folder / "state",
    }
    env = {**os.environ, **{name: str(path) for name, path in own.items()}, "COLUMNS": "200"}
    (folder / "bad.sh").write_text(SCRIPT)

    async def start(*words: str) -> asyncio.subprocess.Process:
        pipe = asyncio.subprocess.PIPE
        return await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "testbed",
            *words,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=pipe,
            stderr=pipe,
            env=env,
            cwd=folder,
        )

    async def run(*words: str, status: int = 0) -> str:
        child = await start(*words)
        out, err = await child.communicate()
        assert child.returncode == status, (words, out, err)
        return out.decode() + err.decode()

    more = getattr(request, "param", ())
    holder = await start(
        "repro", "--script", "bad.sh", "--expect", "^here it is$", "-k", "debian-6.1", "--hold", "--json", *more
    )
    assert holder.stderr is not None
    try:
        async with asyncio.timeout(120):
            said = ""
            while "is held at the moment" not in said:
                line = (await holder.stderr.readline()).decode()
                assert line, said
                said += line
        run.holder = holder  # type: ignore[attr-defined]  # for the test alone
        yield run
    finally:
        if holder.returncode is None:
            holder.terminate()
        await holder.communicate()


@pytest.mark.slow
async def test_a_held_guest_is_entered_debugged_dumped_and_ended(held: Any, folder: Path) -> None:
    (record,) = json.loads(await held("ps", "--json"))
    assert record["name"] == "held" and record["why"] == "held: here it is"
    assert "script goes on" in await held("ssh", "held", "--", "pgrep -f proc/uptime >/dev/null; echo script goes on")
    await held("logs", "held", "--what", "qmp")

    # A breakpoint in the kernel, set and hit under emulation, at the address that the function has in this guest.
    process.find("gdb")
    said = await held(
        *(
            "gdb",
            "held",
            "--",
            "-batch",
            "-ex",
            "break uptime_proc_show",
            "-ex",
            "continue",
            "-ex",
            "x/i $pc",
            "-ex",
            "delete",
            "-ex",
            "detach",
        )
    )
    assert "Breakpoint 1, 0x" in said and "in uptime_proc_show ()" in said and "=> 0xffffffff" in said
    assert "alive" in await held("ssh", "held", "--", "echo alive")
    assert "in the middle of a try" in await held("snapshot", "held", "now", status=2)
    assert "target remote" in await held("gdb", "held", "--print")
    assert "expected the vmlinux or System.map" in await held("gdb", "held", "--symbols", "bad.sh", status=2)
    for file in _built(Path(record["evidence"]) / "kallsyms.txt", folder):
        assert f"is at {_address(record):#x}" in await held(*_GDB, "--symbols", file, "--", *_WHERE)

    await held("dump", "held", "core")
    assert "core: cannot be made: File exists" in await held("dump", "held", "core", status=2)
    kallsyms = Path(record["evidence"]) / "kallsyms.txt"
    banner = await held("ssh", "held", "--", "cat /proc/version")
    _read(folder / "core", kallsyms.read_text(), banner)
    await held("dump", "held", "small", "--format", "kdump-zlib")
    assert (folder / "small").read_bytes()[:12] == b"makedumpfile" and (folder / "small").stat().st_size < (
        folder / "core"
    ).stat().st_size / 2

    await held("down", "held")
    out, _ = await held.holder.communicate()
    document = json.loads(out)
    assert held.holder.returncode == 0 and document["result"] == "reproduced"
    assert json.loads(await held("ps", "--json")) == []


def _last_of(text: str, *words: str) -> str:
    return max(words, key=text.rfind)


_GDB = ("gdb", "held")
_WHERE = ("-batch", "-ex", "info address uptime_proc_show", "-ex", "detach")
# The address for which a kernel is linked, before KASLR moves it.
_LINKED_AT = 0xFFFFFFFF81000000


def _address(record: dict[str, Any]) -> int:
    """Return the address of a kernel function in this guest."""
    found = symbols.address_of(
        symbols.parse((Path(record["evidence"]) / "kallsyms.txt").read_text()), "uptime_proc_show"
    )
    assert found is not None
    return found


def _built(kallsyms: Path, folder: Path) -> tuple[str, str]:
    """Create a System.map and a vmlinux like those of the guest kernel's build."""
    own = tuple(symbols.parse(kallsyms.read_text()))
    begin = symbols.address_of(own, "_text")
    assert begin is not None and begin != _LINKED_AT, "KASLR has not moved it"
    moved = _LINKED_AT - begin
    (folder / "System.map").write_text("".join(f"{one.address + moved:016x} {one.kind} {one.name}\n" for one in own))
    (folder / "vmlinux").write_bytes(symbols.make_elf(own, moved))
    return "System.map", "vmlinux"


@pytest.mark.slow
@pytest.mark.parametrize("held", [("--paused", "--jobs", "2")], indirect=True)
async def test_a_held_guest_that_stands_still_is_dumped_debugged_and_goes_on(held: Any, folder: Path) -> None:
    (record,) = json.loads(await held("ps", "--json"))
    assert (record["why"], record["resume_with"]) == ("held: here it is; it stands still", "testbed resume held")
    assert "stands still: held: here it is; it stands still; let it go on with: testbed resume held" in await held(
        "ssh", "held", status=2
    )
    await held("dump", "held", "core")
    assert b"OSRELEASE=6.1." in _notes(folder / "core")["VMCOREINFO"]
    assert _last_of(await held("logs", "held", "--what", "qmp"), "STOP", "RESUME") == "STOP"
    await held("resume", "held")
    assert _last_of(await held("logs", "held", "--what", "qmp"), "STOP", "RESUME") == "RESUME"
    assert "script goes on" in await held("ssh", "held", "--", "pgrep -f proc/uptime >/dev/null; echo script goes on")
    assert "does not stand still" in await held("resume", "held", status=2)
    (record,) = json.loads(await held("ps", "--json"))
    assert (record["why"], record["resume_with"]) == ("held: here it is", "")
    await held("down", "held")
    out, _ = await held.holder.communicate()
    document = json.loads(out)
    assert held.holder.returncode == 0 and document["result"] == "reproduced"
    (one,) = document["kernels"]
    assert one["first_hit_s"] < one["took_s"] - 1, "the time of the first hit has none of its being held"


def _read(core: Path, kallsyms: str, banner: str) -> None:
    """Check what a dump contains without debug symbols: its notes, and memory at a kernel address, read by drgn."""
    notes = _notes(core)
    assert "VMCOREINFO" in notes and b"OSRELEASE=6.1." in notes["VMCOREINFO"]
    where = symbols.address_of(symbols.parse(kallsyms), "linux_banner")
    assert where is not None
    program = drgn.Program()
    program.set_core_dump(core)
    assert program.flags & drgn.ProgramFlags.IS_LINUX_KERNEL
    assert program.read(where, 400).split(b"\0")[0].decode().strip() == banner.strip()


def _notes(core: Path) -> dict[str, bytes]:
    """Return the notes of an ELF core by name."""
    with core.open("rb") as file:
        head = file.read(64)
        (offset,) = struct.unpack_from("<Q", head, 32)
        size, count = struct.unpack_from("<HH", head, 54)
        found: dict[str, bytes] = {}
        for number in range(count):
            file.seek(offset + number * size)
            kind, _, at, _, _, length, _, _ = struct.unpack("<IIQQQQQQ", file.read(56))
            if kind != 4:
                continue
            file.seek(at)
            data = file.read(length)
            while len(data) >= 12:
                name, content, _ = struct.unpack_from("<III", data)
                begin = 12 + (name + 3) // 4 * 4
                found[data[12 : 12 + name].split(b"\0")[0].decode()] = data[begin : begin + content]
                data = data[begin + (content + 3) // 4 * 4 :]
    return found


@pytest.mark.slow
async def test_a_guest_that_panics_leaves_its_memory_and_is_held(
    factory: GuestFactory, kernel: KernelFiles, tmp_path: Path
) -> None:
    plain = {
        "version": 1,
        "summary": "a test",
        "topology": GUEST,
        "script": "echo c >/proc/sysrq-trigger",
        "signature": [{"guest": "panic"}],
    }
    case = parse_mapping(plain)
    found: list[str] = []

    async def hold(guest: Guest, match: Match) -> None:
        opened = await gdb.open_gdb_server(guest, None)
        words = gdb.command(opened, ("-batch", "-ex", "bt"))
        found.append((await process.run(list(words), timeout_s=60)).stdout)

    logs = tmp_path / "g"
    spec = AttemptSpec(
        factory=factory,
        bug=case.bug,
        guest=case.guest,
        kernel=kernel,
        number=1,
        seed=1,
        timeout_s=60,
        logs=logs,
        dump=True,
        hold=hold,
    )
    one = await run_attempt(spec)
    assert "reboot ()" in found[0], "where a kernel stands that has panicked"
    assert (one.outcome, one.end) == (Outcome.HIT, End.PANIC)
    assert one.dump == str(tmp_path / "g" / "vmcore")
    program = drgn.Program()
    program.set_core_dump(tmp_path / "g" / "vmcore")
    assert program.flags & drgn.ProgramFlags.IS_LINUX_KERNEL
    assert b"OSRELEASE=6.1." in _notes(tmp_path / "g" / "vmcore")["VMCOREINFO"]


@pytest.mark.slow
async def test_what_has_no_room_is_not_written_leaves_nothing_and_the_guest_goes_on(
    factory: GuestFactory, kernel: KernelFiles, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = parse_mapping(
        {"version": 1, "summary": "s", "topology": GUEST, "script": ":", "signature": [{"status": 0}]}
    ).guest
    async with factory.guest("g0", model, kernel, tmp_path / "g", savable=True) as guest:
        monkeypatch.setattr(quota, "MARGIN_BYTES", 1 << 60)
        with pytest.raises(HostError, match="a dump may need"):
            await vmcore.write_dump(guest, tmp_path / "core")
        assert not (tmp_path / "core").exists()
        with pytest.raises(HostError, match="to be left on this machine's disk"):
            await snapshot.save_snapshot(guest, tmp_path / "snapshots" / "g0" / "now", {})
        assert not (tmp_path / "snapshots" / "g0").exists()
        await guest.run("true")
