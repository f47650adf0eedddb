"""Builds kernels from a source, patches and a configuration, and saves each under a name that all commands accept."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from testbed.errors import BuildError, HostError, UsageError
from testbed.host import resources, untrusted_files
from testbed.progress import Progress
from testbed.store import cache, gc
from testbed.store.kernels import (
    build_jail,
    build_names,
    config_fragments,
    kernel_files,
    source_tree,
    sources,
)
from testbed.store.kernels.ablations import ABLATIONS, Ablation
from testbed.store.kernels.build_jail import BuildJail
from testbed.store.kernels.build_names import NamedBuild
from testbed.store.kernels.compiler import Compiler, build_key, output_key
from testbed.store.kernels.config_fragments import Request
from testbed.store.kernels.git_repository import Commit
from testbed.store.kernels.kernel_files import KernelFiles
from testbed.store.kernels.mailbox import ALL_PATCHES, Selection
from testbed.store.kernels.make import MakeJob, collect_results, find_compiler
from testbed.store.kernels.make_args import MakeArg
from testbed.store.kernels.patch_files import read_patches
from testbed.store.kernels.patches import Patch
from testbed.store.kernels.source_tree import Content, Tree
from testbed.store.kernels.sources import Source
from testbed.store.kernels.table import BUILT, BuiltKernel, KernelTable, Series, built_name, has_series, unique_name
from testbed.units import MIB

# A kernel's loop.c has 60 KiB.
_MOST_TEXT_BYTES = 1 * MIB


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildSpec:
    """What to build. `source`: as on the command line; patches of `series` are applied, then those of `reverts`
    reverted, then `ablations` applied.

    `selection`: which patches of the files are meant. `config`: the user's own .config, instead of the base fragment;
    `flavours` and `fragments` are merged on top. `make_args`: the user's arguments for make.
    """

    source: str
    series: tuple[Path, ...] = ()
    reverts: tuple[Path, ...] = ()
    selection: Selection = ALL_PATCHES
    ablations: tuple[str, ...] = ()
    flavours: tuple[str, ...] = ()
    fragments: tuple[Path, ...] = ()
    config: Path | None = None
    make_args: tuple[MakeArg, ...] = ()
    jobs: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Builder:
    """Builds into the cache `root`, with the sources of `table` and the fragments in `shipped`/kconfig.

    Its methods raise `BuildError` where the source, a patch, the configuration or the compiler is at fault, and
    `HostError` where this machine lacks something.
    """

    table: KernelTable
    root: Path
    shipped: Path
    progress: Progress

    def read(self, spec: BuildSpec) -> None:
        """Check that flavours and ablations exist, and that all files can be read; the source is not looked at.

        :raise UsageError: a flavour or an ablation does not exist.
        """
        _parts(spec, self.shipped)

    async def check(self, spec: BuildSpec) -> None:
        """Check that a build can begin: its names are known and its patches apply."""
        async with self._planned(spec):
            pass

    async def build(self, spec: BuildSpec, name: str | None = None) -> KernelFiles:
        """Build the kernel unless the cache has it, and save it under `name`, or under a name made of its parts."""
        if name is not None:
            built_name(name)
        async with self._planned(spec) as plan:
            await cache.make_once(
                plan.folder(self.root), lambda unfinished: self._make(plan, unfinished), self.progress, plan.title
            )
            # Read from its source: another series may have led to the same kernel.
            found = Series(cache.read_meta(plan.folder(self.root))["series"])
        kernel = BuiltKernel(name=name or plan.name)
        series = Series.UNKNOWN if plan.parts.ablations else found
        build_names.save_name(
            self.root, kernel, NamedBuild(folder=plan.folder(self.root), origin=_origin(plan), series=series)
        )
        return kernel_files.read_built(kernel, self.root)

    @contextlib.asynccontextmanager
    async def _planned(self, spec: BuildSpec) -> AsyncIterator[_Plan]:
        """Plan a build, and lock its source until the block ends."""
        parts = _parts(spec, self.shipped)
        compiler = await find_compiler(spec.make_args)
        source = await sources.prepare(spec.source, self.table, self.root, self.progress)
        async with cache.locked(cache.build_lock(source.folder), self.progress, f"source of {source.name}"):
            tree = Tree(source.folder)
            if source.commit is not None:
                await _check_out(source, source.commit, tree, self.progress)
            changes = await tree.plan_changes(parts.series, parts.reverts, parts.ablations)
            yield _Plan(spec=spec, parts=parts, compiler=compiler, source=source, tree=tree, changes=changes)
            # Marked again: a build may take longer than a used source is safe from garbage collection.
            cache.mark_used(source.folder)

    async def _make(self, plan: _Plan, unfinished: Path) -> dict[str, Any]:
        jail = await self._find_jail(plan)
        plan.tree.apply_changes(plan.changes)
        job = MakeJob(
            source=plan.source,
            output=plan.source.folder / f"out-{output_key(plan.parts.request.text, plan.compiler)}",
            compiler=plan.compiler,
            release=f"-tb{plan.key[:8]}",
            jobs=plan.spec.jobs or resources.cores(),
            jail=jail,
        )
        with self.progress.task(plan.title) as task:
            made = await job.run(plan.parts.request, task, self.progress.note)
            record = await collect_results(job, unfinished, task)
        return (
            record
            | made
            | {
                "series": _series(plan.source.tree).value,
                "origin": _origin(plan),
                "config_name": _config_name(plan.spec),
                "compiler": plan.compiler.version,
                "make_args": list(map(str, plan.compiler.args)),
                "enclosed": jail is not None,
            }
        )

    async def _find_jail(self, plan: _Plan) -> BuildJail | None:
        """Return the jail for programs of the source; None where this machine has none and the source is trusted.

        :raise HostError: this machine has none, and the source is not trusted.
        """
        jail, why = await build_jail.find_build_jail()
        if jail is None:
            untrusted = not plan.source.signed or plan.parts.series or plan.parts.reverts
            if untrusted and not build_jail.is_trusted():
                raise HostError(
                    f"{plan.title}: expected to build it in a jail, which this machine does not allow: {why}; without "
                    "one its source and patches could do whatever you may; `testbed doctor` says what is needed, and "
                    f"where you trust them: {build_jail.TRUST}=1"
                )
            self.progress.note(f"{plan.title}: it is not built in a jail, which this machine does not allow: {why}")
        return jail


@dataclass(frozen=True, slots=True, kw_only=True)
class _Parts:
    """The patches, ablations and configuration that a `BuildSpec` names, read from their files."""

    series: tuple[Patch, ...]
    reverts: tuple[Patch, ...]
    ablations: tuple[Ablation, ...]
    request: Request


@dataclass(frozen=True, slots=True, kw_only=True)
class _Plan:
    spec: BuildSpec
    parts: _Parts
    compiler: Compiler
    source: Source
    tree: Tree
    changes: Mapping[str, Content | None]

    @property
    def key(self) -> str:
        digests = source_tree.content_hashes(self.changes)
        return build_key(self.source.key, digests, self.parts.request.text, self.compiler)

    @property
    def name(self) -> str:
        return unique_name("-".join((self.source.name, *self.spec.flavours, *self.spec.ablations)), self.key)

    @property
    def title(self) -> str:
        return f"kernel of {self.source.name}"

    def folder(self, root: Path) -> Path:
        return root / "kernels" / f"built-{self.key}"


def _parts(spec: BuildSpec, shipped: Path) -> _Parts:
    return _Parts(
        series=tuple(patch for path in spec.series for patch in read_patches(path, spec.selection)),
        reverts=tuple(
            patch for path in reversed(spec.reverts) for patch in reversed(read_patches(path, spec.selection))
        ),
        ablations=tuple(_ablation(one) for one in spec.ablations),
        request=_request(spec, shipped),
    )


def list_flavours(shipped: Path) -> tuple[str, ...]:
    """List the names of the fragments that can be merged on top of the base configuration."""
    return tuple(sorted(path.stem for path in (shipped / "kconfig").glob("*.config") if path.stem != "base"))


def remove_build(name: str, root: Path) -> None:
    """Remove the name of a built kernel, and its files unless another name shares them.

    :raise UsageError: there is no kernel of that name. :raise HostError: its files cannot be removed now.
    """
    kernel = BuiltKernel(name=built_name(name.removeprefix(BUILT)))
    named = build_names.find_name(root, kernel)
    if named is None:
        raise UsageError(f"kernel {kernel.spec}: there is none; `testbed kernel list` lists them")
    build_names.remove_name(root, kernel)
    shared = any(kernel_files.kernel_folder(other, root) == named.folder for other in build_names.list_names(root))
    if not shared and not gc.remove(named.folder):
        raise HostError(
            f"kernel {kernel.spec}: its files cannot be removed while another run uses them; "
            f"`testbed gc` removes them later: {named.folder}"
        )


def _ablation(name: str) -> Ablation:
    if name not in ABLATIONS:
        raise UsageError(f"--ablation {name}: expected one of {', '.join(ABLATIONS)}")
    return ABLATIONS[name]


def _request(spec: BuildSpec, shipped: Path) -> Request:
    """Return the configuration to ask for."""
    known = list_flavours(shipped)
    for flavour in spec.flavours:
        if flavour not in known:
            raise UsageError(f"--flavour {flavour}: expected one of {', '.join(known)}")
    first = spec.config or shipped / "kconfig" / "base.config"
    more = (*(shipped / "kconfig" / f"{flavour}.config" for flavour in spec.flavours), *spec.fragments)
    try:
        read, *others = (config_fragments.parse(path.read_text(encoding="utf-8"), str(path)) for path in (first, *more))
    except (OSError, UnicodeDecodeError) as error:
        raise BuildError(f"a configuration cannot be read: {error}") from error
    return Request(first=read, more=config_fragments.merge(*others), plain=spec.config is None)


def _config_name(spec: BuildSpec) -> str:
    first = spec.config.name if spec.config else "base"
    return "+".join((first, *spec.flavours, *(path.stem for path in spec.fragments)))


async def _check_out(source: Source, commit: Commit, tree: Tree, progress: Progress) -> None:
    recorded = source.folder / "commit"
    if not recorded.exists() or recorded.read_text(encoding="utf-8") != commit.name:
        # An interrupted checkout has left files of its commit that may not be in this one.
        clean = not recorded.exists() and any(source.tree.iterdir())
        recorded.unlink(missing_ok=True)
        tree.apply_changes({})
        # A lock file of git is left from a killed run, since we hold the lock of the source.
        (source.folder / "index.lock").unlink(missing_ok=True)
        with progress.task(f"source {source.name}") as task:
            task.update(detail=f"checking out {commit.name[:12]}")
            await sources.check_out(source, commit, clean=clean)
    sources.read_version(source.tree)
    recorded.write_text(commit.name, encoding="utf-8")


def _series(tree: Path) -> Series:
    """Tell whether the series is in a tree in its present state."""
    try:
        loop = untrusted_files.text_of_regular(tree, "drivers/block/loop.c", _MOST_TEXT_BYTES)
    except BuildError:
        return Series.BEFORE
    return Series.AFTER if has_series(loop) else Series.BEFORE


def _origin(plan: _Plan) -> str:
    parts = [plan.source.origin]
    for verb, patches in (("with", plan.parts.series), ("without", plan.parts.reverts)):
        if patches:
            subjects = ", ".join(patch.subject for patch in patches)
            parts.append(f"{verb} {len(patches)} patch{'es' if len(patches) > 1 else ''} ({subjects})")
    parts += [f"make {' '.join(map(str, plan.compiler.args))}"] if plan.compiler.args else []
    parts += [f"ablation {ablation.name}: {ablation.what}" for ablation in plan.parts.ablations]
    return "; ".join(parts)
