"""Runs one kernel build: finds the tools, configures, compiles, and collects the results.

make runs in the build jail (`build_jail.py`), for it evaluates what the author of the source or of a patch wrote; its
output is read as untrusted files.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from testbed.errors import BuildError, HostError, UsageError
from testbed.host import process, untrusted_files
from testbed.progress import Task
from testbed.store.kernels import (
    build_jail,
    config_fragments,
    config_needs,
    debs,
    interrupted_build,
    kconfig,
    kernel_files,
    make_args,
    make_output,
)
from testbed.store.kernels.build_jail import BuildJail, Mounts
from testbed.store.kernels.compiler import ENVIRONMENT, Compiler
from testbed.store.kernels.config_fragments import Option, Request, merge
from testbed.store.kernels.interrupted_build import records_folder
from testbed.store.kernels.make_args import MakeArg
from testbed.store.kernels.sources import Source
from testbed.units import MIB

# The programs that a build runs besides compilers and linkers, and the headers of its host programs, with their
# packages.
_TOOLS = {tool: tool for tool in ("make", "flex", "bison", "bc", "git", "tar")} | {"xz": "xz-utils"}
_HEADERS = {"libelf.h": "libelf-dev", "openssl/opensslv.h": "libssl-dev"}
_CONFIGURE_S, _BUILD_S = 600, 6 * 3600
# Objects of the base configuration on 6.1, for the progress of a folder's first build; later ones use its own number.
_USUAL_OBJECTS = 1550
# Of the options that a source does not have, this many are named.
_NAMED = 5
# _OBJECTS: a file beside an output folder with its number of objects; _ASKED: in it, the configuration as asked for.
_OBJECTS, _ASKED = "testbed-objects", "testbed.config"
# Each source has its own cache, so that the objects of one are never used for another.
_CCACHE, _CCACHE_SIZE = "ccache", "2G"
# Debian's own .config has 0.3 MiB, a System.map 8 MiB.
_MOST_TEXT_BYTES = 64 * MIB
# The statuses that make itself ends with (make(1)); any other status comes from a signal.
_MAKES_OWN = (0, 1, 2)


async def find_compiler(args: tuple[MakeArg, ...] = ()) -> Compiler:
    """Find the compiler that builds use, with the user's `args` for make.

    :raise HostError: packages that builds need are not installed; the message names all of them.
    :raise UsageError: `args` name a program that does not exist.
    """
    tools = {name: words.split() for name, words in make_args.build_tools(args).items()}
    programs = dict.fromkeys(word for words in tools.values() for word in words[:1])
    for program in programs:
        if "/" in program and process.find_path(program) is None:
            raise UsageError(f"--make-arg: {program}: expected a program, there is none")
    missing = [
        _TOOLS.get(tool) or make_args.debian_package(tool)
        for tool in (*_TOOLS, *programs)
        if process.find_path(tool) is None
    ]
    if not missing:
        for header, package in _HEADERS.items():
            compiled = await process.run(
                [*tools["HOSTCC"], "-fsyntax-only", "-x", "c", "-"], stdin=f"#include <{header}>\n", check=False
            )
            missing += [package] if compiled.status != 0 else []
    if missing:
        names = " ".join(dict.fromkeys(missing))
        raise HostError(
            f"building a kernel needs packages that are not installed; install them with: apt-get install {names}"
        )
    # By default the compiler and the linker count; with `args` also each tool that the user chose: each changes the
    # bytes.
    used = ["CC", "LD", *(["HOSTCC"] if args else []), *(arg.name for arg in args if arg.name in make_args.TOOLS)]
    versions = [await _version(tools[name]) for name in dict.fromkeys(used)]
    return Compiler(
        version=", ".join(dict.fromkeys(versions)), through_ccache=process.find_path("ccache") is not None, args=args
    )


async def _version(program: list[str]) -> str:
    """:raise HostError: the program does not print its version."""
    lines = (await process.run([*program, "--version"])).stdout.splitlines()
    if not lines:
        raise HostError(f"{' '.join(program)} --version: expected a line with its version, got nothing")
    return lines[0]


@dataclass(frozen=True, slots=True, kw_only=True)
class MakeJob:
    """One build. `output`: the folder that make works in, which builds of one source with one configuration share.

    `release`: is added to the kernel's version; `jail`: where make runs, None to run it with the user's rights.
    """

    source: Source
    output: Path
    compiler: Compiler
    release: str
    jobs: int
    jail: BuildJail | None

    async def make(
        self,
        *targets: str,
        timeout_s: float,
        check: bool = True,
        env: Mapping[str, str] | None = None,
        write: tuple[Path, ...] = (),
        on_line: Callable[[str], None] | None = None,
    ) -> process.Finished:
        """Run make, which can read the source, and write into the output folder and the folders `write`."""
        options = ("-C", str(self.source.tree), f"O={self.output}", f"LOCALVERSION={self.release}")
        ccache = self.source.folder / _CCACHE
        return await build_jail.run_in_jail(
            self.jail,
            ("make", *options, *self.compiler.variables, *targets),
            folder=self.output,
            mounts=Mounts(
                read=(self.source.tree, *self._programs()),
                write=(self.output, *([ccache] if ccache.is_dir() else []), *write),
            ),
            env={**ENVIRONMENT, "CCACHE_DIR": str(ccache), "CCACHE_MAXSIZE": _CCACHE_SIZE, **(env or {})},
            timeout_s=timeout_s,
            check=check,
            on_line=on_line,
        )

    def _programs(self) -> tuple[Path, ...]:
        """Return where the programs of the build are, except the system's."""
        named = [word for value in make_args.build_tools(self.compiler.args).values() for word in value.split()]
        return build_jail.tool_folders((*_TOOLS, "ccache", *named))

    def _prepare(self) -> None:
        """Let the account that runs make read the source, and write where it must. Blocks."""
        if process.find_path("ccache") is not None:
            (self.source.folder / _CCACHE).mkdir(exist_ok=True)
        for folder in (self.output, self.source.folder / _CCACHE):
            if folder.is_dir():
                build_jail.give_ownership(self.jail, folder)
        if not self.source.readable_mark.exists():
            build_jail.make_readable(self.source.tree)
            self.source.readable_mark.touch()

    async def run(self, request: Request, task: Task, note: Callable[[str], None]) -> dict[str, Any]:
        """Configure and compile; returns the time that it took and the number of compiled objects."""
        self.output.mkdir(parents=True, exist_ok=True)
        if (removed := await asyncio.to_thread(interrupted_build.repair, self.output)) is not None:
            note(
                f"{self.source.name}: its last build was broken off; {removed} files that it may have left "
                "half-written are made again"
            )
        await asyncio.to_thread(self._prepare)
        interrupted_build.set_mark(self.output)
        try:
            await self._configure(request, task, note)
            begun = time.monotonic()
            compiled = await self._compile(task)
        except HostError:  # a fault of this machine: make may have been killed, and the mark stays
            raise
        except BaseException:  # make has ended by itself, and removed half-written files
            interrupted_build.remove_mark(self.output)
            raise
        interrupted_build.remove_mark(self.output)
        return {"took_s": round(time.monotonic() - begun, 1), "compiled": compiled}

    @property
    def config(self) -> dict[str, Option]:
        with self.read():
            return config_fragments.parse(
                untrusted_files.text_of_regular(self.output, ".config", _MOST_TEXT_BYTES), str(self.output / ".config")
            )

    @contextlib.contextmanager
    def read(self) -> Iterator[None]:
        """Read results within this block: if one is refused, the output folder is removed, since the next build could
        not make a file in its place.
        """
        try:
            yield
        except BuildError:
            untrusted_files.remove_folder(self.output)
            raise

    async def _configure(self, request: Request, task: Task, note: Callable[[str], None]) -> None:
        """Write the configuration and complete it with make.

        :raise BuildError: an option was lost, or guests or scenarios need another one.
        :raise HostError: as `_failed`.
        """
        task.update(detail="configuring")
        name, target = (_ASKED, "allnoconfig") if request.plain else (".config", "olddefconfig")
        untrusted_files.write_file(records_folder(self.output), self.output, name, request.text.encode())
        environment = {"KCONFIG_ALLCONFIG": str(self.output / _ASKED)} if request.plain else {}
        done = await self.make(target, env=environment, timeout_s=_CONFIGURE_S, check=False)
        if done.status != 0:
            raise self._failed("it cannot be configured:\n    ", done.stderr or done.stdout)
        config = self.config
        await self._check_survivors(request, config, note)
        if lacks := config_needs.unmet_requirements((*config_needs.GUEST, *config_needs.EVERY_SCENARIO), config):
            raise BuildError(
                f"kernel of {self.source.name}: no guest could use it; its configuration lacks\n  " + "\n  ".join(lacks)
            )
        if not request.plain:
            for lack in config_needs.unmet_requirements(config_needs.SOME_SCENARIOS, config):
                note(f"the configuration lacks {lack}")

    async def _check_survivors(
        self, request: Request, config: Mapping[str, Option], note: Callable[[str], None]
    ) -> None:
        """:raise BuildError: an option that was asked for was lost; the message says what blocks it."""
        lost = config_fragments.lost_options(request.required, config)
        own = config_fragments.lost_options(request.own, config)
        if not lost and not own:
            return
        known = await asyncio.to_thread(kconfig.read_kconfig, self._text)
        if left := kconfig.unknown_options(own, known):
            some = ", ".join(f"CONFIG_{name}" for name in left[:_NAMED])
            note(
                f"{len(left)} options of the configuration are not in this source: "
                f"{some}{', ...' if len(left) > _NAMED else ''}"
            )
        if gone := (*lost, *kconfig.chosen_losses(own, known, merge(request.first, request.more), config)):
            lines = [
                f"{one.wanted.where}: CONFIG_{one.name}: expected {one.wanted.value}, got {one.got}: "
                f"{kconfig.explain(one, known, config)}"
                for one in gone
            ]
            mend = "\n  an option that may have another value is set so in a --fragment, which overrides --config"
            raise BuildError(
                f"kernel of {self.source.name}: its configuration did not take everything:\n  "
                + "\n  ".join(lines)
                + ("" if request.plain else mend)
            )

    def _text(self, path: str) -> str | None:
        """Read a file of the source; None if there is no such file in it. Kconfig files may name any path."""
        try:
            return untrusted_files.text_of_regular(self.source.tree, path, _MOST_TEXT_BYTES)
        except BuildError:
            return None

    def _failed(self, what: str, output: str, more: str = "") -> BuildError | HostError:
        """Make an error of make's `output`: a `HostError` if disk or memory ran out."""
        where = f"kernel of {self.source.name}: "
        if (line := make_output.machine_error(output)) is not None:
            return HostError(
                f"{where}this machine could not build it: {line}; free some space, or use fewer "
                f"compilers with --jobs{more}"
            )
        return BuildError(f"{where}{what}{make_output.first_error(output)}{more}")

    async def _compile(self, task: Task) -> int:
        """Compile; returns the number of compiled objects.

        :raise BuildError: the compiler fails; the message has its first error. :raise HostError: as `_failed`.
        """
        counted = records_folder(self.output) / _OBJECTS
        usual = int(counted.read_text(encoding="utf-8")) if counted.exists() else _USUAL_OBJECTS
        before = await asyncio.to_thread(_objects, self.output)
        done, begun = 0, time.monotonic()
        log_path = records_folder(self.output) / interrupted_build.LOG
        with log_path.open("w", buffering=1, encoding="utf-8") as log:

            def on_line(line: str) -> None:
                nonlocal done
                log.write(f"{line.rstrip()}\n")
                if (compiled := make_output.compiled_object(line)) is not None:
                    done += 1
                    fraction, words = make_output.estimate_progress(before, done, usual, time.monotonic() - begun)
                    task.update(fraction=fraction, detail=f"{words}: {compiled}")

            modules = self.config.get("MODULES")
            targets = ("bzImage", "modules") if modules is not None and modules.value == "y" else ("bzImage",)
            result = await self.make(
                *targets, "-Otarget", f"-j{self.jobs}", timeout_s=_BUILD_S, check=False, on_line=on_line
            )
        if result.status not in _MAKES_OWN:
            raise HostError(
                f"kernel of {self.source.name}: make was killed (status {result.status}); "
                "try again, or with fewer compilers: --jobs"
            )
        if result.status != 0:
            raise self._failed("", result.stderr, f"\n  all that make said: {log_path}")
        counted.write_text(str(await asyncio.to_thread(_objects, self.output)), encoding="utf-8")
        return done


def _objects(folder: Path) -> int:
    return sum(1 for path in untrusted_files.walk(folder) if path.name.endswith(".o"))


async def collect_results(job: MakeJob, folder: Path, task: Task) -> dict[str, Any]:
    """Copy the results out of the shared output folder into `folder`; returns what to record of them."""
    work = folder / "work"
    work.mkdir()
    try:
        task.update(detail="modules")
        for name, copy, limit_bytes in (
            (".config", "config", _MOST_TEXT_BYTES),
            ("System.map", "System.map", _MOST_TEXT_BYTES),
            ("arch/x86/boot/bzImage", "work/bzImage", debs.MOST_BYTES),
        ):
            with job.read():
                untrusted_files.copy_file(job.output, name, folder / copy, limit_bytes)
        return await kernel_files.copy_into(work / "bzImage", await _modules(job, work / "installed"), folder, task)
    finally:
        untrusted_files.remove_folder(work)


async def _modules(job: MakeJob, folder: Path) -> Path:
    """Return the folder of the modules; without modules, that of the list of built-in ones, which modprobe needs.

    :raise BuildError: the source has put something else in its place.
    """
    folder.mkdir()
    if any(option.value == "m" for option in job.config.values()):
        await asyncio.to_thread(build_jail.give_ownership, job.jail, folder)
        await job.make("modules_install", f"INSTALL_MOD_PATH={folder}", write=(folder,), timeout_s=_CONFIGURE_S)
        found = [path for path in untrusted_files.walk(folder) if path.parent == folder / "lib/modules"]
        if len(found) != 1 or any(
            path.is_symlink() or not path.is_dir() for path in (found[0], folder / "lib", folder / "lib/modules")
        ):
            raise BuildError(
                f"kernel of {job.source.name}: expected one folder of modules from modules_install, got {len(found)}"
            )
        return found[0]
    (folder / "modules.order").touch()
    for name in ("modules.builtin", "modules.builtin.modinfo"):
        with job.read():
            untrusted_files.copy_file(job.output, name, folder / name, _MOST_TEXT_BYTES)
    return folder
