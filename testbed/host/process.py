"""Runs programs of this machine: finds them, runs them to their end, or starts them and returns.

Failures become our errors.
"""

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

# Debian does not put mke2fs and other tools of the administrator into a plain user's PATH.
_PLACES = (*os.environ.get("PATH", os.defpath).split(os.pathsep), "/usr/local/sbin", "/usr/sbin", "/sbin")
# Absolute, since a supervisor works in another folder than the command that it was forked from.
_SEARCH = os.pathsep.join(os.path.abspath(place) for place in _PLACES)  # noqa: PTH100 - links stay what they are

# Between SIGTERM and SIGKILL.
_GRACE_S = 20.0

# Of each output stream of a program, kept in memory.
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
    """The exit status and the output of a program that has ended."""

    argv: tuple[str, ...]
    status: int
    stdout: str
    stderr: str


OnLine = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class LineHandlers:
    """Functions that are called with each line of a program's output as it comes."""

    stdout: OnLine | None = None
    stderr: OnLine | None = None


_NO_HANDLERS = LineHandlers()


def find(tool: str) -> Path:
    """Return the path of a program.

    :raise ToolMissing: it is not installed; names the Debian package that has it.
    """
    path = find_path(tool)
    if path is None:
        raise ToolMissing(tool, PACKAGES.get(tool, tool))
    return path


def find_path(tool: str) -> Path | None:
    """Return the path of a program, None if it is not installed."""
    path = shutil.which(tool, path=_SEARCH)
    return Path(path) if path is not None else None


def find_all() -> dict[str, str]:
    """Return the path of each program that the testbed runs; `missing` for those that are not installed."""
    return {tool: str(find_path(tool) or "missing") for tool in PACKAGES}


def is_stopped(pid: int) -> bool:
    """Tell whether a signal has stopped a process, as Ctrl-Z does; False if the process does not exist."""
    try:
        # The name before the state may contain anything; see proc_pid_stat(5).
        status = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
        return status.rpartition(")")[2].split()[0] == "T"
    except OSError:
        return False


async def run(
    argv: Sequence[str | Path],
    *,
    timeout_s: float = 60,
    env: Mapping[str, str | None] | None = None,
    folder: Path | None = None,
    check: bool = True,
    on_line: LineHandlers = _NO_HANDLERS,
    stdin: str = "",
    pass_fds: tuple[int, ...] = (),
) -> Finished:
    """Run a program to its end, with `stdin` as its input and `folder` as its working directory; it inherits the
    descriptors `pass_fds`.

    `env`: variables that are added to our own environment; None removes one.

    :raise ToolMissing: it is not installed.
    :raise HostError: it did not end in time, printed more than 64 MiB, or, with `check`, ended with another status than
        0.
    """
    words = (str(find(str(argv[0]))), *map(str, argv[1:]))
    name = Path(words[0]).name
    async with _ended(await _spawn(words, env or {}, folder, pass_fds)) as child:
        try:
            async with asyncio.timeout(timeout_s):
                assert child.stdin is not None
                child.stdin.write(stdin.encode())
                child.stdin.close()
                stdout, stderr = await asyncio.gather(
                    _drain(name, child.stdout, on_line.stdout), _drain(name, child.stderr, on_line.stderr)
                )
                status = await child.wait()
        except TimeoutError:
            raise HostError(f"{name}: expected an end within {timeout_s:.0f} s, got none: {' '.join(words)}") from None
    if check and status != 0:
        last = "\n    ".join(stderr.strip().splitlines()[-6:])
        raise HostError(f"{name}: expected status 0, got {status}: {' '.join(words[:4])} ...\n    {last}")
    return Finished(argv=words, status=status, stdout=stdout, stderr=stderr)


async def _spawn(
    words: tuple[str, ...], env: Mapping[str, str | None], folder: Path | None, pass_fds: tuple[int, ...]
) -> asyncio.subprocess.Process:
    """Start a program in a process group of its own, with pipes; where this is cancelled meanwhile, the program is
    ended first.

    :raise HostError: it cannot be started.
    """
    environment = {**os.environ, **env, "LC_ALL": "C", "PATH": _SEARCH}
    spawning = asyncio.create_task(
        asyncio.create_subprocess_exec(
            *death_signal_prefix("TERM"),
            *words,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env={name: value for name, value in environment.items() if value is not None},
            cwd=folder,
            process_group=0,
            pass_fds=pass_fds,
        )
    )
    try:
        return await asyncio.shield(spawning)
    except asyncio.CancelledError:
        # The program may run already, and gets the same time to clean up.
        async with _ended(await spawning):
            raise
    except OSError as error:
        raise HostError(f"{Path(words[0]).name}: cannot be started: {error.strerror}") from error


async def _drain(name: str, stream: asyncio.StreamReader | None, on_line: OnLine | None) -> str:
    """Read all output of a program, and pass on its lines as they come, however long they are.

    :raise HostError: the output is larger than what is kept in memory.
    """
    assert stream is not None
    output = bytearray()
    begin = 0  # of the line that is not complete yet
    while data := await stream.read(1 << 16):
        searched = len(output)
        output += data
        if len(output) > _MOST_OUTPUT_BYTES:
            raise HostError(f"{name}: expected at most {_MOST_OUTPUT_BYTES >> 20} MiB of output, got more")
        while on_line is not None and (end := output.find(b"\n", searched)) >= 0:
            on_line(output[begin:end].decode(errors="replace").rstrip())
            begin = searched = end + 1
    if on_line is not None and output[begin:]:
        on_line(output[begin:].decode(errors="replace").rstrip())
    return output.decode(errors="replace")


# Goes before a program that starts many others, such as make. When the testbed is killed, the whole process group gets
# SIGTERM, and SIGKILL if it has not ended after 5 s, so that no process still writes when the next command looks. `run`
# makes the group.
GROUP_LEADER = (
    "sh",
    "-c",
    """\
end() {
    trap : TERM
    kill -TERM 0
    n=50
    while [ $((n -= 1)) -gt 0 ] && kill -0 $!; do sleep 0.1; done 2>/dev/null
    kill -KILL 0
}
trap end TERM
"$@" & wait $!""",
    "led",
)


@contextlib.asynccontextmanager
async def _ended(child: asyncio.subprocess.Process) -> AsyncIterator[asyncio.subprocess.Process]:
    """End the child and its process group on leaving, whatever happened inside."""
    try:
        yield child
    finally:
        for number in (signal.SIGTERM, signal.SIGKILL):
            # SIGTERM lets it clean up: mmdebstrap removes a tree that belongs to user ids which we cannot remove
            # ourselves.
            if child.returncode is None:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(child.pid, number)
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(child.wait(), _GRACE_S)


def death_signal_prefix(signal_name: str) -> tuple[str, ...]:
    """Return the words to put before a program so that the kernel sends it a signal when the testbed ends
    (PR_SET_PDEATHSIG).

    The kernel sends it when the *thread* that started the program ends: programs are started from the main thread's
    event loop.
    """
    return (str(find("setpriv")), "--pdeathsig", signal_name, "--", *unless_orphaned_prefix())


def unless_orphaned_prefix() -> tuple[str, ...]:
    """Return the words to put between those that request the death signal and a program: it does not start if the
    testbed has ended.

    The kernel sends no signal for a parent that had ended before the request; the program is another process's child by
    then.
    """
    return ("sh", "-c", '[ "$PPID" = "$0" ] && exec "$@"', str(os.getpid()))


async def start(
    argv: Sequence[str | Path],
    *,
    output: Path,
    env: Mapping[str, str] | None = None,
    pipes: bool = False,
    oom_first: bool = False,
    prefix: tuple[str, ...] | None = None,
    pass_fds: tuple[int, ...] = (),
    inherit_env: Collection[str] | None = None,
) -> asyncio.subprocess.Process:
    """Start a program that dies with us.

    Its stdout and stderr go to the file `output`; with `pipes`, only its stderr does.

    `oom_first`: the kernel kills it before other processes when this machine runs out of memory. `prefix`: words that
    confine it (`Jail.prefix`) and must request the death signal themselves. `pass_fds`: descriptors that it inherits.
    `inherit_env`: the variables that it gets of our environment, None for all.

    Files and sockets that it creates are accessible to its own user only.

    :raise HostError: it cannot be started.
    """
    words = (*(death_signal_prefix("KILL") if prefix is None else prefix), str(find(str(argv[0]))), *map(str, argv[1:]))
    inherited = {name: value for name, value in os.environ.items() if inherit_env is None or name in inherit_env}
    try:
        with output.open("wb") as file:
            child = await asyncio.create_subprocess_exec(
                *words,
                stdin=asyncio.subprocess.PIPE if pipes else asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE if pipes else file,
                stderr=file,
                env={**inherited, **(env or {})},
                start_new_session=True,
                pass_fds=pass_fds,
                umask=0o077,
            )
        if oom_first:
            # The highest value (proc(5)). The process may have ended by now.
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                Path(f"/proc/{child.pid}/oom_score_adj").write_text("1000", encoding="utf-8")
        return child
    except OSError as error:
        raise HostError(f"{argv[0]}: cannot be started: {error.strerror}") from error
