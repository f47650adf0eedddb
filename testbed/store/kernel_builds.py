"""Builds kernels: a source with patches and a configuration goes in, a kernel that every verb knows by its name comes out."""

from __future__ import annotations

import asyncio
import os
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from testbed import process
from testbed.errors import BuildError, HostError, UsageError
from testbed.kbuild import fragments, kconfig, needs, patches, recipe
from testbed.kbuild.ablations import ABLATIONS, Ablation
from testbed.kbuild.fragments import Option
from testbed.kbuild.patches import Patch
from testbed.kbuild.recipe import Compiler
from testbed.kernels import BUILT, BuiltKernel, KernelTable, Series, built_name
from testbed.progress import Progress, Task
from testbed.store import cache, kernel_files, kernel_sources, kernel_tree
from testbed.store.kernel_files import KernelFiles
from testbed.store.kernel_sources import Source
from testbed.store.kernel_tree import Tree

# The programs that a build runs, and the header that objtool is compiled with; the package of each.
_TOOLS = {tool: tool for tool in ("gcc", "make", "flex", "bison", "bc", "git")} | {"ld": "binutils", "tar": "tar", "xz": "xz-utils"}
_HEADERS = {"libelf.h": "libelf-dev", "openssl/opensslv.h": "libssl-dev"}
_CONFIGURE_S, _BUILD_S = 600, 6 * 3600
# Objects of the base configuration on 6.1; a folder that was built once knows its own number.
_USUAL_OBJECTS = 1900
_OBJECTS, _LOG = "testbed-objects", "testbed-make.log"


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What is to be built. `source`: as a command line names it; `series` are applied, then `reverts` taken away, then `ablations` done.

    `config`: the user's own .config, in place of the base fragment; `flavours` and `fragments` come on top.
    """

    source: str
    series: tuple[Path, ...] = ()
    reverts: tuple[Path, ...] = ()
    ablations: tuple[str, ...] = ()
    flavours: tuple[str, ...] = ()
    fragments: tuple[Path, ...] = ()
    config: Path | None = None
    jobs: int | None = None


async def build(wanted: Wanted, name: str | None, table: KernelTable, folders: tuple[Path, Path], progress: Progress) -> KernelFiles:
    """The kernel, built unless the cache has it, under `name` or one made of what it is. `folders`: the cache, and that of the fragments.

    :raise BuildError: the source, a patch, the configuration or the compiler says no. :raise HostError: this machine lacks something.
    """
    root, shipped = folders
    if name is not None:
        built_name(name)
    ablations = tuple(_ablation(one) for one in wanted.ablations)
    series = tuple(patch for path in wanted.series for patch in read_patches(path))
    reverts = tuple(patch for path in reversed(wanted.reverts) for patch in reversed(read_patches(path)))
    request = _request(wanted, shipped)
    compiler = await _compiler()
    source = await kernel_sources.prepare(wanted.source, table, root, progress)
    async with cache.locked(source.folder.with_name(f"{source.folder.name}.build.lock"), progress, f"source of {source.name}"):
        tree = Tree(source.folder)
        if source.git is not None:
            await _check_out(source, tree, progress)
        changes = await tree.planned(series, reverts, ablations)
        text = fragments.written(request)
        key = recipe.build_key(source.key, kernel_tree.digests(changes), text, compiler.version)
        folder = root / "kernels" / f"built-{key}"

        async def make(unfinished: Path) -> dict[str, Any]:
            tree.put(changes)
            output = source.folder / f"out-{recipe.output_key(text, compiler)}"
            job = _Job(
                source=source, output=output, compiler=compiler, release=f"-tb{key[:8]}", jobs=wanted.jobs or len(os.sched_getaffinity(0))
            )
            with progress.task(f"kernel of {source.name}") as task:
                took_s = await job.run(request, plain=wanted.config is None, task=task, note=progress.note)
                record = await _results(job, unfinished, task)
            return record | {
                "series": _series(source.tree, ablations).value,
                "origin": _origin(source, series, reverts, ablations),
                "config_name": _config_name(wanted),
                "compiler": compiler.version,
                "took_s": round(took_s, 1),
            }

        await cache.once(folder, make, progress, f"kernel of {source.name}")
    called = BuiltKernel(name=name or _name(source, wanted, key))
    _link(root, called, folder)
    return kernel_files.read_folder(called, folder)


def read_patches(path: Path) -> tuple[Patch, ...]:
    """The patches of a file, or of a folder: in the order of its `series` (quilt), else in that of their names.

    :raise BuildError: there are none.
    """
    try:
        if not path.is_dir():
            return patches.of_file(path.read_bytes(), str(path))
        quilt = path / "series"
        listed = (
            patches.of_quilt(quilt.read_text(), str(quilt))
            if quilt.is_file()
            else tuple((one.name, 1) for one in sorted(path.iterdir()) if one.suffix in (".patch", ".diff", ".mbox", ".mbx", ".eml"))
        )
        found = tuple(patch for name, strip in listed for patch in patches.of_file((path / name).read_bytes(), str(path / name), strip))
    except OSError as error:
        raise BuildError(f"{error.filename or path}: cannot be read as a patch: {error.strerror}") from error
    if not found:
        raise BuildError(f"{path}: expected a file `series` or files *.patch, *.diff, *.mbox, found none")
    return found


def flavours(shipped: Path) -> tuple[str, ...]:
    """The names of what may come on top of the base configuration."""
    return tuple(sorted(path.stem for path in (shipped / "kconfig").glob("*.config") if path.stem != "base"))


def remove(name: str, root: Path) -> None:
    """Forget a built kernel, and remove its files unless another name has them.

    :raise UsageError: there is none of that name.
    """
    name = built_name(name.removeprefix(BUILT))
    link = root / kernel_files.BUILT_NAMES / name
    if not link.is_symlink():
        raise UsageError(f"kernel {BuiltKernel(name=name).spec}: there is none")
    folder = link.resolve()
    link.unlink()
    if all(kernel_files.kernel_folder(other, root) != folder for other in kernel_files.built_kernels(root)):
        shutil.rmtree(folder, ignore_errors=True)


def _ablation(name: str) -> Ablation:
    if name not in ABLATIONS:
        raise UsageError(f"--ablation {name}: expected one of {', '.join(ABLATIONS)}")
    return ABLATIONS[name]


def _request(wanted: Wanted, shipped: Path) -> dict[str, Option]:
    """The configuration as it is asked for."""
    known = flavours(shipped)
    for flavour in wanted.flavours:
        if flavour not in known:
            raise UsageError(f"--flavour {flavour}: expected one of {', '.join(known)}")
    first = wanted.config or shipped / "kconfig" / "base.config"
    files = (first, *(shipped / "kconfig" / f"{flavour}.config" for flavour in wanted.flavours), *wanted.fragments)
    try:
        return fragments.merged(*(fragments.parse(path.read_text(), str(path)) for path in files))
    except (OSError, UnicodeDecodeError) as error:
        raise BuildError(f"a configuration cannot be read: {error}") from error


def _config_name(wanted: Wanted) -> str:
    first = wanted.config.name if wanted.config else "base"
    return "+".join((first, *wanted.flavours, *(path.stem for path in wanted.fragments)))


async def _compiler() -> Compiler:
    """:raise HostError: something that builds need is not installed; names all of it."""
    missing = [package for tool, package in _TOOLS.items() if process.where(tool) is None]
    if not missing:
        for header, package in _HEADERS.items():
            asked = await process.run(["gcc", "-fsyntax-only", "-x", "c", "-"], stdin=f"#include <{header}>\n", check=False)
            missing += [package] if asked.status != 0 else []
    if missing:
        raise HostError(f"building a kernel needs packages that are not installed; install them with: apt-get install {' '.join(missing)}")
    said = [(await process.run([tool, "--version"])).stdout.splitlines()[0] for tool in ("gcc", "ld")]
    return Compiler(version=", ".join(said), through_ccache=process.where("ccache") is not None)


async def _check_out(source: Source, tree: Tree, progress: Progress) -> None:
    assert source.git is not None
    there = source.folder / "commit"
    commit = source.git[1]
    if not there.exists() or there.read_text() != commit:
        there.unlink(missing_ok=True)
        tree.put({})
        (source.folder / "index.lock").unlink(missing_ok=True)  # of a run that was killed: the lock of the source is ours
        with progress.task(f"source {source.name}") as task:
            task.update(detail=f"checking out {commit[:12]}")
            await kernel_sources.checkout(source)
        there.write_text(commit)
    kernel_sources.version(source.tree)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Job:
    """One build. `output`: where make works, shared by builds of one source with one configuration; `release`: is added to the version."""

    source: Source
    output: Path
    compiler: Compiler
    release: str
    jobs: int

    def make(self, *targets: str) -> list[str | Path]:
        return ["make", "-C", self.source.tree, f"O={self.output}", f"LOCALVERSION={self.release}", *self.compiler.words, *targets]

    async def run(self, request: Mapping[str, Option], *, plain: bool, task: Task, note: Any) -> float:
        """Configure and compile; how long compiling took, in seconds. `plain`: what is not asked for is off."""
        self.output.mkdir(parents=True, exist_ok=True)
        await self._configure(request, plain=plain, task=task, note=note)
        begun = time.monotonic()
        await self._compile(task)
        return time.monotonic() - begun

    @property
    def config(self) -> dict[str, Option]:
        path = self.output / ".config"
        return fragments.parse(path.read_text(), str(path))

    async def _configure(self, request: Mapping[str, Option], *, plain: bool, task: Task, note: Any) -> None:
        """:raise BuildError: an option did not survive, or guests and scenarios need another one."""
        task.update(detail="configuring")
        asked = self.output / "testbed.config"
        asked.write_text(fragments.written(request))
        if plain:
            words, environment = self.make("allnoconfig"), {"KCONFIG_ALLCONFIG": str(asked)}
        else:
            shutil.copyfile(asked, self.output / ".config")
            words, environment = self.make("olddefconfig"), {}
        done = await process.run(words, env=recipe.ENVIRONMENT | environment, timeout_s=_CONFIGURE_S, check=False)
        if done.status != 0:
            raise BuildError(
                f"kernel of {self.source.name}: it cannot be configured:\n    {recipe.first_error(done.stderr or done.stdout)}"
            )
        config = self.config
        if plain and (lost := fragments.losses(request, config)):
            known = await asyncio.to_thread(kconfig.read, self._text)
            lines = [
                f"{one.wanted.where}: CONFIG_{one.name}: expected {one.wanted.value}, got {one.got}: {kconfig.explain(one, known, config)}"
                for one in lost
            ]
            raise BuildError(f"kernel of {self.source.name}: its configuration did not take everything:\n  " + "\n  ".join(lines))
        if lacks := needs.unmet((*needs.GUEST, *needs.EVERY_SCENARIO), config):
            raise BuildError(f"kernel of {self.source.name}: no guest could use it; its configuration lacks\n  " + "\n  ".join(lacks))
        if not plain:
            for lack in needs.unmet(needs.SOME_SCENARIOS, config):
                note(f"the configuration lacks {lack}")

    def _text(self, path: str) -> str | None:
        file = self.source.tree / path
        return file.read_text(errors="replace") if file.is_file() else None

    async def _compile(self, task: Task) -> None:
        """:raise BuildError: the compiler says no; shows its first error."""
        remembered = self.output / _OBJECTS
        usual = int(remembered.read_text()) if remembered.exists() else _USUAL_OBJECTS
        before = await asyncio.to_thread(_objects, self.output)
        done, begun = 0, time.monotonic()
        with (self.output / _LOG).open("w") as log:

            def hear(line: str) -> None:
                nonlocal done
                log.write(f"{line.rstrip()}\n")
                if (compiled := recipe.compiled(line)) is not None:
                    done += 1
                    fraction, words = recipe.progress(before, done, usual, time.monotonic() - begun)
                    task.update(fraction=fraction, detail=f"{words}: {compiled}")

            modules = self.config.get("MODULES")
            targets = ("bzImage", "modules") if modules is not None and modules.value == "y" else ("bzImage",)
            words = [*self.make(*targets), "-Otarget", f"-j{self.jobs}"]
            made = await process.run(words, env=recipe.ENVIRONMENT, timeout_s=_BUILD_S, check=False, on_output=hear, on_line=hear)
        if made.status != 0:
            raise BuildError(f"kernel of {self.source.name}: {recipe.first_error(made.stderr)}\n  all that make said: {self.output / _LOG}")
        remembered.write_text(str(await asyncio.to_thread(_objects, self.output)))


def _objects(folder: Path) -> int:
    return sum(1 for _ in folder.rglob("*.o"))


async def _results(job: _Job, folder: Path, task: Task) -> dict[str, Any]:
    """Copy what was made out of the shared folder."""
    work = folder / "work"
    work.mkdir()
    try:
        modules = None
        if any(option.value == "m" for option in job.config.values()):
            task.update(detail="modules")
            await process.run(
                [*job.make("modules_install"), f"INSTALL_MOD_PATH={work / 'installed'}"], env=recipe.ENVIRONMENT, timeout_s=_CONFIGURE_S
            )
            (modules,) = (work / "installed/lib/modules").iterdir()
        for name, kept in ((".config", "config"), ("System.map", "System.map")):
            shutil.copyfile(job.output / name, folder / kept)
        return await kernel_files.lay_out(job.output / "arch/x86/boot/bzImage", modules, folder, task)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _series(tree: Path, ablations: tuple[Ablation, ...]) -> Series:
    """Whether the series is in it; an ablation is neither side."""
    if ablations:
        return Series.UNKNOWN
    loop = tree / "drivers/block/loop.c"
    return Series.AFTER if loop.is_file() and recipe.has_series(loop.read_text(errors="replace")) else Series.BEFORE


def _origin(source: Source, series: tuple[Patch, ...], reverts: tuple[Patch, ...], ablations: tuple[Ablation, ...]) -> str:
    said = [source.origin]
    for verb, some in (("with", series), ("without", reverts)):
        if some:
            said.append(f"{verb} {len(some)} patch{'es' if len(some) > 1 else ''} ({', '.join(patch.subject for patch in some)})")
    said += [f"ablation {ablation.name}: {ablation.what}" for ablation in ablations]
    return "; ".join(said)


def _name(source: Source, wanted: Wanted, key: str) -> str:
    words = (source.name, *wanted.flavours, *wanted.ablations, key[:8])
    return "-".join(words)[:80]


def _link(root: Path, kernel: BuiltKernel, folder: Path) -> None:
    """Give a folder a name; one that had it loses it."""
    link = root / kernel_files.BUILT_NAMES / kernel.name
    link.parent.mkdir(parents=True, exist_ok=True)
    new = link.with_name(f".{link.name}.{os.getpid()}")
    new.symlink_to(Path("..") / folder.parent.name / folder.name)
    new.replace(link)
