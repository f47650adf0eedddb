"""The order of the house: a module imports only from floors below it (or its own room)."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "testbed"

# Lowest first; see docs/architecture.md.
FLOORS: tuple[tuple[str, ...], ...] = (
    (
        "printable",
        "errors",
        "strict",
        "units",
        "keys",
        "ssh_keys",
        "progress",
        "jsons",
        "paths",
        "beneath",
        "trust",
        "patterns",
        "rates",
        "apart",
        "rank_test",
    ),
    ("hardware", "filesystems", "kernels", "host"),
    ("topology",),
    ("bugs",),
    (
        "drives",
        "layers",
        "plan",
        "stack",
        "groups",
        "readback",
        "survey",
        "links",
        "lifecycle",
        "partial",
        "devices",
        "disk_errors",
        "counters",
        "group_counts",
        "guest_shell",
        "console",
        "verdict",
        "blktests",
        "kbuild",
    ),
    ("diagnostics",),
    ("signature", "kernel_log", "symbols", "reduction", "bisection", "parcel"),
    (
        "plan_text",
        "picture",
        "process",
        "held",
        "export",
        "exports",
        "spares",
        "answers",
        "neighbours",
        "netns",
        "probe_confinement",
        "ssh_proxy",
        "monitor",
        "poller",
        "states",
        "shell",
        "switch",
        "syntax",
        "confine",
        "enclose",
        "custody",
        "journal",
        "mishaps",
        "wires",
        "session",
        "vms",
        "store",
        "probe",
        "admission",
        "allotment",
        "evidence",
        "room",
    ),
    (
        "accounts",
        "order",
        "slots",
        "live_disks",
        "actions",
        "machine",
        "marks",
        "life",
        "login",
        "guest",
        "clock",
        "player",
        "snapshot",
        "template",
        "mounts",
        "gauges",
        "recorder",
        "sampler",
        "group_sampler",
        "lab",
        "debugger",
        "dumps",
        "counting",
        "trial",
        "tries",
        "user_scripts",
        "doctor",
        "fio",
        "durability",
        "reach",
    ),
    ("desk", "hold", "supervisor"),
    ("up",),
    ("api",),
    ("suites",),
    ("scenarios",),
    ("runner",),
    ("repro",),
    ("campaign", "claims"),
    ("bug_results",),
    ("report", "inventory"),
    ("cli", "pytest_plugin", "__main__"),
)
RANK = {room: rank for rank, rooms in enumerate(FLOORS) for room in rooms}
# What touches the outside: pure floors import none of it.
IO = {"asyncio", "asyncssh", "subprocess", "socket", "qemu", "filelock", "shutil", "tempfile", "signal"}
PURE = {
    "partial",
    "printable",
    "units",
    "kbuild",
    "blktests",
    "keys",
    "ssh_keys",
    "hardware",
    "filesystems",
    "kernels",
    "host",
    "drives",
    "layers",
    "plan",
    "plan_text",
    "picture",
    "stack",
    "groups",
    "readback",
    "survey",
    "links",
    "lifecycle",
    "disk_errors",
    "devices",
    "counters",
    "group_counts",
    "guest_shell",
    "strict",
    "console",
    "verdict",
    "patterns",
    "rates",
    "apart",
    "rank_test",
    "bugs",
    "diagnostics",
    "signature",
    "kernel_log",
    "symbols",
    "reduction",
    "bisection",
    "parcel",
}

MODULES = sorted(path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py")


def room(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports(path: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def rooms_used(path: Path) -> set[str]:
    inside = {name.split(".")[1] for name in imports(path) if name.startswith("testbed.")}
    return {name for name in inside if name in RANK or (PACKAGE / f"{name}.py").exists() or (PACKAGE / name).is_dir()}


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_module_has_a_floor_and_imports_only_from_below(path: Path) -> None:
    own = room(path)
    assert own in RANK, f"{own} has no floor: put it into FLOORS"
    above = {used for used in rooms_used(path) if used != own and RANK[used] > RANK[own]}
    assert not above


@pytest.mark.parametrize("path", [path for path in MODULES if room(path) in PURE], ids=lambda path: str(path.relative_to(PACKAGE)))
def test_pure_modules_touch_nothing(path: Path) -> None:
    assert not {name.split(".")[0] for name in imports(path)} & IO


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_only_the_faces_print_and_only_the_command_line_exits(path: Path) -> None:
    calls = {
        node.func.id for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
    }
    if room(path) not in ("cli", "report"):
        assert "print" not in calls
    assert not calls & {"exit", "quit"}
    if room(path) != "cli":
        assert "sys.exit" not in path.read_text()
