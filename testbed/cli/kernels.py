"""Kernel commands (fetch, build, list, rm), and the options of other commands that build a kernel first."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import typer

from testbed.cli.app import KERNEL_HELP, Json, Quiet, app, err, out, run_async
from testbed.errors import UsageError
from testbed.host import paths, quota
from testbed.progress import Progress
from testbed.report import live
from testbed.store import cache, gc
from testbed.store.kernels import build_names, builder, kernel_files, make_args
from testbed.store.kernels.ablations import ABLATIONS
from testbed.store.kernels.builder import Builder, BuildSpec
from testbed.store.kernels.mailbox import Selection, parse_numbers, parse_version
from testbed.store.kernels.table import Kernel, shipped_table

kernel_app = typer.Typer(no_args_is_help=True, help="Kernels, from images/kernels.yaml and from source.")
app.add_typer(kernel_app, name="kernel")

SOURCE_HELP = "A name of images/kernels.yaml, a git tree FOLDER[@COMMIT], or a tarball."
SERIES_HELP = (
    "Patches: a mailbox of b4's or lore's, a patch, or a folder of `git format-patch` or quilt; also compressed. "
    "May be given more than once."
)
Flavours = Annotated[
    list[str] | None,
    typer.Option("--flavour", help="On top of the base configuration: faults, iolatency, kasan, leaks, lockdep."),
]
Fragments = Annotated[list[Path] | None, typer.Option("--fragment", help="Options of your own, on top.")]
Config = Annotated[Path | None, typer.Option("--config", help="Your own .config in place of the base configuration.")]
BUILD_OPTIONS = "--series, --series-version, --series-patches, --revert, --flavour, --fragment, --config, --make-arg"
MakeArgs = Annotated[
    list[str] | None,
    typer.Option(
        "--make-arg",
        help="NAME=VALUE for make, such as LLVM=1, CC=gcc-11 or KCFLAGS=-O1; part of the kernel's identity.",
    ),
]
JobsOption = Annotated[
    int | None, typer.Option("--jobs", "-j", min=1, help="Compilers at once; one per processor by default.")
]


Tree = Annotated[str | None, typer.Option("--tree", help=f"Build the kernels from this source. {SOURCE_HELP}")]
Series = Annotated[list[Path] | None, typer.Option("--series", help=SERIES_HELP)]
Revert = Annotated[list[Path] | None, typer.Option("--revert", help="Patches to revert, which the source has.")]
SeriesVersion = Annotated[
    str | None,
    typer.Option(
        "--series-version",
        help="Which version to take if a mailbox or folder has several: 2, rfc-v1.",
    ),
]
SeriesPatches = Annotated[
    str | None,
    typer.Option("--series-patches", help="Only these patches of the series, written as for `b4 am -P`: 2-3,5."),
]


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildOptions:
    """Options of a command that may build its kernels from `tree`. `config` has neither source nor patches."""

    tree: str | None
    series: list[Path] | None
    revert: list[Path] | None
    config: BuildSpec

    def spec(self) -> BuildSpec | None:
        """Return what to build: the tree with its series applied and its reverts taken away; None without a tree.

        :raise UsageError: there are options for a build but no tree.
        """
        if self.tree is None:
            if self.series or self.revert or self.config != BuildSpec(source=""):
                raise UsageError(f"{BUILD_OPTIONS}: expected --tree beside them")
            return None
        return replace(self.config, source=self.tree, series=tuple(self.series or ()), reverts=tuple(self.revert or ()))


def make_builder(progress: Progress) -> Builder:
    """Return a builder for this user's cache. Notes the environment variables for make that a build ignores."""
    if ignored := make_args.environment_ignored(os.environ):
        progress.note(f"of the environment {', '.join(ignored)} does not count in builds; --make-arg NAME=VALUE does")
    return Builder(
        table=shipped_table(), root=paths.folders().cache, shipped=paths.shipped("images"), progress=progress
    )


async def build_kernels(kernels: Mapping[str, str | BuildSpec], progress: Progress) -> dict[str, str]:
    """Build those kernels that have no name yet, one after the other because a build uses all processors; return all
    names.
    """
    specs = [kernel for kernel in kernels.values() if isinstance(kernel, BuildSpec)]
    if not specs:
        return {side: str(kernel) for side, kernel in kernels.items()}
    builds = make_builder(progress)
    for spec in specs:
        await builds.check(spec)
    return {
        side: kernel if isinstance(kernel, str) else (await builds.build(kernel)).name
        for side, kernel in kernels.items()
    }


def build_config(
    flavour: list[str] | None,
    fragment: list[Path] | None,
    config: Path | None,
    make_arg: list[str] | None,
    series_version: str | None = None,
    series_patches: str | None = None,
) -> BuildSpec:
    """Return a build spec without source and patches.

    :raise UsageError: an option is malformed.
    """
    return BuildSpec(
        source="",
        flavours=tuple(flavour or ()),
        fragments=tuple(fragment or ()),
        config=config,
        make_args=make_args.parse(make_arg or ()),
        selection=Selection(
            version=None if series_version is None else parse_version(series_version),
            numbers=() if series_patches is None else parse_numbers(series_patches),
        ),
    )


@contextlib.contextmanager
def _limit_cache_size() -> Iterator[None]:
    """Remove the least recently used entries of the cache if the block has added a kernel and the cache is too large.

    :raise UsageError: the user's limit is not a size.
    """
    folders, limit = paths.folders(), quota.size_limit(quota.CACHE_LIMIT)
    kernels = folders.cache / "kernels"
    before = set(kernels.glob("*"))
    yield
    # Measuring the cache takes seconds.
    if set(kernels.glob("*")) - before:
        gc.shrink_cache(folders, limit, ())


@kernel_app.command("fetch")
def kernel_fetch(
    kernels: Annotated[
        list[str] | None,
        typer.Argument(metavar="names", help=f"{KERNEL_HELP} The default pair without any."),
    ] = None,
    renew: Annotated[bool, typer.Option("--renew", help="Ask the mirror again for the newest version.")] = False,
    quiet: Quiet = False,
) -> None:
    """Fetch kernels that the cache does not have."""

    async def work() -> int:
        known = shipped_table()
        root = paths.folders().cache
        with _limit_cache_size(), live.progress(err, quiet=quiet) as progress:
            for name in kernels or (known.base, known.patched):
                fetched = await kernel_files.fetch(known.resolve(name), root, progress, renew=renew)
                out.print(f"{name}\t{fetched.release}\t{fetched.origin}", markup=False, highlight=False, soft_wrap=True)
        return 0

    run_async(work())


@kernel_app.command("build")
def kernel_build(
    name: Annotated[
        str | None,
        typer.Argument(help="The kernel is then called built-NAME; a name is made from its sources by default."),
    ] = None,
    source: Annotated[str, typer.Option("--source", "--tree", help=SOURCE_HELP)] = "debian-6.1",
    series: Series = None,
    revert: Revert = None,
    series_version: SeriesVersion = None,
    series_patches: SeriesPatches = None,
    ablation: Annotated[
        list[str] | None, typer.Option("--ablation", help=f"Remove one thing from the series: {', '.join(ABLATIONS)}.")
    ] = None,
    flavour: Flavours = None,
    fragment: Fragments = None,
    config: Config = None,
    make_arg: MakeArgs = None,
    jobs: JobsOption = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Build a kernel from source, unless the cache has it; all commands then accept its name. See docs/kernels.md."""
    spec = replace(
        build_config(flavour, fragment, config, make_arg, series_version, series_patches),
        source=source,
        series=tuple(series or ()),
        reverts=tuple(revert or ()),
        ablations=tuple(ablation or ()),
        jobs=jobs,
    )
    run_async(_build(spec, name, as_json=as_json, quiet=quiet))


async def _build(spec: BuildSpec, name: str | None, *, as_json: bool, quiet: bool) -> int:
    with _limit_cache_size(), live.progress(err, quiet=quiet, as_json=as_json) as progress:
        kernel = await make_builder(progress).build(spec, name)
    if as_json:
        own = {
            "name": kernel.name,
            "origin": kernel.origin,
            "series": kernel.series.value,
            "folder": str(kernel.folder),
        }
        print(json.dumps(cache.read_meta(kernel.folder) | own))
    else:
        out.print(f"{kernel.name}\t{kernel.release}\t{kernel.origin}", markup=False, highlight=False, soft_wrap=True)
    return 0


@kernel_app.command("list")
def kernel_list(as_json: Json = False) -> None:
    """List the kernels of the table and those built here: series, role, release and origin, configuration, hash."""
    table = shipped_table()
    root = paths.folders().cache
    rows: list[dict[str, Any]] = []
    kernels: tuple[Kernel, ...] = (*table.rows.values(), *build_names.list_names(root))
    for kernel in kernels:
        cached = kernel_files.cached_kernel(kernel, root)
        name = cached.name if cached else kernel.name
        rows.append(
            {
                "name": name,
                "series": cached.series.value if cached else table.rows[kernel.name].series.value,
                "role": "base" if name == table.base else "patched" if name == table.patched else "",
                "release": cached.release if cached else None,
                "origin": cached.origin if cached else None,
                "config": cache.read_meta(cached.folder).get("config_name", "Debian's") if cached else None,
                "sha256": cached.sha256 if cached else None,
            }
        )
    if as_json:
        print(json.dumps(rows))
        return
    for row in rows:
        release = f"{row['release']} ({row['origin']})" if row["release"] else "not fetched"
        fields = (row["name"], row["series"], row["role"], release, row["config"] or "", row["sha256"] or "")
        print("\t".join(fields).rstrip())


@kernel_app.command("rm")
def kernel_rm(
    name: Annotated[str, typer.Argument(help="The name of a built kernel, with or without built-.")],
) -> None:
    """Remove a built kernel. Its source stays in the cache, with the object files that speed up the next build."""
    builder.remove_build(name, paths.folders().cache)
