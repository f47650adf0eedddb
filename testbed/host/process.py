"""Programs of the host: find them, run them to their end, start the ones that stay. One wire; what they say is turned into our errors."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
from collections.abc import AsyncIterator, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from testbed.errors import HostError, ToolMissing

# Debian keeps mke2fs and its like out of a plain user's PATH.
_PLACES = (*os.environ.get("PATH", os.defpath).split(os.pathsep), "/usr/local/sbin", "/usr/sbin", "/sbin")
# From the root, since a supervisor works in another folder than the command that it was a copy of.
_SEARCH = os.pathsep.join(os.path.abspath(place) for place in _PLACES)  # noqa: PTH100 - links stay what they are

# Between asking a program to end and ending it.
_GRACE_S = 20.0

# Of each stream of a program, kept in memory.
_MOST_OUTPUT_BYTES = 64 << 20

# Debian package of each program that the testbed runs.
PACKAGES: dict[str, str] = {
    "qemu-system-x86_64": "qemu-system-x86",
    "mmdebstrap": "mmdebstrap",
    "mke2fs": "e2fsprogs",
    "depmod": "kmod",
    "setpriv": "util-linux",
    "unshare": "util-linux",
    "prlimit": "util-linux",
    "apt-get": "apt",
    "apt-cache": "apt",
    "dpkg-deb": "dpkg",
    "newuidmap": "uidmap",
    "zstd": "zstd",
    "gdb": "gdb",
    "tar": "tar",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Finished:
    """How a program ended, and what it said."""

    argv: tuple[str, ...]
    status: int
    stdout: str
    stderr: str


def find(tool: str) -> Path:
    """Where a program is.

    :raise ToolMissing: it is not installed; says which package has it.
    """
    found = find_path(tool)
    if found is None:
        raise ToolMissing(tool, PACKAGES.get(tool, tool))
    return found


def find_path(tool: str) -> Path | None:
    """Where a program is, None where it is not installed."""
    found = shutil.which(tool, path=_SEARCH)
    return Path(found) if found is not None else None


def is_stopped(pid: int) -> bool:
    """Whether a signal has stopped a process, as Ctrl-Z does; False of one that is gone."""
    try:
        # The name before it may hold anything; see proc_pid_stat(5).
        return (
            Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()[0] == "T"
        )
    except OSError:
        return False


async def run(
    argv: Sequence[str | Path],
    *,
    timeout_s: float = 60,
    env: Mapping[str, str | None] | None = None,
    folder: Path | None = None,
    check: bool = True,
    on_line: Callable[[str], None] | None = None,
    on_output: Callable[[str], None] | None = None,
    stdin: str = "",
    handed: tuple[int, ...] = (),
) -> Finished:
    """Run a program to its end; it reads `stdin`, and inherits the open files `handed`. `on_line` hears each line of its standard error
    as it comes, `on_output` of its output. `env`: what is added to our own environment; None takes a variable out of it.

    :raise ToolMissing: it is not installed.
    :raise HostError: it did not end in time, said more than 64 MiB, or ended with another status than 0 while `check`.
    """
    words = (str(find(str(argv[0]))), *map(str, argv[1:]))
    name = Path(words[0]).name
    environment = {**os.environ, **(env or {}), "LC_ALL": "C", "PATH": _SEARCH}
    spawning = asyncio.create_task(
        asyncio.create_subprocess_exec(
            *dying_with_us("TERM"),
            *words,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env={name: value for name, value in environment.items() if value is not None},
            cwd=folder,
            process_group=0,
            pass_fds=handed,
        )
    )
    try:
        child = await asyncio.shield(spawning)
    except asyncio.CancelledError:
        # The program may run before we hear of it, and then has the same chance to clean up.
        async with _ended(await spawning):
            raise
    except OSError as error:
        raise HostError(f"{name}: cannot be started: {error.strerror}") from error
    async with _ended(child):
        try:
            async with asyncio.timeout(timeout_s):
                assert child.stdin is not None
                child.stdin.write(stdin.encode())
                child.stdin.close()
                drains = (_drain(name, child.stdout, on_output), _drain(name, child.stderr, on_line))
                stdout, stderr = await asyncio.gather(*drains)
                status = await child.wait()
        except TimeoutError:
            raise HostError(f"{name}: expected an end within {timeout_s:.0f} s, got none: {' '.join(words)}") from None
    if check and status != 0:
        last = "\n    ".join(stderr.strip().splitlines()[-6:])
        raise HostError(f"{name}: expected status 0, got {status}: {' '.join(words[:4])} ...\n    {last}")
    return Finished(argv=words, status=status, stdout=stdout, stderr=stderr)


async def _drain(name: str, stream: asyncio.StreamReader | None, on_line: Callable[[str], None] | None) -> str:
    """All that a program says, its lines to `on_line` as they come, however long each is.

    :raise HostError: it says more than is kept in memory.
    """
    assert stream is not None
    said = bytearray()
    begin = 0  # of the line that has no end yet
    while data := await stream.read(1 << 16):
        searched = len(said)
        said += data
        if len(said) > _MOST_OUTPUT_BYTES:
            raise HostError(f"{name}: expected at most {_MOST_OUTPUT_BYTES >> 20} MiB of output, got more")
        while on_line is not None and (end := said.find(b"\n", searched)) >= 0:
            on_line(said[begin:end].decode(errors="replace").rstrip())
            begin = searched = end + 1
    if on_line is not None and said[begin:]:
        on_line(said[begin:].decode(errors="replace").rstrip())
    return said.decode(errors="replace")


# What to put before a program that starts many of its own, such as make: where the testbed is killed, all of them are asked to end, so that
# none writes on while the next command looks, and ended where they do not. By their group, which `run` makes.
LED = (
    "sh",
    "-c",
    """trap 'trap : TERM; kill -TERM 0; n=50; while [ $((n -= 1)) -gt 0 ] && kill -0 $!; do sleep 0.1; done 2>/dev/null; kill -KILL 0' TERM
"$@" & wait $!""",
    "led",
)


@contextlib.asynccontextmanager
async def _ended(child: asyncio.subprocess.Process) -> AsyncIterator[None]:
    """Whatever happens inside, the child and what it started are gone afterwards."""
    try:
        yield
    finally:
        for number in (signal.SIGTERM, signal.SIGKILL):
            # First a chance to clean up: mmdebstrap removes a tree that belongs to user ids which we cannot remove ourselves.
            if child.returncode is None:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(child.pid, number)
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(child.wait(), _GRACE_S)


def dying_with_us(with_signal: str) -> tuple[str, ...]:
    """What to put before a program so that it gets `with_signal` when the testbed ends, however it ends (PR_SET_PDEATHSIG).

    The kernel sends it when the *thread* that started the program ends: programs are started from the main thread's event loop.
    """
    return (str(find("setpriv")), "--pdeathsig", with_signal, "--", *unless_orphaned())


def unless_orphaned() -> tuple[str, ...]:
    """What to put between the words that ask for that signal and a program: it does not start if the testbed ended before, since the
    kernel sends no signal for a parent that is gone already, and a program is then another one's child.
    """
    return ("sh", "-c", '[ "$PPID" = "$0" ] && exec "$@"', str(os.getpid()))


async def start(
    argv: Sequence[str | Path],
    *,
    output: Path,
    env: Mapping[str, str] | None = None,
    talking: bool = False,
    first_to_go: bool = False,
    within: tuple[str, ...] | None = None,
    handed: tuple[int, ...] = (),
    inherited: Collection[str] | None = None,
) -> asyncio.subprocess.Process:
    """Start a program that dies with us, its output and errors in a file; `talking`: only its errors, and pipes to speak with it.
    `first_to_go`: a host that is short of memory kills it before anything else.

    `within`: words before it that confine it (`custody.prefix`), and let it die with us; `handed`: open files that it inherits;
    `inherited`: what it gets of our environment, None for all of it.

    Files and sockets that it makes are for its own user alone.

    :raise HostError: it cannot be started.
    """
    words = (*(dying_with_us("KILL") if within is None else within), str(find(str(argv[0]))), *map(str, argv[1:]))
    ours = {name: value for name, value in os.environ.items() if inherited is None or name in inherited}
    try:
        with output.open("wb") as file:
            child = await asyncio.create_subprocess_exec(
                *words,
                stdin=asyncio.subprocess.PIPE if talking else asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE if talking else file,
                stderr=file,
                env={**ours, **(env or {})},
                start_new_session=True,
                pass_fds=handed,
                umask=0o077,
            )
        if first_to_go:
            # The most that there is (proc(5)). One that has ended by now is not there.
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                Path(f"/proc/{child.pid}/oom_score_adj").write_text("1000", encoding="utf-8")
        return child
    except OSError as error:
        raise HostError(f"{argv[0]}: cannot be started: {error.strerror}") from error
