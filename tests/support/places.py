"""Gives whole commands folders of a test's own, and finds what they leave behind there."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import filelock

from testbed.guest.session import OWNER_VARIABLE
from testbed.host import paths, registry

ROOT = Path(__file__).parents[2]
# Made once for all tests.
_SHARED = ("images", "kernels", "initramfs", "templates", "probes", "reach")
# A child of a killed process dies with it, but only when the kernel gets to it. Checks are counted, not seconds: a host
# that was stopped had no time for it either.
_LOOKS, _BETWEEN_S = 400, 0.05


@dataclass(frozen=True)
class Ended:
    """How a command ended."""

    status: int
    out: str
    err: str


@dataclass(frozen=True)
class Places:
    """The folders. `cache` shares what is expensive with the user's own; scratch, runs and sockets are this test's."""

    root: Path
    cache: Path
    state: Path
    runtime: Path

    @property
    def temporary(self) -> Path:
        return self.root / "temporary"

    @property
    def env(self) -> dict[str, str]:
        own = {
            "TESTBED_CACHE": self.cache,
            "TESTBED_STATE": self.state,
            "XDG_RUNTIME_DIR": self.runtime,
            "PYTHONPATH": ROOT,
        }
        # The admission queue is that of the user who runs the tests.
        own |= {"TESTBED_ADMISSION": self.runtime / "testbed" / "admission", "TMPDIR": self.temporary}
        return {**os.environ, **{name: str(path) for name, path in own.items()}, "COLUMNS": "300"}

    async def start(
        self, *words: str, hurt: tuple[str, ...] = (), within: tuple[str, ...] = (), **env: str
    ) -> asyncio.subprocess.Process:
        """Start `testbed`; `hurt`: the fault that it meets, see `victim`; `within`: a program that runs it."""
        argv = [*within, sys.executable, "-m", *(("tests.support.victim", *hurt) if hurt else ("testbed",)), *words]
        pipe = asyncio.subprocess.PIPE
        return await asyncio.create_subprocess_exec(
            *argv, stdin=asyncio.subprocess.DEVNULL, stdout=pipe, stderr=pipe, env={**self.env, **env}, cwd=self.root
        )

    async def run(
        self, *words: str, status: int | None = 0, hurt: tuple[str, ...] = (), within: tuple[str, ...] = (), **env: str
    ) -> Ended:
        """Run `testbed` to its end, which is expected within minutes."""
        child = await self.start(*words, hurt=hurt, within=within, **env)
        async with asyncio.timeout(300):
            out, err = await child.communicate()
        ended = Ended(child.returncode or 0, out.decode(), err.decode())
        assert status is None or ended.status == status, (words, ended)
        assert "Traceback" not in ended.err, ended.err
        return ended

    def bare(self) -> Places:
        """Return the same folders with an empty cache."""
        cache = self.root / "bare"
        shutil.rmtree(cache, ignore_errors=True)
        (cache / "scratch").mkdir(parents=True)
        return replace(self, cache=cache)

    def file(self, name: str, text: str) -> str:
        path = self.root / name
        path.write_text(text)
        return str(path)

    # What is left behind

    def processes(self) -> dict[int, str]:
        """Return the processes that were started with these folders, by pid; they inherit the environment."""
        # QEMU inherits only the variable that says whose it is.
        marks, found = (f"XDG_RUNTIME_DIR={self.runtime}\0".encode(), f"{OWNER_VARIABLE}={self.runtime}/".encode()), {}
        for process in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                environment = (process / "environ").read_bytes()
                if any(mark in environment for mark in marks):
                    found[int(process.name)] = (process / "cmdline").read_bytes().replace(b"\0", b" ").decode()
        return found

    def strays(self) -> dict[int, str]:
        """Return those that neither are the supervisor of a ready guest nor descend from one."""
        there = self.processes()
        records = [registry.read_record(folder) for folder in (self.runtime / "testbed" / "vms").glob("*")]
        keepers = {
            record.supervisor for record in records if record is not None and record.state == registry.READY
        } & there.keys()
        return {pid: words for pid, words in there.items() if keepers.isdisjoint(_line(pid))}

    async def no_processes(self) -> None:
        """Wait until there are no processes.

        :raise AssertionError: some stay.
        """
        await _none(self.processes)

    async def no_strays(self) -> None:
        """Wait until only VMs and their processes are left.

        :raise AssertionError: some stay.
        """
        await _none(self.strays)

    def left(self) -> list[str]:
        """List sockets, scratch and temporary files, unfinished parts of the cache and snapshots, held locks, and
        mounts.
        """
        testbed = self.runtime / "testbed"
        found = [
            path
            for path in testbed.rglob("*")
            if path not in (testbed / "admission", testbed / "admission" / "gate", testbed / "vms")
        ]
        found += list((self.cache / "scratch").iterdir()) if self.cache.exists() else []
        found += [path for path in self.cache.glob("*/.unfinished-*") if not path.parent.is_symlink()]
        found += [path for path in self.state.glob("runs/*/.running") if _held(path)]
        # Importing asyncssh runs gcc (ctypes.util.find_library) with a file tmpXXXXXXXX, which stays if it is killed.
        found += [path for path in self.temporary.iterdir() if path.is_dir() or not path.name.startswith("tmp")]
        found += self.state.glob("snapshots/*/.*")
        mounts = [line for line in Path("/proc/mounts").read_text().splitlines() if f" {self.root}/" in line]
        return [str(path) for path in found] + mounts

    async def nothing_left(self, *next_command: str) -> None:
        """Check that no processes are left, and nothing else after the next command.

        :raise AssertionError: something is left.
        """
        await self.no_processes()
        await self.run(*(next_command or ("gc", "--unused-for", "9999d", "--larger-than", "999T")))
        assert self.left() == []

    @staticmethod
    def kill(pid: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)

    def end(self) -> None:
        """Kill the processes that a failed test has left."""
        for pid in self.processes():
            self.kill(pid)


async def _none(of: Callable[[], dict[int, str]]) -> None:
    for _ in range(_LOOKS):
        if not of():
            return
        await asyncio.sleep(_BETWEEN_S)
    raise AssertionError(f"there after {_LOOKS} looks: {of()}")


def _line(pid: int) -> list[int]:
    """Return a process and its living ancestors."""
    line = [pid]
    with contextlib.suppress(OSError):
        while line[-1] > 1:
            # The fields after the name, which may contain anything, are the state and the parent (proc_pid_stat(5)).
            line.append(int(Path(f"/proc/{line[-1]}/stat").read_text().rpartition(")")[2].split()[1]))
    return line


def _held(path: Path) -> bool:
    try:
        with filelock.FileLock(path, thread_local=False).acquire(blocking=False):
            return False
    except filelock.Timeout:
        return True


@contextlib.contextmanager
def made(*, name: str = "") -> Iterator[Places]:
    """Make such folders; `name` is in the path of each except the sockets', which must be short."""
    own = paths.folders().cache
    with tempfile.TemporaryDirectory(prefix="tb-") as short:
        root = Path(short) / name if name else Path(short)
        places = Places(root=root, cache=root / "cache", state=root / "state", runtime=Path(short) / "run")
        for folder in (root, places.temporary, places.cache / "scratch", places.state / "runs", places.runtime):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        for shared in _SHARED:
            if (own / shared).exists():
                (places.cache / shared).symlink_to(own / shared)
        try:
            yield places
        finally:
            places.end()
