"""Checks, before any boot, that a user's kernel, configuration and modules belong together and can boot a guest."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from testbed.errors import BuildError, ToolMissing, UsageError
from testbed.store.kernels import config_fragments, config_needs, kernel_image, module_tree
from testbed.store.kernels.config_fragments import Option
from testbed.store.kernels.kernel_image import Header
from testbed.units import format_size

# The first lines of every configuration that the kernel's tools write.
_TITLE = re.compile(r"\A(?:#.*\n){0,3}# Linux/\S+ (?P<version>\S+) Kernel Configuration")
_TREE = ("arch", "x86", "boot", "bzImage")


@dataclass(frozen=True, slots=True, kw_only=True)
class BootCheck:
    """What the check found. `config`: the configuration's text, or None; `notes`: what could not be checked, and what
    the kernel lacks that some guests need.
    """

    config: str | None
    notes: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Inside:
    """What is built into a bzImage; None if it is not found."""

    config: str | None = None
    vermagic: str | None = None
    notes: tuple[str, ...] = ()


def config_files(bzimage: Path, modules: Path | None) -> tuple[Path, ...]:
    """Return the files that may hold the configuration of a kernel, the most certain first.

    They are beside the kernel, as distributions have them, or at the top of the tree that it was built in, unless
    changed since. A link to elsewhere is left out; see `linked_configs`.

    :raise UsageError: the kernel is not a bzImage.
    """
    return tuple(path for path in _places(bzimage, modules) if _stays(path, bzimage, modules))


def linked_configs(bzimage: Path, modules: Path | None) -> tuple[str, ...]:
    """Return notes about configuration files that are links to elsewhere: these could lead to any file of this machine.

    :raise UsageError: the kernel is not a bzImage.
    """
    left_out = (path for path in _places(bzimage, modules) if not _stays(path, bzimage, modules))
    return tuple(
        f"{path}: left out: a link to {path.resolve()}, which does not lie with the kernel" for path in left_out
    )


def _stays(path: Path, bzimage: Path, modules: Path | None) -> bool:
    """Whether a file is really in its folder, or with the kernel or its modules, which may be links themselves."""
    real = path.resolve()
    around = [bzimage.parent.resolve(), bzimage.resolve().parent, *([modules.resolve()] if modules else [])]
    return real == path.parent.resolve() / path.name or any(real.is_relative_to(folder) for folder in around)


def _places(bzimage: Path, modules: Path | None) -> list[Path]:
    own = f"config-{kernel_image.kernel_release(bzimage)}"
    resolved = bzimage.resolve()
    beside = [
        bzimage.with_name(own),
        resolved.with_name(own),
        bzimage.with_name("config"),
        bzimage.with_name(".config"),
    ]
    places = [*beside, *([modules / "config"] if modules else [])]
    found = [path for path in dict.fromkeys(places) if _is_file(path)]
    if resolved.parts[-len(_TREE) :] == _TREE:
        top = resolved.parents[len(_TREE) - 1] / ".config"
        if _is_file(top) and top.stat().st_mtime <= resolved.stat().st_mtime:
            found.append(top)
    return found


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # in a folder that this user may not enter
        return False


def check_bootable(name: str, plain: Path, configs: tuple[Path, ...], modules: Path | None) -> BootCheck:
    """Check that the kernel in the file `plain` can boot a guest. `name`: what the user calls it.

    :raise UsageError: it cannot, or its modules belong to another kernel; the message says why.
    """
    header = kernel_image.read_header(plain, name)
    inside = _look_inside(name, plain, header)
    there = {} if modules is None else _modules(name, modules, header, inside.vermagic)
    text, where, notes = inside.config, f"{name}: built in", list(inside.notes)
    if text is None and "configs" in there:
        text, where = (
            kernel_image.find_config(module_tree.read_module(there["configs"])),
            f"{there['configs']}: built in",
        )
    if text is None:
        text, where, passed_over = _read(configs, header)
        notes += passed_over
    if text is None:
        notes.append(
            f"{name}: its configuration is not known: none is built in (IKCONFIG), and none beside it is certain to be "
            "its own; what guests need of it cannot be checked before they boot"
        )
        return BootCheck(config=None, notes=tuple(notes))
    config = _parsed(text, where)
    if lacks := (
        *config_needs.unmet_requirements(config_needs.BOOT, config),
        *config_needs.without_module(config_needs.BOOT, config, there),
    ):
        mend = "\n  its modules go with it as BZIMAGE:MODULES_FOLDER, or as another .deb" if modules is None else ""
        raise UsageError(
            f"{name}: Linux {header.release}: no guest can boot it; its configuration ({where}) lacks\n  "
            + "\n  ".join(lacks)
            + mend
        )
    lacks = (
        *config_needs.unmet_requirements(config_needs.CLONES, config),
        *config_needs.without_module(config_needs.CLONES, config, there),
    )
    notes += [f"{name}: it lacks {lack}; boot its guests with --cold" for lack in lacks]
    notes += [
        f"{name}: it lacks {lack}" for lack in config_needs.unmet_requirements(config_needs.EVERY_SCENARIO, config)
    ]
    return BootCheck(config=text, notes=tuple(notes))


def read_config(bzimage: Path, modules: Path | None) -> str | None:
    """Return a user's kernel's configuration if it can be read before the kernel is unpacked into the cache, else
    None.
    """
    try:
        header = kernel_image.read_header(bzimage)
        return _look_inside(str(bzimage), bzimage, header).config or _read(config_files(bzimage, modules), header)[0]
    except UsageError:  # not a bzImage as it is; perhaps a compressed one
        return None


def check_for_scenarios(name: str, config: Path | None) -> None:
    """Check that a kernel has what every scenario needs, if its configuration is known.

    :raise UsageError: it lacks something, so that each scenario would skip.
    """
    if config is not None:
        lacks = config_needs.unmet_requirements(
            config_needs.EVERY_SCENARIO, _parsed(config.read_text(encoding="utf-8"), str(config))
        )
        if lacks:
            raise UsageError(
                f"kernel {name}: no scenario can test it; its configuration lacks\n  " + "\n  ".join(lacks)
            )


def _look_inside(name: str, plain: Path, header: Header) -> _Inside:
    try:
        with kernel_image.vmlinux(plain, name) as image:
            return _Inside(
                config=kernel_image.find_config(image), vermagic=kernel_image.find_vermagic(image, header.release)
            )
    except (kernel_image.UnknownImage, ToolMissing) as why:
        return _Inside(notes=(f"what is built into a kernel cannot be read: {why}",))


def _read(configs: tuple[Path, ...], header: Header) -> tuple[str | None, str, list[str]]:
    """Find the first file that is the kernel's configuration: returns its text, its name, and notes on other files."""
    notes = []
    for path in configs:
        try:
            text = _text(path)
        except (OSError, ValueError) as error:
            notes.append(f"{path}: cannot be read as a configuration: {error}")
            continue
        title = _TITLE.match(text)
        # The name of a link does not tell what it leads to.
        named = path.name == f"config-{header.release}" and not path.is_symlink()
        if named or (title and (path.parent.name == header.release or _is_of(title["version"], header))):
            return text, str(path), notes
        if title:
            notes.append(f"{path}: of Linux {title['version']}, and so not the configuration of {header.release}")
    return None, "", notes


def _text(path: Path) -> str:
    """:raise OSError: it cannot be read. :raise ValueError: it is too large, or not UTF-8."""
    with path.open("rb") as file:
        data = file.read(kernel_image.MOST_CONFIG_BYTES + 1)
    if len(data) > kernel_image.MOST_CONFIG_BYTES:
        raise ValueError(f"expected at most {format_size(kernel_image.MOST_CONFIG_BYTES)}, got more")
    return data.decode()


def _is_of(version: str, header: Header) -> bool:
    """Whether a kernel is of this version: its release begins with it, or its banner ends with it, as Debian's does."""
    return (
        re.search(rf"(?:^|\s){re.escape(version)}(?![\w.])", f"{header.release} {header.banner.partition('#')[2]}")
        is not None
    )


def _parsed(text: str, where: str) -> dict[str, Option]:
    try:
        return config_fragments.parse(text, where)
    except BuildError as error:
        raise UsageError(str(error)) from error


def _modules(name: str, folder: Path, header: Header, vermagic: str | None) -> dict[str, Path]:
    """:raise UsageError: there are no modules, or they belong to another kernel."""
    above = (
        folder / header.release,
        folder / "lib/modules" / header.release,
        folder / "usr/lib/modules" / header.release,
    )
    if better := next((path for path in above if path.is_dir()), None):
        raise UsageError(
            f"{folder}: expected the folder of the modules of Linux {header.release} itself, which is {better}"
        )
    there = module_tree.list_modules(folder)
    if not there and not (folder / "modules.builtin").is_file():  # a kernel may have all its modules built in
        raise UsageError(
            f"{folder}: expected the modules of Linux {header.release} (lib/modules/{header.release}), found none; "
            "a kernel that needs none is given alone"
        )
    for magic, module in module_tree.read_vermagics(there, tuple(config_needs.MODULES.values())).items():
        expected = vermagic or header.release
        got = magic if vermagic else magic.split(" ")[0]
        if got != expected:
            raise UsageError(
                f"{name}: Linux {header.release} cannot load the modules in {folder}, which belong to another kernel:\n"
                f"    expected: {expected}\n    got of {module}.ko: {got}"
            )
    return there
