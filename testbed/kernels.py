"""Which kernels there are to choose from: the table in `images/kernels.yaml`, those that were built here, and files that the user names."""

from __future__ import annotations

import enum
import re
from dataclasses import dataclass
from pathlib import Path

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from testbed.errors import HostError, UsageError


class Series(enum.Enum):
    """Whether the patch series is in a kernel."""

    BEFORE = "before"
    AFTER = "after"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True, kw_only=True)
class DebianKernel:
    """A row of the table: the newest `package` of `suites`; `source`: the package with its source, or empty."""

    name: str
    suites: tuple[str, ...]
    package: str
    series: Series
    source: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalKernel:
    """Files of the user: .deb packages, or one bzImage and perhaps the folder of its modules (`lib/modules/RELEASE`)."""

    name: str
    debs: tuple[Path, ...] = ()
    bzimage: Path | None = None
    modules: Path | None = None
    series: Series = Series.UNKNOWN


@dataclass(frozen=True, slots=True, kw_only=True)
class BuiltKernel:
    """What `testbed kernel build` made under this name; the cache knows the rest of it, and whether the series is in it."""

    name: str
    series: Series = Series.UNKNOWN

    @property
    def spec(self) -> str:
        """As a command line names it."""
        return f"{BUILT}{self.name}"


BUILT = "built-"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,79}")


def built_name(name: str) -> str:
    """`name`, if a kernel that is built may be called so.

    :raise UsageError: it may not.
    """
    if not _NAME.fullmatch(name):
        raise UsageError(f"kernel {name!r}: expected a name of at most 80 letters, digits and . _ - that begins with a letter or digit")
    return name


_KEY_CHARACTERS = 8


def named_by_key(stem: str, key: str) -> str:
    """A name that a kernel may have, and that no other has: of a long or strange `stem` what fits, and of the key its first characters."""
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
        """The kernel meant by a command line: a row's name, `built-NAME`, `FILE.deb[:FILE.deb...]`, or `BZIMAGE[:MODULES_FOLDER]`.

        :raise UsageError: it names nothing; says what was expected.
        """
        if spec in self.rows:
            return self.rows[spec]
        if spec.startswith(BUILT):
            return BuiltKernel(name=built_name(spec.removeprefix(BUILT)))
        paths = [Path(part).expanduser() for part in spec.split(":")]
        if not paths[0].exists():
            names = ", ".join(self.rows)
            raise UsageError(
                f"kernel {spec!r}: expected one of {names}, or built-NAME, or BZIMAGE[:MODULES_FOLDER], or FILE.deb[:FILE.deb]; "
                "there is no such file"
            )
        for path in paths:
            if not path.exists():
                raise UsageError(f"kernel {spec!r}: {path}: there is no such file")
        if all(path.suffix == ".deb" for path in paths):
            return LocalKernel(name=paths[0].name, debs=tuple(paths))
        if len(paths) > 2 or paths[0].is_dir() or (len(paths) == 2 and not paths[1].is_dir()):
            raise UsageError(f"kernel {spec!r}: expected BZIMAGE[:MODULES_FOLDER] or FILE.deb[:FILE.deb]")
        return LocalKernel(name=paths[0].name, bzimage=paths[0], modules=paths[1] if len(paths) == 2 else None)


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
    """The kernel table in a file.

    :raise HostError: the file is missing or wrong; it ships with the product.
    """
    try:
        read = _File.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")))
    except (OSError, yaml.YAMLError, ValidationError) as error:
        raise HostError(f"{path}: cannot be read as a kernel table: {error}") from error
    rows = {name: DebianKernel(name=name, **row.model_dump()) for name, row in read.kernels.items()}
    return KernelTable(rows=rows, base=read.base, patched=read.patched)
