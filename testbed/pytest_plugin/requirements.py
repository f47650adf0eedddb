"""Finds out which requirements of a test a guest does not meet."""

from __future__ import annotations

import re
from collections.abc import Sequence

from testbed.api.vm import Vm

_VERSION = re.compile(r"\s*(>=|<=|==|<|>)\s*(\d+(?:\.\d+)*)\s*")
# $@: KIND:NAME. Modules are loaded, because the test needs them; built-in ones have a folder in /sys/module.
_SCRIPT = """\
for need; do
    name=${need#*:}
    case $need in
    module:*) modprobe -q "$name" || [ -e "/sys/module/$(echo "$name" | tr - _)" ] || echo "$need" ;;
    tool:*) command -v "$name" >/dev/null || echo "$need" ;;
    esac
done
[ ! -e /proc/config.gz ] || { echo ==config; zcat /proc/config.gz; }
"""


def lacking_version(qemu: Sequence[str], version: str) -> str:
    """Return why this version of QEMU is not sufficient, or an empty string; names of devices are ignored."""
    for need in qemu:
        bound = _VERSION.fullmatch(need)
        if bound is not None and not _holds(_numbers(version), bound[1], _numbers(bound[2])):
            return f"QEMU {version} is not {need.strip()}"
    return ""


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version))


def _holds(have: tuple[int, ...], how: str, bound: tuple[int, ...]) -> bool:
    have = have[: len(bound)] if how in ("==", "<=", ">") else have
    return {">=": have >= bound, "<=": have <= bound, "==": have == bound, "<": have < bound, ">": have > bound}[how]


def config_lacks(need: str, config: str) -> str:
    """Return why a kernel's configuration does not meet `CONFIG_X` or `CONFIG_X=m`, or an empty string. `CONFIG_`
    is optional.
    """
    name, _, value = need.partition("=")
    name = name if name.startswith("CONFIG_") else f"CONFIG_{name}"
    has = next((line.removeprefix(f"{name}=") for line in config.splitlines() if line.startswith(f"{name}=")), None)
    if has is None:
        return name
    return "" if not value or has == value else f"{name}={value} (it has {has[:80]})"


async def missing_requirement(
    vm: Vm, modules: Sequence[str], config: Sequence[str], tools: Sequence[str], qemu: Sequence[str], known: str | None
) -> tuple[str, ...]:
    """Return the requirements that the guest does not meet. `known`: the kernel's configuration, if it came with one.

    :raise GuestError: the guest does not answer.
    """
    missing: list[str] = []
    needed = [*(f"module:{name}" for name in modules), *(f"tool:{name}" for name in tools)]
    if needed or (config and known is None):
        output, _, own = (await vm.script(_SCRIPT, *needed)).stdout.partition("==config\n")
        missing += [f"{kind} {name}" for kind, _, name in (line.partition(":") for line in output.splitlines())]
        known = known or own or None
    if config and known is None:
        missing.append(f"a configuration that says whether it has {', '.join(config)}")
    missing += [f"{lack}" for need in config if known is not None and (lack := config_lacks(need, known))]
    devices = [need for need in qemu if _VERSION.fullmatch(need) is None]
    if devices:
        types = {entry["name"] for entry in await vm.qmp.execute("qom-list-types", {"implements": "device"})}
        missing += [f"QEMU device {name}" for name in devices if name not in types]
    return tuple(missing)
