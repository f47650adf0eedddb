"""Copies files and folders between this machine and a guest, with their links, holes and modes."""

from __future__ import annotations

import asyncio
import os
import secrets
import shutil
import stat
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Protocol

from testbed.api.guest_backend import GuestBackend
from testbed.errors import CommandFailed, GuestError, HostError, UsageError
from testbed.guest.channels.ssh import Result
from testbed.host import process, tempdirs
from testbed.store import archives
from testbed.units import parse_octal, parse_whole

__tracebackhide__ = True  # pytest shows no frames of this module

_MOST_BYTES = 64 << 20
# $1: the target, $2: the folder to make first. Prints `folder` if the target is an existing folder.
_PLACE = 'mkdir -p -- "$2" && if [ -d "$1" ]; then echo folder; fi'
# $1: an archive, $2: the folder to unpack it into, $3: the mode of a new folder. Existing folders keep their mode, also
# those behind links.
_UNPACK = """\
[ -d "$2" ] || { mkdir -p -- "$2" && chmod "$3" -- "$2"; } || exit
tar -x --no-same-owner --no-overwrite-dir --keep-directory-symlink -f "$1" -C "$2"
status=$?
rm -f -- "$1"
exit "$status"
"""
# $1: a file or folder. Prints its type, mode, size, allocated blocks and their size, then the type of its filesystem.
_LOOK = 'stat -L -c "%F|%a|%s|%b|%B" -- "$1" && stat -f -c %T -- "$1"'
# $1: a folder, $2: a new archive of it. Prints its sockets, which an archive cannot hold.
_PACK = 'cd -- "$1" && find . -type s && tar -c --sparse -f "$2" .'
# $1: the folder of a file, $2: the file, $3: a new archive of it.
_PACK_FILE = 'tar -c --sparse --dereference -f "$3" -C "$1" "./$2"'
# Filesystems (names of stat -f) whose files have a true size; of others, such as proc and sysfs, only reading shows the
# content.
_STORAGE = {
    "ext2/ext3",
    "xfs",
    "btrfs",
    "f2fs",
    "tmpfs",
    "ramfs",
    "overlayfs",
    "msdos",
    "exfat",
    "nfs",
    "fuseblk",
    "isofs",
    "squashfs",
}


class Commands(Protocol):
    """What the copier uses of its guest."""

    name: str

    async def run(self, *command: str, check: bool = True, timeout_s: float | None = None) -> Result: ...

    async def script(
        self, text: str, *arguments: str, check: bool = True, timeout_s: float | None = None
    ) -> Result: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class _GuestFile:
    """A file or folder in the guest. `virtual`: its size is not that of its content; `sparse`: it has holes."""

    folder: bool
    executable: bool
    virtual: bool
    sparse: bool


class Copier:
    """Copies files for one guest. `do`: runs a coroutine of the backend, with a timeout in seconds."""

    def __init__(
        self,
        vm: Commands,
        backend: GuestBackend,
        do: Callable[[Coroutine[Any, Any, Any], float], Coroutine[Any, Any, Any]],
    ) -> None:
        self._vm, self._backend, self._do = vm, backend, do

    async def put(self, source: Path | str | bytes, target: str, mode: int | None, timeout_s: float) -> None:
        """See `Vm.put`."""
        what = _kind(source)
        above = target if target.endswith("/") else str(PurePosixPath(target).parent)
        inside = (await self._vm.script(_PLACE, target, above)).stdout.strip() == "folder"
        with tempdirs.temporary() as folder:
            if what == "folder":
                await self._put_folder(Path(str(source)), folder / "tar", target, timeout_s)
                return
            if isinstance(source, bytes):
                if inside:
                    raise UsageError(
                        f"put: expected the path of a file for bytes, which have no name, got the folder {target}"
                    )
                file = folder / "bytes"
                file.write_bytes(source)
            else:
                file = Path(source)
                mode = stat.S_IMODE(file.stat().st_mode) & 0o777 if mode is None else mode
                target = str(PurePosixPath(target) / file.name) if inside else target
                if (
                    file.stat().st_size == 0
                ):  # empty, or on a filesystem such as /proc, where only reading shows the content
                    file = folder / "read"
                    file.write_bytes(_read(Path(source)))
            what = "bytes" if isinstance(source, bytes) else str(source)
            await self._with_timeout(self._backend.put(file, target), f"copy {what} to {target}", timeout_s)
            if mode is not None:
                await self._vm.run("chmod", f"{mode:o}", target)

    async def _put_folder(self, source: Path, archive: Path, target: str, timeout_s: float) -> None:
        packed = f"/tmp/put-{secrets.token_hex(4)}.tar"  # noqa: S108 - in the guest
        what = f"copy {source} to {target}"
        words: list[str | Path] = ["tar", "--create", "--sparse", "--file", archive, "--directory", source, "."]
        done = await self._with_timeout(process.run(words, timeout_s=timeout_s, check=False), what, timeout_s)
        if done.status != 0 or done.stderr:
            said = "; ".join(line.removeprefix("tar: ") for line in done.stderr.splitlines()[:5])
            raise HostError(f"{source}: cannot be copied whole: {said}")
        await self._with_timeout(self._backend.put(archive, packed), what, timeout_s)
        await self._vm.script(_UNPACK, packed, target, f"{stat.S_IMODE(source.stat().st_mode):o}", timeout_s=timeout_s)

    async def get(
        self, source: str, target: Path | None, leave_out: bool, most_bytes: int | None, timeout_s: float
    ) -> bytes:
        """See `Vm.get`."""
        found = await self._stat(source)
        with tempdirs.temporary() as folder:
            file, packed = folder / "got", f"/tmp/get-{secrets.token_hex(4)}"  # noqa: S108 - in the guest
            if found.folder:
                if target is None:
                    raise UsageError(f"{self._vm.name}: {source}: expected a target for a folder, got none")
                sockets = (await self._vm.script(_PACK, source, packed, timeout_s=timeout_s)).stdout.splitlines()
                await self._fetch(packed, file, source, most_bytes, timeout_s)
                # In a thread: the event loop serves other guests as well.
                unpacked = await asyncio.to_thread(archives.unpack, file, target)
                left_out = (*unpacked, *(f"{name} (a socket)" for name in sockets))
                if left_out and not leave_out:
                    more = f" and {len(left_out) - 10} more" if left_out[10:] else ""
                    raise GuestError(
                        f"guest {self._vm.name}: {source}: all of it is in {target}, but what can only be in the guest"
                        f" (leave_out=True says that this is right): {', '.join(left_out[:10])}{more}"
                    )
                return b""
            if target is not None and target.is_dir():
                target = target / PurePosixPath(source).name
            if found.virtual:
                await self._vm.script('cat -- "$1" >"$2"', source, packed, timeout_s=timeout_s)
                await self._fetch(packed, file, source, most_bytes, timeout_s)
            elif found.sparse and target is not None:
                path = PurePosixPath(source)
                await self._vm.script(_PACK_FILE, str(path.parent), path.name, packed, timeout_s=timeout_s)
                await self._fetch(packed, file, source, most_bytes, timeout_s)
                await asyncio.to_thread(archives.unpack_file, file, target)
                return b""
            else:
                await self._with_timeout(self._backend.get(source, file, most_bytes), f"copy {source} here", timeout_s)
            if target is None:
                return _in_memory(file, f"{self._vm.name}: {source}")
            _write(file, target, executable=found.executable)
            return b""

    async def _stat(self, source: str) -> _GuestFile:
        """Find out what a path in the guest is.

        :raise GuestError: there is nothing, or neither a file nor a folder.
        """
        done = await self._vm.script(_LOOK, source, check=False)
        said = done.stdout.splitlines()
        why = done.stderr.strip().rpartition(": ")[2] or "it cannot be looked at"
        if done.status != 0 or len(said) != 2:
            raise GuestError(f"guest {self._vm.name}: copying {source} out of it: {why}")
        where = f"guest {self._vm.name}: stat of {source}"
        kind, mode, *numbers = [*said[0].split("|"), *[""] * 4][:5]
        size, blocks, block = (parse_whole(number, where) for number in numbers)
        if kind not in ("directory", "regular file", "regular empty file"):
            raise GuestError(
                f"guest {self._vm.name}: copying {source} out of it: expected a file or a folder, got a {kind}"
            )
        return _GuestFile(
            folder=kind == "directory",
            executable=bool(parse_octal(mode, where) & 0o100),
            virtual=said[1] not in _STORAGE,
            sparse=blocks * block < size,
        )

    async def _fetch(self, packed: str, file: Path, source: str, most_bytes: int | None, timeout_s: float) -> None:
        await self._with_timeout(self._backend.get(packed, file, most_bytes), f"copy {source} here", timeout_s)
        await self._vm.run("rm", packed)

    async def _with_timeout(self, work: Coroutine[Any, Any, Any], what: str, timeout_s: float) -> Any:
        try:
            return await self._do(work, timeout_s)
        except TimeoutError:
            raise CommandFailed(
                self._vm.name, what, f"none within {timeout_s:g} s", "timeout_s gives it longer"
            ) from None


def _kind(source: Path | str | bytes) -> str:
    """Return `folder` or `file`.

    :raise UsageError: it is neither, or does not exist.
    """
    if isinstance(source, bytes):
        return "file"
    path = Path(source)
    if path.is_dir():
        return "folder"
    if not path.is_file():
        there = "something else" if path.exists() else "nothing"
        raise UsageError(f"{source}: expected a file or a folder to copy into the guest, found {there}")
    return "file"


def _read(source: Path) -> bytes:
    try:
        with source.open("rb") as file:
            data = file.read(_MOST_BYTES + 1)
    except OSError as error:
        raise HostError(f"{source}: cannot be read: {error.strerror}") from error
    if len(data) > _MOST_BYTES:
        raise UsageError(f"{source}: expected a file of a known size, or at most {_MOST_BYTES} bytes, got more")
    return data


def _in_memory(file: Path, name: str) -> bytes:
    """Read a file into memory. :raise UsageError: it is too large."""
    if (size := file.stat().st_size) > _MOST_BYTES:
        raise UsageError(f"{name}: it has {size} bytes, which is too much for memory; give `get` a target")
    return file.read_bytes()


def _write(file: Path, target: Path, *, executable: bool) -> None:
    """Copy a file. A new one is executable if `executable` is set and the umask allows it."""
    try:
        with (
            file.open("rb") as source,
            open(target, "wb", opener=lambda path, flags: os.open(path, flags, 0o777 if executable else 0o666)) as made,
        ):
            shutil.copyfileobj(source, made)
    except OSError as error:
        raise HostError(f"{target}: cannot be written: {error.strerror}") from error
