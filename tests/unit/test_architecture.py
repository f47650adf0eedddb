"""Checks the layers: a module imports only from packages on layers below, and within its package without circles."""

import ast
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "testbed"

# Lowest first; docs/architecture.md shows the same lines. Packages of one layer do not import each other.
LAYERS = (
    "errors units text hashing regex cgroupfs progress",
    "host hardware",
    "store",
    "topology",
    "qemu",
    "guest",
    "scenarios bugs vms api",
    "report",
    "cli pytest_plugin",
)
LAYER = {name: number for number, names in enumerate(LAYERS) for name in names.split()}
# Modules that do I/O: pure modules import none of them.
IO = {"asyncio", "asyncssh", "subprocess", "socket", "qemu", "filelock", "shutil", "tempfile", "signal"}
PURE = set(
    [
        "errors",
        "units",
        "text",
        "hashing",
        "regex",
        "cgroupfs",
        "progress",
        "host/facts",
        "hardware/commands",
        "hardware/disk_images",
        "hardware/disk_kinds",
        "hardware/faults",
        "hardware/latency",
        "hardware/profiles",
        "hardware/throttle",
        "store/kernels/ablations",
        "store/kernels/compiler",
        "store/kernels/config_fragments",
        "store/kernels/config_needs",
        "store/kernels/kconfig",
        "store/kernels/kconfig_conditions",
        "store/kernels/mailbox",
        "store/kernels/make_args",
        "store/kernels/make_output",
        "store/kernels/patches",
        "store/kernels/table",
        "store/kernels/versions",
        "topology/filesystems",
        "topology/kernel_features",
        "qemu/block_filters",
        "qemu/blockdev",
        "qemu/command_line",
        "qemu/io_errors",
        "qemu/machine_id",
        "qemu/netdev",
        "qemu/qmp_command",
        "guest/channels/dmesg",
        "guest/channels/kernel_log",
        "guest/channels/ssh_keys",
        "guest/debug/kallsyms",
        "guest/deadlines",
        "guest/devices",
        "guest/lifecycle",
        "guest/setup/block_stack",
        "guest/setup/cgroups",
        "guest/setup/disk_facts",
        "guest/setup/networks",
        "guest/setup/readback",
        "guest/setup/steps",
        "guest/setup/survey",
        "guest/setup/survey_parser",
        "guest/shell_functions",
        "scenarios/verdict",
        "api/blktests",
        "bugs/absence",
        "bugs/bisect_search",
        "bugs/bundle_rules",
        "bugs/conclusion",
        "bugs/ddmin",
        "bugs/kernel_tries",
        "bugs/load",
        "bugs/model",
        "bugs/script_files",
        "bugs/shell_messages",
        "bugs/signature",
        "bugs/statistics",
        "report/partial",
        "report/plan_text",
        "report/rank_test",
        "report/topology_svg",
    ]
)
MODULES = sorted(PACKAGE.rglob("*.py"))


def name_of(path: Path) -> str:
    """Return the name of a module as in `PURE`: `guest/lifecycle`."""
    return str(path.relative_to(PACKAGE).with_suffix("")).removesuffix("/__init__")


NAMES = {name_of(path): path for path in MODULES}


def imports(path: Path) -> Iterator[str]:
    """Yield everything that a module imports, in any function or branch: `asyncio`, `testbed.guest.lifecycle.State`."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def used(path: Path) -> set[str]:
    """Return our own modules that a module imports, named as in `PURE`."""
    found = set()
    for name in imports(path):
        parts = name.split(".")
        if parts[0] == "testbed":
            inside = ("/".join(parts[1:end]) for end in range(len(parts), 1, -1))
            found.add(next((one for one in inside if one in NAMES), ""))
    return found - {""}


def package(name: str) -> str:
    return name.split("/")[0]


USED: Mapping[str, set[str]] = {name: used(path) for name, path in NAMES.items()}


@pytest.mark.parametrize("name", sorted(NAMES.keys() - {"__init__", "__main__"}))
def test_a_module_imports_only_from_layers_below(name: str) -> None:
    own = package(name)
    assert own in LAYER, f"{own} is on no layer: put it into LAYERS"
    # Modules of the first layer may use each other.
    least = max(LAYER[own], 1)
    assert not {one for one in USED[name] if package(one) != own and LAYER[package(one)] >= least}


def test_no_modules_import_each_other_in_a_circle() -> None:
    left = dict(USED)
    # A module that imports none of the modules left, or that none of them imports, is in no circle; and so on.
    while free := {name for name, others in left.items() if not (others & left.keys()) - {name}}:
        left = {name: others for name, others in left.items() if name not in free}
    while last := {name for name in left if not any(name in others for other, others in left.items() if other != name)}:
        left = {name: others for name, others in left.items() if name not in last}
    assert not sorted(left)


def test_every_pure_module_is_there() -> None:
    assert not PURE - NAMES.keys()


@pytest.mark.parametrize("name", sorted(PURE & NAMES.keys()))
def test_pure_modules_touch_nothing(name: str) -> None:
    assert not {one.split(".")[0] for one in imports(NAMES[name])} & IO


@pytest.mark.parametrize("name", sorted(NAMES))
def test_only_the_command_line_and_reports_print_and_only_the_command_line_exits(name: str) -> None:
    text = NAMES[name].read_text()
    calls = {
        node.func.id
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
    }
    if package(name) not in ("cli", "report"):
        assert "print" not in calls
    assert not calls & {"exit", "quit"}
    if package(name) != "cli":
        assert "sys.exit" not in text
