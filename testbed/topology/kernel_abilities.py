"""Checks before guests start that the kernels of a topology support it, if their configuration is known."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from testbed.errors import BuildError, HostError, UsageError
from testbed.store.kernels import boot_check, config_fragments, kernel_files
from testbed.store.kernels.config_fragments import Option
from testbed.store.kernels.kernel_files import KernelFiles
from testbed.store.kernels.table import KernelTable, LocalKernel
from testbed.topology import kernel_features
from testbed.topology.check import Mistake
from testbed.topology.model import GuestModel, Topology


@dataclass(frozen=True, slots=True, kw_only=True)
class KernelConfig:
    """The configuration of a kernel. `name`: as the user gave it, and the release if that is known."""

    name: str
    config: Mapping[str, Option]
    has_modules: bool

    def mistakes(self, guest: GuestModel) -> Iterator[Mistake]:
        """List the parts of a guest that the kernel does not support, by their place below the guest's keys."""
        for where, lacks in kernel_features.lacking_features(guest, self.config, has_modules=self.has_modules):
            modules = "" if self.has_modules else ", built in, for it comes without modules"
            yield where, f"expected a kernel that can do this; the configuration of {self.name} lacks {lacks}{modules}"


def config_of_files(files: KernelFiles) -> KernelConfig | None:
    """Read the configuration of a kernel in the cache; None if it came without one."""
    if files.config is None:
        return None
    config = _parsed(files.config.read_text(encoding="utf-8"))
    return (
        None
        if config is None
        else KernelConfig(name=f"{files.name} ({files.release})", config=config, has_modules=files.has_modules)
    )


def check_kernels(guest: GuestModel, files: KernelFiles) -> None:
    """Check that a kernel supports a guest, if its configuration is known.

    :raise UsageError: the kernel does not support it.
    """
    config = config_of_files(files)
    if config is None:
        return
    if wrong := [f"{'.'.join(map(str, where))}: {message}" for where, message in config.mistakes(guest)]:
        raise UsageError("\n  ".join(wrong))


class KernelAbilities:
    """Knows what kernels support: those in the cache, and local ones beside their configuration. Fetches nothing."""

    def __init__(
        self, table: KernelTable, root: Path, kernel: str | None = None, *, default: str | None = None
    ) -> None:
        """`kernel`: that of all guests; None: that which each guest names, or the `default`."""
        self._table, self._root, self._kernel, self._default = table, root, kernel, default
        self._known: dict[str, KernelConfig | None] = {}

    def mistakes(self, topology: Topology) -> Iterator[Mistake]:
        """List the parts of a topology that the kernels of its guests do not support, as far as that is known."""
        for name, guest in topology.guests.items():
            kernel = self._kernel or guest.kernel or self._default
            if kernel is not None:
                yield from ((("guests", name, *where), message) for where, message in self._mistakes_on(kernel, guest))

    def guest_mistakes(self, kernels: Sequence[str], guest: GuestModel) -> Iterator[Mistake]:
        """List the parts of a guest that any of these kernels does not support."""
        for kernel in dict.fromkeys(kernels):
            yield from self._mistakes_on(kernel, guest)

    def _mistakes_on(self, kernel: str, guest: GuestModel) -> Iterator[Mistake]:
        if kernel not in self._known:
            self._known[kernel] = self._find(kernel)
        known = self._known[kernel]
        return iter(()) if known is None else known.mistakes(guest)

    def _find(self, spec: str) -> KernelConfig | None:
        try:
            kernel = self._table.resolve(spec)
            cached = kernel_files.cached_kernel(kernel, self._root)
        except (UsageError, HostError):  # reported where the kernel is used
            return None
        if cached is not None:
            return config_of_files(cached)
        if not isinstance(kernel, LocalKernel) or kernel.bzimage is None:
            return None
        text = boot_check.read_config(kernel.bzimage, kernel.modules)
        config = None if text is None else _parsed(text)
        return (
            None if config is None else KernelConfig(name=spec, config=config, has_modules=kernel.modules is not None)
        )


def _parsed(text: str) -> Mapping[str, Option] | None:
    try:
        return config_fragments.parse(text, "config")
    except BuildError:
        return None
