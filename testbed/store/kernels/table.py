"""Names the kernels to choose from: rows of `images/kernels.yaml`, kernels that were built here, and files of the
user.
"""

from __future__ import annotations

import enum
import re
from dataclasses import dataclass
from pathlib import Path

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from testbed.errors import HostError, UsageError
from testbed.host import paths


class Series(enum.Enum):
    """Whether the patch series is in a kernel."""

    BEFORE = "before"
    AFTER = "after"
    UNKNOWN = "unknown"


# The series' own mark: a command has the memory cgroup of its issuer. v5 as posted calls it mem_css.
_CHARGES_ISSUER = re.compile(r"->(?:memcg_css|mem_css)\b")


def has_series(loop_c: str) -> bool:
    """Whether drivers/block/loop.c has the series, and so charges the issuer."""
    return _CHARGES_ISSUER.search(loop_c) is not None


@dataclass(frozen=True, slots=True, kw_only=True)
class DebianKernel:
    """A row of the table: the newest `package` in `suites`; `source`: the package with its source, or empty."""

    name: str
    suites: tuple[str, ...]
    package: str
    series: Series
    source: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalKernel:
    """Files of the user: .deb packages, or one bzImage and optionally its modules folder (`lib/modules/RELEASE`)."""

    name: str
    debs: tuple[Path, ...] = ()
    bzimage: Path | None = None
    modules: Path | None = None
    series: Series = Series.UNKNOWN


@dataclass(frozen=True, slots=True, kw_only=True)
class BuiltKernel:
    """What `testbed kernel build` made under this name; the cache has the rest, also whether the series is in it."""

    name: str
    series: Series = Series.UNKNOWN

    @property
    def spec(self) -> str:
        """The kernel as a command line names it."""
        return f"{BUILT}{self.name}"


BUILT = "built-"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,79}")


def built_name(name: str) -> str:
    """Return `name` if a built kernel may have it.

    :raise UsageError: it may not.
    """
    if not _NAME.fullmatch(name):
        raise UsageError(
            f"kernel {name!r}: expected a name of at most 80 letters, digits and . _ - that begins "
            "with a letter or digit"
        )
    return name


_KEY_CHARACTERS = 8


def unique_name(stem: str, key: str) -> str:
    """Return a valid name that no other kernel has, made of as much of `stem` as is allowed, and the start of the
    key.
    """
    fitting = re.sub(r"[^A-Za-z0-9._-]", "-", stem).lstrip("._-") or "kernel"
    return built_name(f"{fitting[: 79 - _KEY_CHARACTERS]}-{key[:_KEY_CHARACTERS]}")


Kernel = DebianKernel | LocalKernel | BuiltKernel


@dataclass(frozen=True, slots=True, kw_only=True)
class KernelTable:
    """The table, and which of its rows are compared by default."""

    rows: dict[str, DebianKernel]
    base: str
    patched: str

    def resolve(self, spec: str) -> Kernel:
        """Return the kernel that a command line names.

        It may be the name of a row, `built-NAME`, `FILE.deb[:FILE.deb...]`, and `BZIMAGE[:MODULES_FOLDER]`.

        :raise UsageError: it names no kernel; the message says what is expected.
        """
        if spec in self.rows:
            return self.rows[spec]
        if spec.startswith(BUILT):
            return BuiltKernel(name=built_name(spec.removeprefix(BUILT)))
        paths = split_files(spec)
        if paths is None:
            names = ", ".join(self.rows)
            raise UsageError(
                f"kernel {spec!r}: expected one of {names}, or built-NAME, or BZIMAGE[:MODULES_FOLDER], "
                f"or FILE.deb[:FILE.deb]; {_missing(spec)}"
            )
        if other := next((path for path in paths if not path.is_file() and not path.is_dir()), None):
            raise UsageError(
                f"kernel {spec!r}: expected BZIMAGE[:MODULES_FOLDER] or FILE.deb[:FILE.deb], "
                f"got what is no file: {other}"
            )
        if all(path.suffix == ".deb" and path.is_file() for path in paths):
            return LocalKernel(name=paths[0].name, debs=paths)
        if len(paths) > 2 or paths[0].is_dir() or (len(paths) == 2 and not paths[1].is_dir()):
            raise UsageError(f"kernel {spec!r}: expected BZIMAGE[:MODULES_FOLDER] or FILE.deb[:FILE.deb]")
        return LocalKernel(name=paths[0].name, bzimage=paths[0], modules=paths[1] if len(paths) == 2 else None)

    def absolute(self, spec: str) -> str:
        """Return `spec` with absolute paths, for a process that works in another folder.

        :raise UsageError: this user may not access a path.
        """
        named = spec in self.rows or spec.startswith(BUILT)
        paths = None if named else split_files(spec)
        return spec if paths is None else ":".join(str(path.absolute()) for path in paths)


def split_files(spec: str) -> tuple[Path, ...] | None:
    """Split `FILE[:FILE...]` into files; paths may have colons, too, so the first is as long as possible. None: not
    found.

    :raise UsageError: this user may not access a path.
    """
    # Positions from which no split succeeds; each is tried once, for a spec can be split in very many ways.
    failed: set[int] = set()

    def split(begin: int) -> tuple[Path, ...] | None:
        for end in _ends(spec[begin:]):
            first = _path(spec[begin : begin + end])
            if begin + end < len(spec) and begin + end + 1 in failed:
                continue
            if spec[begin:] and _exists(first):
                others = () if begin + end == len(spec) else split(begin + end + 1)
                if others is not None:
                    return (first, *others)
        failed.add(begin)
        return None

    return split(0)


def short_name(spec: str) -> str:
    """Return the short name of a kernel: the name of its first file, or the spec itself."""
    found = split_files(spec)
    return found[0].name if found else spec


def _missing(spec: str) -> str:
    """Describe which part of `FILE[:FILE...]` does not exist."""
    there = next((end for end in _ends(spec) if _exists(_path(spec[:end]))), None)
    return f"{spec[:there]} is there, {spec[there + 1 :]!r} is not" if there else "there is no such file"


def _ends(spec: str) -> tuple[int, ...]:
    """List the positions where the first file of `FILE[:FILE...]` may end, the last one first."""
    return (len(spec), *(at for at in range(len(spec) - 1, 0, -1) if spec[at] == ":"))


def _path(text: str) -> Path:
    """Expand `~` to a home; of an unknown user it is left as it is."""
    try:
        return Path(text).expanduser()
    except RuntimeError:
        return Path(text)


def _exists(path: Path) -> bool:
    """:raise UsageError: this user may not access the path."""
    try:
        return path.exists()
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}; give a path that this user may read") from error


class _Row(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)
    suites: tuple[str, ...]
    package: str
    series: Series
    source: str = ""


class _File(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)
    version: int
    base: str
    patched: str
    kernels: dict[str, _Row]


def load_table(path: Path) -> KernelTable:
    """Read a kernel table from a file.

    :raise HostError: the file is missing or wrong; it ships with the product.
    """
    try:
        read = _File.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")))
    except (OSError, yaml.YAMLError, ValidationError) as error:
        raise HostError(f"{path}: cannot be read as a kernel table: {error}") from error
    rows = {name: DebianKernel(name=name, **row.model_dump()) for name, row in read.kernels.items()}
    return KernelTable(rows=rows, base=read.base, patched=read.patched)


def shipped_table() -> KernelTable:
    """Return the kernel table that ships with the testbed, `images/kernels.yaml`.

    :raise HostError: as `load_table`.
    """
    return load_table(paths.shipped("images") / "kernels.yaml")
