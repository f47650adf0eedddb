"""Decides which `qemu-args` reach QEMU: only those from files whose content the user has trusted.

`testbed trust` writes the SHA-256 of trusted files into a file of the user; the environment can name more. Files that
a file extends or includes must be trusted, too: a value knows all files that it was read from.
"""

from __future__ import annotations

import hashlib
import os
import re
import shlex
import stat
from collections.abc import Iterable, Mapping
from pathlib import Path

from testbed.errors import HostError, UsageError
from testbed.host import paths
from testbed.text import printable

# SHA-256 hashes of files, separated by commas or spaces. There is deliberately no value that means all files.
VARIABLE = "TESTBED_TRUST_QEMU_ARGS"
_HASH = re.compile(r"[0-9a-f]{64}")
_MOST_BYTES = 1 << 20

# The files that a value was read from: their names by the SHA-256 of their text, the file that was asked for first.
# Not by name, because a file that is read twice may have changed in between.
Sources = Mapping[str, str]


class QemuArgs(tuple[str, ...]):
    """Arguments for QEMU, and the files that they are from. `trusted`: the user trusts all of these files."""

    sources: Sources
    trusted: bool


def content_hash(text: str) -> str:
    """Return the SHA-256 of a text in hex; for the text of a file, it is that of the file."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def is_hash(text: str) -> bool:
    return _HASH.fullmatch(text) is not None


def with_trust(arguments: Iterable[str], sources: Sources) -> QemuArgs:
    """Mark arguments as trusted if all files that they were read from are; without sources they never are.

    :raise HostError: the list of trusted files belongs to another user, or is damaged.
    """
    known = {*_hashes_in_environment(), *list_trusted()}
    return _make(arguments, sources, trusted=bool(sources) and known.issuperset(sources))


def trusted_args(arguments: Iterable[str]) -> QemuArgs:
    """Mark the arguments of a launch spec of our own as trusted; they were checked when it was made."""
    return _make(arguments, {}, trusted=True)


def _make(arguments: Iterable[str], sources: Sources, *, trusted: bool) -> QemuArgs:
    made = QemuArgs(arguments)
    made.sources, made.trusted = dict(sources), trusted
    return made


def are_trusted(arguments: tuple[str, ...]) -> bool:
    """Return whether QEMU may get them. A plain tuple, whose sources nobody has checked, is not trusted."""
    return not arguments or (isinstance(arguments, QemuArgs) and arguments.trusted)


def sources_of(arguments: tuple[str, ...]) -> Sources:
    """Return the files that arguments are from; empty if that is not known."""
    return arguments.sources if isinstance(arguments, QemuArgs) else {}


def check_trusted(arguments: tuple[str, ...]) -> None:
    """Refuse arguments that are not trusted.

    :raise UsageError: QEMU must not get them; the message says how to trust them.
    """
    if are_trusted(arguments):
        return
    origin = sources_of(arguments)
    first = next(iter(origin.values()), None)
    if first is None:
        advice = "they are from no file: write them into a topology file, and trust that with `testbed trust FILE`"
    else:
        named = [first] if Path(first).is_file() else origin
        advice = f"if you have read {', '.join(origin.values())} and trust it: testbed trust {shlex.join(named)}"
    if value := os.environ.get(VARIABLE):
        wrong = [word for word in _split(value) if not is_hash(word)]
        advice += f"; {VARIABLE}={wrong[0]} trusts nothing, it takes SHA-256 hashes of files" if wrong else ""
    raise UsageError(
        f"qemu-args: they can do to this machine what QEMU can, and nobody checks them: {shlex.join(arguments)}; "
        f"expected them from a file that you trust; {advice}"
    )


def _split(value: str) -> list[str]:
    return [word for word in re.split(r"[\s,]+", value) if word]


def _hashes_in_environment() -> list[str]:
    return [word for word in _split(os.environ.get(VARIABLE, "")) if is_hash(word)]


def variable_with(*hashes: str) -> str:
    """Return the value of the variable with these hashes added."""
    return ",".join((*_hashes_in_environment(), *hashes))


# The list -------------------------------------------------------------------------------------------------------------


def trust_file() -> Path:
    """Return the path of the list. Each line has a hash and the name of a file, as `sha256sum` writes them.

    :raise HostError: the user has no home directory.
    """
    return paths.config_folder() / "trusted"


def list_trusted() -> dict[str, str]:
    """Read the trusted hashes, each with the name that its file had.

    :raise HostError: the list belongs to another user, or is damaged.
    """
    try:
        path = trust_file()
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except OSError as error:
        raise HostError(f"{path}: cannot be read: {error.strerror}") from error
    with os.fdopen(descriptor, "rb") as opened:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode) or status.st_uid != os.geteuid() or status.st_mode & 0o022:
            raise HostError(
                f"{path}: expected a file of uid {os.geteuid()} that nobody else may write; remove it, or mend its mode"
            )
        data = opened.read(_MOST_BYTES + 1)
    lines = data.decode(errors="replace").splitlines()
    if len(data) > _MOST_BYTES or (wrong := next((line for line in lines if not _HASH.match(line)), None)) is not None:
        got = wrong[:80] if len(data) <= _MOST_BYTES and wrong is not None else f"more than {_MOST_BYTES} bytes"
        raise HostError(f"{path}: expected a SHA-256 and a file's name in each line, got {got!r}")
    return {line[:64]: line[64:].strip() for line in lines}


def trust_sources(sources: Sources) -> None:
    """Add files to the list of trusted files.

    :raise HostError: the list cannot be written.
    """
    _write({**list_trusted(), **sources})


def forget_hashes(hashes: Iterable[str]) -> None:
    """Remove files from the list of trusted files.

    :raise HostError: the list cannot be written.
    """
    removed = set(hashes)
    _write({sha256: name for sha256, name in list_trusted().items() if sha256 not in removed})


def _write(names: Mapping[str, str]) -> None:
    path = trust_file()
    unfinished = path.with_name(f"{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        unfinished.unlink(missing_ok=True)
        with paths.create_file(unfinished, 0o600) as opened:
            opened.write(
                "".join(f"{one}  {' '.join(printable(name).split())}\n" for one, name in names.items()).encode()
            )
        unfinished.replace(path)
    except OSError as error:
        raise HostError(f"{path}: cannot be written: {error.strerror}") from error
