import asyncio
import contextlib
import stat
import sys
import time
from pathlib import Path

import pytest

from testbed.errors import HostError, ToolMissing
from testbed.host import process


async def test_a_program_runs_to_its_end() -> None:
    warnings: list[str] = []
    done = await process.run(
        ["sh", "-c", "cat; echo warned >&2"], stdin="said\n", on_line=process.LineHandlers(stderr=warnings.append)
    )
    assert (done.status, done.stdout, warnings) == (0, "said\n", ["warned"])


async def test_long_lines_are_passed_on_and_too_much_output_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    warnings: list[str] = []
    long = "head -c 3000000 /dev/zero | tr '\\0' x >&2; echo >&2; printf 'a\\nb' >&2"
    done = await process.run(["sh", "-c", long], on_line=process.LineHandlers(stderr=warnings.append))
    assert [len(line) for line in warnings] == [3_000_000, 1, 1] and len(done.stderr) == 3_000_004
    monkeypatch.setattr(process, "_MOST_OUTPUT_BYTES", 1 << 20)
    with pytest.raises(HostError, match="sh: expected at most 1 MiB of output, got more"):
        await process.run(["sh", "-c", f"{long}; sleep 600"])


async def test_a_failure_has_the_output_of_the_program() -> None:
    with pytest.raises(HostError, match=r"sh: expected status 0, got 3(.|\n)*no such luck"):
        await process.run(["sh", "-c", "echo no such luck >&2; exit 3"])
    assert (await process.run(["sh", "-c", "exit 3"], check=False)).status == 3


async def test_the_error_for_a_missing_program_names_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "_SEARCH", "/nowhere")
    with pytest.raises(
        ToolMissing, match="mke2fs: not found on this machine; install it with: apt-get install e2fsprogs"
    ):
        process.find("mke2fs")


async def test_a_program_that_does_not_end_is_ended_with_its_children(tmp_path: Path) -> None:
    with pytest.raises(HostError, match=r"expected an end within 0 s"):
        await process.run(["sh", "-c", f"sleep 600 & echo $! >{tmp_path}/pid; wait"], timeout_s=0.3)
    await wait_until_ended(int((tmp_path / "pid").read_text()))


async def wait_until_ended(pid: int) -> None:
    """Wait until a process has ended."""
    async with asyncio.timeout(30):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            while Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX":
                await asyncio.sleep(0.01)


# A compiler that ignores signals.
DEAF = "all:\n\techo $$PPID >made; sh -c 'trap : TERM; while :; do sleep 1; done' & echo $$! >started; wait\n"


async def test_the_programs_that_make_has_started_end_with_us(tmp_path: Path) -> None:
    (tmp_path / "Makefile").write_text(DEAF)
    code = (
        "import asyncio, sys; from testbed.host import process; "
        "asyncio.run(process.run([*process.GROUP_LEADER, 'make', '-C', sys.argv[1]]))"
    )
    us = await asyncio.create_subprocess_exec(sys.executable, "-c", code, str(tmp_path))
    async with asyncio.timeout(30):
        while not (tmp_path / "started").exists() or not (tmp_path / "started").read_text():
            await asyncio.sleep(0.01)
    us.kill()
    await us.wait()
    for name in ("made", "started"):
        await wait_until_ended(int((tmp_path / name).read_text()))


async def test_the_group_leader_passes_on_the_exit_status(tmp_path: Path) -> None:
    done = await process.run([*process.GROUP_LEADER, "sh", "-c", "echo out; echo err >&2; exit 7"], check=False)
    assert (done.status, done.stdout, done.stderr) == (7, "out\n", "err\n")
    with pytest.raises(HostError, match=r"expected an end within 0 s"):
        await process.run(
            [*process.GROUP_LEADER, "sh", "-c", f"sleep 600 & echo $! >{tmp_path}/pid; wait"], timeout_s=0.3
        )
    await wait_until_ended(int((tmp_path / "pid").read_text()))


@pytest.mark.parametrize("heard_of", [True, False])
async def test_a_program_may_clean_up_when_its_run_is_cancelled(tmp_path: Path, heard_of: bool) -> None:
    script = f"trap 'echo cleaned >{tmp_path}/trace; exit' TERM; touch {tmp_path}/started; while :; do sleep 0.05; done"
    running = asyncio.create_task(process.run(["sh", "-c", script]))
    async with asyncio.timeout(30):
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        while not (tmp_path / "started").exists():
            # Block the event loop: the program runs, but `process.run` has not noticed yet.
            await asyncio.sleep(0.01) if heard_of else time.sleep(0.01)  # noqa: ASYNC251 - to stop the event loop is the point
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert (tmp_path / "trace").read_text() == "cleaned\n"


async def test_files_of_a_started_program_are_private(tmp_path: Path) -> None:
    child = await process.start(
        ["sh", "-c", f"touch {tmp_path}/file && mkdir {tmp_path}/folder"], output=tmp_path / "log"
    )
    assert await child.wait() == 0
    assert [stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("file", "folder")] == [0o600, 0o700]
