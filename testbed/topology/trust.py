"""Whose `qemu-args` reach QEMU: those of files that the caller has trusted by their content, and no others.

The list of trusted files' SHA-256 is a file of the caller's own, which `testbed trust` writes; the environment may name more. What a
file `extends` or takes in is a file to be trusted, too: a value knows all texts that it was read from.
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

# Holds SHA-256 hashes of files, with commas or spaces between, and never a word for all files.
VARIABLE = "TESTBED_TRUST_QEMU_ARGS"
_HASH = re.compile(r"[0-9a-f]{64}")
_MOST_BYTES = 1 << 20

# The texts that a value was read from: the name of each one's file by its SHA-256, first the file that was asked for. Not by name: a file
# that is read twice may have changed in between.
Sources = Mapping[str, str]


class QemuArgs(tuple[str, ...]):
    """Words for QEMU's command line, from `sources`, all of which the caller trusts or not (`trusted`)."""

    sources: Sources
    trusted: bool


def content_hash(text: str) -> str:
    """SHA-256 of a text, hex; of one that was read from a file, that of the file."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def is_hash(text: str) -> bool:
    return _HASH.fullmatch(text) is not None


def with_trust(words: Iterable[str], sources: Sources) -> QemuArgs:
    """Words that were read from `sources`, trusted where all of these are; those from nowhere never are.

    :raise HostError: the list of trusted files is somebody else's, or damaged.
    """
    known = {*_named(), *list_trusted()}
    return _words(words, sources, trusted=bool(sources) and known.issuperset(sources))


def trusted_args(words: Iterable[str]) -> QemuArgs:
    """Words of an order of our own, whose maker has checked them."""
    return _words(words, {}, trusted=True)


def _words(words: Iterable[str], sources: Sources, *, trusted: bool) -> QemuArgs:
    found = QemuArgs(words)
    found.sources, found.trusted = dict(sources), trusted
    return found


def are_trusted(words: tuple[str, ...]) -> bool:
    """Whether QEMU may get them; those that no reader of files has judged are not trusted."""
    return not words or (isinstance(words, QemuArgs) and words.trusted)


def sources_of(words: tuple[str, ...]) -> Sources:
    """Where words are from; nothing, where that is not known."""
    return words.sources if isinstance(words, QemuArgs) else {}


def check_trusted(words: tuple[str, ...]) -> None:
    """:raise UsageError: QEMU must not get them; says what to do."""
    if are_trusted(words):
        return
    origin = sources_of(words)
    first = next(iter(origin.values()), None)
    if first is None:
        advice = "they are from no file: write them into a topology file, and trust that with `testbed trust FILE`"
    else:
        named = [first] if Path(first).is_file() else origin
        advice = f"if you have read {', '.join(origin.values())} and trust it: testbed trust {shlex.join(named)}"
    if said := os.environ.get(VARIABLE):
        wrong = [one for one in _split(said) if not is_hash(one)]
        advice += f"; {VARIABLE}={wrong[0]} trusts nothing, it takes SHA-256 hashes of files" if wrong else ""
    raise UsageError(
        f"qemu-args: they can do to this machine what QEMU can, and nobody checks them: {shlex.join(words)}; expected them from a file "
        f"that you trust; {advice}"
    )


def _split(said: str) -> list[str]:
    return [one for one in re.split(r"[\s,]+", said) if one]


def _named() -> list[str]:
    return [one for one in _split(os.environ.get(VARIABLE, "")) if is_hash(one)]


def variable_with(*hashes: str) -> str:
    """What the variable says with more hashes."""
    return ",".join((*_named(), *hashes))


# The list ---------------------------------------------------------------------------------------------------------------------------


def trust_file() -> Path:
    """Where the list is: a hash and a file's name, as `sha256sum` writes them, in each line.

    :raise HostError: the user has no home.
    """
    return paths.config_folder() / "trusted"


def list_trusted() -> dict[str, str]:
    """The trusted hashes, each with the name of the file that had it.

    :raise HostError: the list is somebody else's, or damaged.
    """
    try:
        path = trust_file()
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except OSError as error:
        raise HostError(f"{path}: cannot be read: {error.strerror}") from error
    with os.fdopen(descriptor, "rb") as opened:
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode) or found.st_uid != os.geteuid() or found.st_mode & 0o022:
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
    """Add files to the list.

    :raise HostError: it cannot be written.
    """
    _write({**list_trusted(), **sources})


def forget_hashes(hashes: Iterable[str]) -> None:
    """Take files from the list.

    :raise HostError: it cannot be written.
    """
    gone = set(hashes)
    _write({one: name for one, name in list_trusted().items() if one not in gone})


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
