"""Finds and makes folders: cache, runs and sockets (XDG base directories), and those that ship with the product."""

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

# sockaddr_un.sun_path has 108 bytes with the final NUL (unix(7)); the longest name below the runtime folder is that of
# a network's socket, SESSION/lan-N/GUEST/NETWORK.out.
_LONGEST_SOCKET_FOLDER = 107 - 1 - 55
_ADMISSION = "TESTBED_ADMISSION"
# The folders of the cache; each is made here, before other code makes it with another mode.
_CACHE_FOLDERS = ("built", "images", "initramfs", "kernels", "probes", "reach", "scratch", "sources", "templates")
_FOR_OTHERS, _WRITABLE = 0o077, 0o022


@dataclass(frozen=True, slots=True, kw_only=True)
class Folders:
    """`cache`: images, kernels, templates, scratch disks.

    `state`: runs. `runtime`: sockets, mode 0700. `admission`: tickets of guests, shared by all sessions of an account.
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
    """Return the folders of this user, from `TESTBED_CACHE`, `TESTBED_STATE`, then XDG; makes the cache's if it does
    not exist.

    The admission folder does not depend on XDG_RUNTIME_DIR: all guests share one machine. Only tests choose another
    (`TESTBED_ADMISSION`).

    :raise HostError: a folder cannot be made, or the runtime folder belongs to another user.
    """
    result = Folders(
        cache=cache_folder(),
        state=Path(os.environ.get("TESTBED_STATE") or _home(platformdirs.user_state_path)).absolute(),
        runtime=_private(Path(os.environ.get("XDG_RUNTIME_DIR") or _account_runtime()).absolute(), "XDG_RUNTIME_DIR"),
        admission=Path(os.environ.get(_ADMISSION) or _private(_account_runtime(), _ADMISSION) / "admission").absolute(),
    )
    if result.state.exists() and not result.state.is_dir():
        raise HostError(f"{result.state}: expected a folder, got something else; name another with TESTBED_STATE")
    _keep_private(result.cache, "TESTBED_CACHE", chosen=bool(os.environ.get("TESTBED_CACHE")))
    for name in _CACHE_FOLDERS:
        _keep_private(result.cache / name, "TESTBED_CACHE")
    _check_above(result.state, "TESTBED_STATE")  # even if it does not exist yet
    if result.state.is_dir():
        _keep_private(result.state, "TESTBED_STATE", chosen=bool(os.environ.get("TESTBED_STATE")))
    for folder in (result.runs, result.snapshots):
        if folder.is_dir():
            _keep_private(folder, "TESTBED_STATE")
    if os.environ.get(_ADMISSION):
        _keep_private(result.admission, _ADMISSION, chosen=True)
    return result


def make_folder(folder: Path) -> None:
    """Make a folder, and those above it, if they do not exist; only this user can enter them.

    :raise OSError: it cannot be made.
    """
    for missing in reversed([one for one in (folder, *folder.parents) if not one.exists()]):
        missing.mkdir(mode=0o700, exist_ok=True)


def _keep_private(folder: Path, variable: str, *, chosen: bool = False) -> None:
    """Make a folder that no other user can enter; folders that older versions made for all users are changed.

    The testbed executes and trusts what is in there, and waits for its locks. `chosen`: the user has named the folder
    by `variable`, perhaps for other things as well; its mode stays, but no other user may write to it. What the testbed
    makes in it is private.

    :raise HostError: it cannot be made, or other users can change it.
    """
    try:
        make_folder(folder)
        _check_above(folder, variable)
        status = folder.stat()
        mode = stat.S_IMODE(status.st_mode)
        if mode & _FOR_OTHERS and status.st_uid == os.geteuid() and not chosen:
            mode &= ~_FOR_OTHERS
            folder.chmod(mode)
    except OSError as error:
        raise HostError(f"{folder}: cannot be made: {error.strerror}; name another with {variable}") from error
    # Root is trusted with everything, and trusts the owner of a folder that it is told to use, as in a container or by
    # sudo.
    owned = os.geteuid() == 0 or status.st_uid in (os.geteuid(), 0)
    if not owned or mode & _WRITABLE:
        raise HostError(
            f"{folder}: expected a folder that only uid {os.geteuid()} may write to, got mode {mode:04o} of uid "
            f"{status.st_uid}; take the others' rights away with: chmod go-w {shlex.quote(str(folder))}; or name "
            f"another with {variable}"
        )


def _check_above(folder: Path, variable: str) -> None:
    """:raise HostError: every user could replace the folder with another."""
    for above in folder.resolve().parents:
        if above.exists() and _is_world_writable(above):
            raise HostError(
                f"{above}: expected a folder in which other users cannot put another {folder.name} in the place of "
                f"yours, got one that everybody may write to; chmod +t {shlex.quote(str(above))}; or name another "
                f"folder with {variable}"
            )


def _is_world_writable(folder: Path) -> bool:
    """Whether any user may rename what others have in a folder."""
    mode = folder.stat().st_mode
    return bool(mode & stat.S_IWOTH) and not mode & stat.S_ISVTX


def cache_folder() -> Path:
    """Return the cache folder of this user, which may not exist yet.

    :raise HostError: the user has no home, and TESTBED_CACHE is not set.
    """
    return Path(os.environ.get("TESTBED_CACHE") or _home(platformdirs.user_cache_path)).absolute()


# Environment variables that name a file or folder; PATH names several.
_PATH_VARIABLES = (
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
    """Make the paths in this process's environment absolute, before it changes its working directory."""
    for name in _PATH_VARIABLES:
        value = os.environ.get(name, "")
        places = value.split(os.pathsep) if name == "PATH" else [value]
        # A program name without a slash is searched in PATH; an empty variable counts as unset.
        if value and (name != "TESTBED_QEMU" or "/" in value):
            absolute = (os.path.abspath(place) for place in places)  # noqa: PTH100 - links stay what they are
            os.environ[name] = os.pathsep.join(absolute)


def config_folder() -> Path:
    """Return the settings folder of this user, which may not exist yet.

    :raise HostError: the user has no home, and TESTBED_CONFIG is not set.
    """
    return Path(os.environ.get("TESTBED_CONFIG") or _home(platformdirs.user_config_path))


def image_names(images: Path) -> tuple[str, ...]:
    """List the guest images that a folder has recipes for; the kernel table is in the same folder."""
    return tuple(sorted(path.stem for path in images.glob("*.yaml") if path.stem != "kernels"))


def new_run_folder(runs: Path) -> Path:
    """Make a new folder for one run, named by its time.

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
    """Create an empty file where another user may have put a link or a pipe: a link is not followed, and a pipe does
    not block.

    :raise OSError: it cannot be made.
    """
    return os.fdopen(
        os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, mode), "wb"
    )


def open_file(path: Path) -> BinaryIO:
    """Open a regular file for reading where another user may have put a link or a pipe: a link is not followed, and a
    pipe does not block.

    :raise OSError: it cannot be opened, or is not a regular file.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "expected a regular file", str(path))
    return os.fdopen(descriptor, "rb")


def _home(place: Callable[[str], Path]) -> Path:
    try:
        return place("testbed")
    except RuntimeError:  # no HOME, and an account without an entry in passwd, as in containers
        raise HostError(
            f"uid {os.getuid()} has no home on this machine; set HOME, or TESTBED_CACHE and TESTBED_STATE"
        ) from None


def _account_runtime() -> Path:
    return Path(f"/run/user/{os.getuid()}")


def _private(above: Path, variable: str) -> Path:
    """Return the testbed's folder in `above`, else in /tmp.

    `variable`: the environment variable that names another place. `above` is not used if another user owns it, as after
    `su`: that user could replace the folder at any time.

    :raise HostError: neither folder can be made private.
    """
    folder = above / "testbed"
    if not _is_safe(above) or len(os.fsencode(folder)) > _LONGEST_SOCKET_FOLDER or not _make_private(folder):
        folder = Path(f"/tmp/testbed-{os.getuid()}")  # noqa: S108 - checked below to be ours and private
        if not _make_private(folder):
            raise HostError(
                f"{folder}: expected a folder of uid {os.getuid()} with mode 0700; remove it, or set {variable}"
            )
    return folder


def _is_safe(folder: Path) -> bool:
    """Tell whether it is a folder in which no other user can rename entries."""
    try:
        status = folder.stat()
        return stat.S_ISDIR(status.st_mode) and status.st_uid in (os.getuid(), 0) and not _is_world_writable(folder)
    except OSError:
        return False


def _make_private(folder: Path) -> bool:
    """Make `folder` private; False if it cannot be made, is a link, or belongs to another user."""
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        status = folder.lstat()
        if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.getuid():
            return False
        folder.chmod(0o700)
    except OSError:
        return False
    return True


def shipped(name: str) -> Path:
    """Return a folder that ships with the product (`images`, `topologies`): from the installed package, else from the
    checkout.

    :raise HostError: neither has it.
    """
    package = Path(__file__).parents[1]
    for candidate in (package / "_shipped" / name, package.parent / name):
        if candidate.is_dir():
            return candidate
    raise HostError(
        f"{name}: expected beside {package.parent} or inside the installed package, found neither; reinstall the "
        "testbed"
    )
