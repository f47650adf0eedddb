"""Builds kernels: a source with patches and a configuration goes in, a kernel that every verb knows by its name comes out."""

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
    compiler,
    config_fragments,
    kernel_files,
    source_tree,
    sources,
)
from testbed.store.kernels.ablations import ABLATIONS, Ablation
from testbed.store.kernels.build_jail import BuildJail
from testbed.store.kernels.build_names import NamedBuild
from testbed.store.kernels.compiler import Compiler
from testbed.store.kernels.config_fragments import Request
from testbed.store.kernels.git_repository import Commit
from testbed.store.kernels.kernel_files import KernelFiles
from testbed.store.kernels.mailbox import EVERYTHING, Selection
from testbed.store.kernels.make import MakeJob, collect_results, find_compiler
from testbed.store.kernels.make_args import MakeArg
from testbed.store.kernels.patch_files import read_patches
from testbed.store.kernels.patches import Patch
from testbed.store.kernels.source_tree import Content, Tree
from testbed.store.kernels.sources import Source
from testbed.store.kernels.table import BUILT, BuiltKernel, KernelTable, Series, built_name, has_series, named_by_key
from testbed.units import MIB

# A kernel's loop.c has 60 KiB.
_MOST_TEXT_BYTES = 1 * MIB


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildSpec:
    """What is to be built. `source`: as a command line names it; `series` are applied, then `reverts` taken away, then `ablations` done.

    `selection`: what of their files is meant. `config`: the user's own .config, in place of the base fragment; `flavours` and `fragments`
    come on top. `make_args`: what make is told, besides.
    """

    source: str
    series: tuple[Path, ...] = ()
    reverts: tuple[Path, ...] = ()
    selection: Selection = EVERYTHING
    ablations: tuple[str, ...] = ()
    flavours: tuple[str, ...] = ()
    fragments: tuple[Path, ...] = ()
    config: Path | None = None
    make_args: tuple[MakeArg, ...] = ()
    jobs: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Builder:
    """Builds into the cache `root`, with the sources of `table` and the fragments in `shipped`/kconfig.

    Its methods raise `BuildError` where the source, a patch, the configuration or the compiler says no, and `HostError` where this machine
    lacks something.
    """

    table: KernelTable
    root: Path
    shipped: Path
    progress: Progress

    def read(self, spec: BuildSpec) -> None:
        """That its flavours and ablations exist, and its files can be read, whatever its source is.

        :raise UsageError: one does not exist.
        """
        _parts(spec, self.shipped)

    async def check(self, spec: BuildSpec) -> None:
        """That its words mean something and its patches apply, before anything is built."""
        async with self._planned(spec):
            pass

    async def build(self, spec: BuildSpec, name: str | None = None) -> KernelFiles:
        """The kernel, built unless the cache has it, under `name` or one made of what it is."""
        if name is not None:
            built_name(name)
        async with self._planned(spec) as plan:
            await cache.make_once(
                plan.folder(self.root), lambda unfinished: self._make(plan, unfinished), self.progress, plan.title
            )
            # By what is in it: another order may have made the same kernel.
            made = Series(cache.read_meta(plan.folder(self.root))["series"])
        called = BuiltKernel(name=name or plan.name)
        series = Series.UNKNOWN if plan.parts.ablations else made
        build_names.save_name(
            self.root, called, NamedBuild(folder=plan.folder(self.root), origin=_origin(plan), series=series)
        )
        return kernel_files.read_built(called, self.root)

    @contextlib.asynccontextmanager
    async def _planned(self, spec: BuildSpec) -> AsyncIterator[_Plan]:
        """What is to be done; its source is nobody else's meanwhile."""
        parts = _parts(spec, self.shipped)
        compiler = await find_compiler(spec.make_args)
        source = await sources.prepare(spec.source, self.table, self.root, self.progress)
        async with cache.locked(cache.build_lock(source.folder), self.progress, f"source of {source.name}"):
            tree = Tree(source.folder)
            if source.commit is not None:
                await _check_out(source, source.commit, tree, self.progress)
            changes = await tree.planned(parts.series, parts.reverts, parts.ablations)
            yield _Plan(spec=spec, parts=parts, compiler=compiler, source=source, tree=tree, changes=changes)
            # Also now, since a build may take longer than what was of use stays for certain.
            cache.mark_used(source.folder)

    async def _make(self, plan: _Plan, unfinished: Path) -> dict[str, Any]:
        enclosure = await self._enclosure(plan)
        plan.tree.put(plan.changes)
        job = MakeJob(
            source=plan.source,
            output=plan.source.folder / f"out-{compiler.output_key(plan.parts.request.text, plan.compiler)}",
            compiler=plan.compiler,
            release=f"-tb{plan.key[:8]}",
            jobs=plan.spec.jobs or resources.cores(),
            enclosure=enclosure,
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
                "enclosed": enclosure is not None,
            }
        )

    async def _enclosure(self, plan: _Plan) -> BuildJail | None:
        """Where programs of the source run; None where this machine allows no enclosure, and they may do what the user may.

        :raise HostError: they may not.
        """
        found, why = await build_jail.find_build_jail()
        if found is None:
            theirs = not plan.source.signed or plan.parts.series or plan.parts.reverts
            if theirs and not build_jail.is_trusted():
                raise HostError(
                    f"{plan.title}: expected to build it in an enclosure, which this machine does not allow: {why}; without one its source "
                    "and patches could do whatever you may; `testbed doctor` says what is needed, and where you trust them: "
                    f"{build_jail.TRUST}=1"
                )
            self.progress.note(
                f"{plan.title}: it is not built in an enclosure, which this machine does not allow: {why}"
            )
        return found


@dataclass(frozen=True, slots=True, kw_only=True)
class _Parts:
    """An order's words, read."""

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
        digests = source_tree.digests(self.changes)
        return compiler.build_key(self.source.key, digests, self.parts.request.text, self.compiler)

    @property
    def name(self) -> str:
        return named_by_key("-".join((self.source.name, *self.spec.flavours, *self.spec.ablations)), self.key)

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
    """The names of what may come on top of the base configuration."""
    return tuple(sorted(path.stem for path in (shipped / "kconfig").glob("*.config") if path.stem != "base"))


def remove_build(name: str, root: Path) -> None:
    """Forget a built kernel, and remove its files unless another name has them.

    :raise UsageError: there is none of that name. :raise HostError: its files cannot be removed now.
    """
    kernel = BuiltKernel(name=built_name(name.removeprefix(BUILT)))
    named = build_names.find_name(root, kernel)
    if named is None:
        raise UsageError(f"kernel {kernel.spec}: there is none; `testbed kernel list` lists them")
    build_names.remove_name(root, kernel)
    shared = any(kernel_files.kernel_folder(other, root) == named.folder for other in build_names.list_names(root))
    if not shared and not gc.remove(named.folder):
        raise HostError(
            f"kernel {kernel.spec}: its files cannot be removed while another run is at them; `testbed gc` does later: {named.folder}"
        )


def _ablation(name: str) -> Ablation:
    if name not in ABLATIONS:
        raise UsageError(f"--ablation {name}: expected one of {', '.join(ABLATIONS)}")
    return ABLATIONS[name]


def _request(spec: BuildSpec, shipped: Path) -> Request:
    """The configuration as it is asked for."""
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
    there = source.folder / "commit"
    if not there.exists() or there.read_text(encoding="utf-8") != commit.name:
        # A checkout that was broken off has left files that its commit has, and this one perhaps not.
        clean = not there.exists() and any(source.tree.iterdir())
        there.unlink(missing_ok=True)
        tree.put({})
        (source.folder / "index.lock").unlink(
            missing_ok=True
        )  # of a run that was killed: the lock of the source is ours
        with progress.task(f"source {source.name}") as task:
            task.update(detail=f"checking out {commit.name[:12]}")
            await sources.check_out(source, commit, clean=clean)
    sources.version(source.tree)
    there.write_text(commit.name, encoding="utf-8")


def _series(tree: Path) -> Series:
    """Whether the series is in a tree as it is now."""
    try:
        loop = untrusted_files.text_of_regular(tree, "drivers/block/loop.c", _MOST_TEXT_BYTES)
    except BuildError:
        return Series.BEFORE
    return Series.AFTER if has_series(loop) else Series.BEFORE


def _origin(plan: _Plan) -> str:
    said = [plan.source.origin]
    for verb, some in (("with", plan.parts.series), ("without", plan.parts.reverts)):
        if some:
            said.append(
                f"{verb} {len(some)} patch{'es' if len(some) > 1 else ''} ({', '.join(patch.subject for patch in some)})"
            )
    said += [f"make {' '.join(map(str, plan.compiler.args))}"] if plan.compiler.args else []
    said += [f"ablation {ablation.name}: {ablation.what}" for ablation in plan.parts.ablations]
    return "; ".join(said)
