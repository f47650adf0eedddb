"""Where things live: caches, runs, sockets (XDG base directories), and the files that ship with the product."""

from __future__ import annotations

import errno
import os
import secrets
import shlex
import stat
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import BinaryIO

import platformdirs

from testbed.errors import HostError

# sockaddr_un.sun_path holds 108 bytes with its final NUL (unix(7)); the longest name below the runtime folder is that of a network,
# SESSION/lan-N/GUEST/NETWORK.out.
_LONGEST_SOCKET_FOLDER = 107 - 1 - 55
_ADMISSION = "TESTBED_ADMISSION"
# What the cache has: each is made before anything else makes it, with its own idea of modes.
_ROOMS = ("built", "images", "initramfs", "kernels", "probes", "reach", "scratch", "sources", "templates")
_FOR_OTHERS, _WRITABLE = 0o077, 0o022


@dataclass(frozen=True, slots=True, kw_only=True)
class Folders:
    """`cache`: images, kernels, templates, scratch disks. `state`: runs. `runtime`: sockets, mode 0700. `admission`: who may start guests,
    the same for all sessions of an account.
    """

    cache: Path
    state: Path
    runtime: Path
    admission: Path

    @property
    def runs(self) -> Path:
        return self.state / "runs"

    @property
    def snapshots(self) -> Path:
        return self.state / "snapshots"

    @property
    def scratch(self) -> Path:
        return self.cache / "scratch"


def folders() -> Folders:
    """The folders of this user, from `TESTBED_CACHE`, `TESTBED_STATE`, then XDG; that of the cache is created where it is missing.

    Who has guests is asked for in one place, whatever XDG_RUNTIME_DIR says: they share one machine. Only tests name another
    (`TESTBED_ADMISSION`).

    :raise HostError: one cannot be made, or the runtime folder belongs to somebody else.
    """
    found = Folders(
        cache=cache_folder(),
        state=Path(os.environ.get("TESTBED_STATE") or _home(platformdirs.user_state_path)).absolute(),
        runtime=_private(Path(os.environ.get("XDG_RUNTIME_DIR") or _of_account()).absolute(), "XDG_RUNTIME_DIR"),
        admission=Path(os.environ.get(_ADMISSION) or _private(_of_account(), _ADMISSION) / "admission").absolute(),
    )
    if found.state.exists() and not found.state.is_dir():
        raise HostError(f"{found.state}: expected a folder, got something else; name another with TESTBED_STATE")
    _keep_private(found.cache, "TESTBED_CACHE", chosen=bool(os.environ.get("TESTBED_CACHE")))
    for room in _ROOMS:
        _keep_private(found.cache / room, "TESTBED_CACHE")
    _check_above(found.state, "TESTBED_STATE")  # also of one that the first run will make
    if found.state.is_dir():
        _keep_private(found.state, "TESTBED_STATE", chosen=bool(os.environ.get("TESTBED_STATE")))
    for folder in (found.runs, found.snapshots):
        if folder.is_dir():
            _keep_private(folder, "TESTBED_STATE")
    if os.environ.get(_ADMISSION):
        _keep_private(found.admission, _ADMISSION, chosen=True)
    return found


def make_folder(folder: Path) -> None:
    """Make a folder that is not there, and those above it: only this user enters them.

    :raise OSError: it cannot be made.
    """
    for missing in reversed([one for one in (folder, *folder.parents) if not one.exists()]):
        missing.mkdir(mode=0o700, exist_ok=True)


def _keep_private(folder: Path, variable: str, *, chosen: bool = False) -> None:
    """Make a folder that no other user enters; what older versions have made for everybody is mended. What is in there is run and believed,
    and its locks are waited for.

    `chosen`: the user has named it by `variable`, perhaps for other things as well: its mode is the user's affair, but only its owner may
    put files there. What the testbed makes in it is private.

    :raise HostError: it cannot be made, or other users may change it.
    """
    try:
        make_folder(folder)
        _check_above(folder, variable)
        found = folder.stat()
        mode = stat.S_IMODE(found.st_mode)
        if mode & _FOR_OTHERS and found.st_uid == os.geteuid() and not chosen:
            mode &= ~_FOR_OTHERS
            folder.chmod(mode)
    except OSError as error:
        raise HostError(f"{folder}: cannot be made: {error.strerror}; name another with {variable}") from error
    # Root is trusted with everything, and trusts who has a folder that it is told to use, as in a container or by sudo.
    owned = os.geteuid() == 0 or found.st_uid in (os.geteuid(), 0)
    if not owned or mode & _WRITABLE:
        raise HostError(
            f"{folder}: expected a folder that only uid {os.geteuid()} may write to, got mode {mode:04o} of uid {found.st_uid}; take the "
            f"others' rights away with: chmod go-w {shlex.quote(str(folder))}; or name another with {variable}"
        )


def _check_above(folder: Path, variable: str) -> None:
    """:raise HostError: everybody could put another folder in its place."""
    for above in folder.resolve().parents:
        if above.exists() and _is_for_all(above):
            raise HostError(
                f"{above}: expected a folder in which other users cannot put another {folder.name} in the place of yours, got one that "
                f"everybody may write to; chmod +t {shlex.quote(str(above))}; or name another folder with {variable}"
            )


def _is_for_all(folder: Path) -> bool:
    """Whether any user may rename what others have in a folder."""
    mode = folder.stat().st_mode
    return bool(mode & stat.S_IWOTH) and not mode & stat.S_ISVTX


def cache_folder() -> Path:
    """Where the cache of this user is, or will be.

    :raise HostError: the user has no home, and TESTBED_CACHE names no other place.
    """
    return Path(os.environ.get("TESTBED_CACHE") or _home(platformdirs.user_cache_path)).absolute()


# Variables that name a file or folder of this machine; PATH names several.
_PLACES = (
    "TESTBED_CACHE",
    "TESTBED_STATE",
    _ADMISSION,
    "TESTBED_QEMU",
    "XDG_CACHE_HOME",
    "XDG_STATE_HOME",
    "XDG_RUNTIME_DIR",
    "HOME",
    "TMPDIR",
    "PATH",
)


def resolve_environment() -> None:
    """Make the places that this process's environment names absolute: it is about to work in another folder."""
    for name in _PLACES:
        said = os.environ.get(name, "")
        places = said.split(os.pathsep) if name == "PATH" else [said]
        # A program without a slash is looked for in PATH; an empty variable means nothing.
        if said and (name != "TESTBED_QEMU" or "/" in said):
            os.environ[name] = os.pathsep.join(os.path.abspath(place) for place in places)  # noqa: PTH100 - links stay what they are


def config_folder() -> Path:
    """Where the settings of this user are, or will be.

    :raise HostError: the user has no home, and TESTBED_CONFIG names no other place.
    """
    return Path(os.environ.get("TESTBED_CONFIG") or _home(platformdirs.user_config_path))


def image_names(images: Path) -> tuple[str, ...]:
    """The guest images that a folder has recipes of; the kernel table is there, too."""
    return tuple(sorted(path.stem for path in images.glob("*.yaml") if path.stem != "kernels"))


def new_run_folder(runs: Path) -> Path:
    """A new folder for one run, named by its time.

    :raise HostError: it cannot be made.
    """
    folder = runs / f"{datetime.now(UTC):%Y%m%dT%H%M%SZ}-{secrets.token_hex(2)}"
    try:
        make_folder(folder.parent)
        folder.mkdir(mode=0o700)
    except OSError as error:
        raise HostError(f"{folder}: cannot be made: {error.strerror}; name another place with TESTBED_STATE") from error
    return folder


def create_file(path: Path, mode: int = 0o666) -> BinaryIO:
    """An empty file, where somebody else may have put a link or a pipe: neither is followed, or waited for.

    :raise OSError: it cannot be made.
    """
    return os.fdopen(
        os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, mode), "wb"
    )


def open_file(path: Path) -> BinaryIO:
    """A regular file to read, where somebody else may have put a link or a pipe: neither is followed, or waited for.

    :raise OSError: it cannot be opened, or is none.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "expected a regular file", str(path))
    return os.fdopen(descriptor, "rb")


def _home(place: Callable[[str], Path]) -> Path:
    try:
        return place("testbed")
    except RuntimeError:  # no HOME, and an account that this machine does not know, as containers have
        raise HostError(
            f"uid {os.getuid()} has no home on this machine; set HOME, or TESTBED_CACHE and TESTBED_STATE"
        ) from None


def _of_account() -> Path:
    return Path(f"/run/user/{os.getuid()}")


def _private(above: Path, variable: str) -> Path:
    """The testbed's folder in `above`, else in /tmp, which is everybody's. `variable`: names another place, and where that is another
    user's, as after `su`, he could put a folder of his own there at any time.
    """
    folder = above / "testbed"
    if not _is_ours(above) or len(os.fsencode(folder)) > _LONGEST_SOCKET_FOLDER or not _usable(folder):
        folder = Path(f"/tmp/testbed-{os.getuid()}")  # noqa: S108 - checked below to be ours and private
        if not _usable(folder):
            raise HostError(
                f"{folder}: expected a folder of uid {os.getuid()} with mode 0700; remove it, or set {variable}"
            )
    return folder


def _is_ours(folder: Path) -> bool:
    """Whether it is a folder in which no other user renames anything."""
    try:
        found = folder.stat()
        return stat.S_ISDIR(found.st_mode) and found.st_uid in (os.getuid(), 0) and not _is_for_all(folder)
    except OSError:
        return False


def _usable(folder: Path) -> bool:
    """Make `folder` private; False if it cannot be made, or is a link or somebody else's."""
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        found = folder.lstat()
        if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid():
            return False
        folder.chmod(0o700)
    except OSError:
        return False
    return True


def shipped(name: str) -> Path:
    """A folder that ships with the product (`images`, `topologies`): from the installed package, else from the checkout.

    :raise HostError: neither has it.
    """
    package = Path(__file__).parents[1]
    for candidate in (package / "_shipped" / name, package.parent / name):
        if candidate.is_dir():
            return candidate
    raise HostError(
        f"{name}: expected beside {package.parent} or inside the installed package, found neither; reinstall the testbed"
    )
