"""Folders of a test's own for whole commands, and what these leave behind there."""

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
# What is made once for all tests.
_SHARED = ("images", "kernels", "initramfs", "templates", "probes", "reach")
# A child of a killed process dies with it, but not before the kernel has come to that. Looks at it are counted, not seconds: in those a
# host that stood still itself had no time for it.
_LOOKS, _BETWEEN_S = 400, 0.05


@dataclass(frozen=True)
class Ended:
    """How a command ended."""

    status: int
    out: str
    err: str


@dataclass(frozen=True)
class Places:
    """`cache` shares what is dear with the user's own; scratch, runs and sockets are this test's."""

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
        # The queue of the account is that of whoever runs the tests.
        own |= {"TESTBED_ADMISSION": self.runtime / "testbed" / "admission", "TMPDIR": self.temporary}
        return {**os.environ, **{name: str(path) for name, path in own.items()}, "COLUMNS": "300"}

    async def start(
        self, *words: str, hurt: tuple[str, ...] = (), within: tuple[str, ...] = (), **env: str
    ) -> asyncio.subprocess.Process:
        """Start `testbed`; `hurt`: what happens to it, see `victim`; `within`: a program that runs it."""
        argv = [*within, sys.executable, "-m", *(("tests.support.victim", *hurt) if hurt else ("testbed",)), *words]
        pipe = asyncio.subprocess.PIPE
        return await asyncio.create_subprocess_exec(
            *argv, stdin=asyncio.subprocess.DEVNULL, stdout=pipe, stderr=pipe, env={**self.env, **env}, cwd=self.root
        )

    async def run(
        self, *words: str, status: int | None = 0, hurt: tuple[str, ...] = (), within: tuple[str, ...] = (), **env: str
    ) -> Ended:
        """Run `testbed` to its end, which is expected within some minutes."""
        child = await self.start(*words, hurt=hurt, within=within, **env)
        async with asyncio.timeout(300):
            out, err = await child.communicate()
        ended = Ended(child.returncode or 0, out.decode(), err.decode())
        assert status is None or ended.status == status, (words, ended)
        assert "Traceback" not in ended.err, ended.err
        return ended

    def bare(self) -> Places:
        """The same, but for a cache in which nothing is."""
        cache = self.root / "bare"
        shutil.rmtree(cache, ignore_errors=True)
        (cache / "scratch").mkdir(parents=True)
        return replace(self, cache=cache)

    def file(self, name: str, text: str) -> str:
        path = self.root / name
        path.write_text(text)
        return str(path)

    # What is left ------------------------------------------------------------------------------------------------------------------

    def processes(self) -> dict[int, str]:
        """Those that were started with these folders, by their ids; they inherit the environment."""
        # QEMU gets little of it, but whose it is.
        marks, found = (f"XDG_RUNTIME_DIR={self.runtime}\0".encode(), f"{OWNER_VARIABLE}={self.runtime}/".encode()), {}
        for process in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                environment = (process / "environ").read_bytes()
                if any(mark in environment for mark in marks):
                    found[int(process.name)] = (process / "cmdline").read_bytes().replace(b"\0", b" ").decode()
        return found

    def strays(self) -> dict[int, str]:
        """Those of them that are neither the supervisor of a guest that is ready nor descend from one."""
        there = self.processes()
        records = [registry.read_record(folder) for folder in (self.runtime / "testbed" / "vms").glob("*")]
        keepers = {
            record.supervisor for record in records if record is not None and record.state == registry.READY
        } & there.keys()
        return {pid: words for pid, words in there.items() if keepers.isdisjoint(_line(pid))}

    async def no_processes(self) -> None:
        """Wait until none is there: what is killed dies soon.

        :raise AssertionError: some stay.
        """
        await _none(self.processes)

    async def no_strays(self) -> None:
        """Wait until none is there but for guests that stay, and what belongs to them.

        :raise AssertionError: some stay.
        """
        await _none(self.strays)

    def left(self) -> list[str]:
        """Sockets, scratch and temporary files, what is half-made in the cache and of snapshots, locks that are held, and mounts."""
        testbed = self.runtime / "testbed"
        found = [
            path
            for path in testbed.rglob("*")
            if path not in (testbed / "admission", testbed / "admission" / "gate", testbed / "vms")
        ]
        found += list((self.cache / "scratch").iterdir()) if self.cache.exists() else []
        found += [path for path in self.cache.glob("*/.unfinished-*") if not path.parent.is_symlink()]
        found += [path for path in self.state.glob("runs/*/.running") if _held(path)]
        # As asyncssh is loaded, Python asks gcc for libraries (ctypes.util.find_library) by a file tmpXXXXXXXX: it stays if that is killed.
        found += [path for path in self.temporary.iterdir() if path.is_dir() or not path.name.startswith("tmp")]
        found += self.state.glob("snapshots/*/.*")
        mounts = [line for line in Path("/proc/mounts").read_text().splitlines() if f" {self.root}/" in line]
        return [str(path) for path in found] + mounts

    async def nothing_left(self, *next_command: str) -> None:
        """All is gone after the next command, and the processes before.

        :raise AssertionError: it is not.
        """
        await self.no_processes()
        await self.run(*(next_command or ("gc", "--unused-for", "9999d", "--larger-than", "999T")))
        assert self.left() == []

    @staticmethod
    def kill(pid: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)

    def end(self) -> None:
        """Kill what a failed test has left."""
        for pid in self.processes():
            self.kill(pid)


async def _none(of: Callable[[], dict[int, str]]) -> None:
    for _ in range(_LOOKS):
        if not of():
            return
        await asyncio.sleep(_BETWEEN_S)
    raise AssertionError(f"there after {_LOOKS} looks: {of()}")


def _line(pid: int) -> list[int]:
    """A process and its ancestors, as far as they are there."""
    line = [pid]
    with contextlib.suppress(OSError):
        while line[-1] > 1:
            # The fields after the name, which may hold anything, are the state and the parent (proc_pid_stat(5)).
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
    """Such folders; `name` is in the path of each but that of the sockets, which must be short."""
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
