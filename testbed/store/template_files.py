"""Templates in the cache: finds and checks the saved state of a machine."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

from testbed.errors import HostError, TemplateError
from testbed.hashing import file_sha256
from testbed.store import cache


@dataclass(frozen=True, slots=True, kw_only=True)
class Template:
    """A saved machine that guests are cloned from.

    `host_key`: private ed25519 key of its SSH server, which every clone has; `boot_s`: how long its cold boot took.
    """

    folder: Path
    host_key: bytes
    boot_s: float

    @property
    def title(self) -> str:
        return f"template {self.folder.name}"

    @property
    def complete(self) -> bool:
        """Whether its files still exist."""
        return self.memory.exists() and self.state.exists()

    @property
    def memory(self) -> Path:
        return self.folder / "memory"

    @property
    def state(self) -> Path:
        return self.folder / "state"


def template_folder(root: Path, key: str) -> Path:
    """Return where the template of the machine with this key is, or will be."""
    return root / "templates" / key


def read_template(folder: Path, memory_bytes: int) -> Template:
    """Read the template in a folder.

    :raise TemplateError: it is incomplete or damaged.
    """
    try:
        meta = cache.read_meta(folder)
        template = Template(folder=folder, host_key=bytes.fromhex(meta["host_key"]), boot_s=float(meta["boot_s"]))
        sizes = {"memory": memory_bytes, "state": int(meta["state_bytes"])}
        digest, touched_ns = meta["state_sha256"], int(meta["memory_ctime_ns"])
    except HostError as error:
        raise TemplateError(str(error)) from error
    except (KeyError, TypeError, ValueError) as error:
        raise TemplateError(f"{folder / cache.META}: expected a template's record, got {error!r}") from error
    cache.mark_used(folder)
    for name, expected in sizes.items():
        path = folder / name
        got = path.stat().st_size if path.is_file() else None
        if got != expected:
            raise TemplateError(f"{path}: expected {expected} bytes, got {got}")
    if ctime_ns(template.memory) != touched_ns:
        raise TemplateError(f"{template.memory}: expected the file as it was saved, got one that was changed since")
    if file_sha256(template.state) != digest:
        raise TemplateError(f"{template.state}: its checksum is not the one that was recorded")
    return template


def ctime_ns(memory: Path) -> int:
    """Return the ctime of a file of guest memory: it changes with every write; hashing the file for each clone is slow.

    A clone's QEMU can write to the file, although it has no reason to. A guest that broke out of QEMU and wrote there
    thus changes no later guest.
    """
    return memory.stat().st_ctime_ns


def remove_template(folder: Path) -> None:
    """Remove a template; guests that run from it keep what they have mapped."""
    shutil.rmtree(folder, ignore_errors=True)
