from collections import Counter
from pathlib import Path

import pytest

from testbed import console
from testbed.console import Kind

DATA = Path(__file__).parents[1] / "data"

# Recorded consoles of real guests, and what is in them. Those with a call trace of `splat` had the module data/splat.c loaded.
RECORDED = {
    "console-panic-6.1.txt": {Kind.PANIC: 1},
    "console-oom-6.1.txt": {Kind.OOM: 6},
    "console-boot-5.10.txt": {},
    "console-lockup-5.10.txt": {Kind.LOCKUP: 2},
    "console-lockup-6.1.txt": {Kind.LOCKUP: 2},
    "console-warning-6.1.txt": {Kind.WARNING: 1},
    "console-refcount-6.1.txt": {Kind.REFCOUNT: 1, Kind.WARNING: 1},
    "console-list-6.1.txt": {Kind.LIST_CORRUPTION: 1, Kind.OOPS: 1},
    "console-oops-6.1.txt": {Kind.OOPS: 2},
    "console-atomic-6.1.txt": {Kind.ATOMIC_SLEEP: 1, Kind.WARNING: 1},
    "console-hung-6.1.txt": {Kind.HUNG_TASK: 6},
    "console-rcu-6.1.txt": {Kind.RCU_STALL: 2},
}


@pytest.mark.parametrize(("name", "kinds"), RECORDED.items(), ids=RECORDED.keys())
def test_recorded_consoles(name: str, kinds: dict[Kind, int]) -> None:
    lines = (DATA / name).read_text().splitlines()
    found = [finding for line in lines if (finding := console.classify(line))]
    assert Counter(finding.kind for finding in found) == kinds


@pytest.mark.parametrize(
    ("line", "kind"),
    [
        ("[    1.000000] Kernel panic - not syncing: Attempted to kill init!", Kind.PANIC),
        ("[    1.000000][  T1] BUG: unable to handle page fault for address: ffffffff", Kind.OOPS),
        ("[    1.000000] BUG: kernel NULL pointer dereference, address: 0000000000000000", Kind.OOPS),
        ("[    1.000000] general protection fault, probably for non-canonical address", Kind.OOPS),
        ("[    1.000000] kernel BUG at mm/slub.c:4000!", Kind.OOPS),
        ("[    1.000000] WARNING: CPU: 0 PID: 1 at drivers/block/loop.c:10 loop_workfn+0x1/0x2", Kind.WARNING),
        ("[    1.000000] WARNING: possible circular locking dependency detected", Kind.LOCKDEP),
        ("[    1.000000] WARNING: possible irq lock inversion dependency detected", Kind.LOCKDEP),
        ("[    1.000000] WARNING: inconsistent lock state", Kind.LOCKDEP),
        ("[    1.000000] WARNING: SOFTIRQ-safe -> SOFTIRQ-unsafe lock order detected", Kind.LOCKDEP),
        ("[    1.000000] WARNING: suspicious RCU usage", Kind.LOCKDEP),
        ("[    1.000000] BUG: sleeping function called from invalid context at kernel/locking/mutex.c:580", Kind.ATOMIC_SLEEP),
        ("[    1.000000] BUG: KASAN: slab-use-after-free in loop_free_idle_workers+0x1/0x2", Kind.KASAN),
        ("[    1.000000] list_add double add: new=ffff, prev=ffff, next=ffff.", Kind.LIST_CORRUPTION),
        ("[    1.000000] kmemleak: 3 new suspected memory leaks (see /sys/kernel/debug/kmemleak)", Kind.LEAK),
        ("[  242.1] INFO: task dd:77 blocked for more than 120 seconds.", Kind.HUNG_TASK),
        ("[   60.000000] watchdog: BUG: soft lockup - CPU#0 stuck for 26s! [dd:1]", Kind.LOCKUP),
        ("[   60.000000] rcu: INFO: rcu_preempt detected stalls on CPUs/tasks:", Kind.RCU_STALL),
        ("[   60.000000] kworker/u4:1 invoked oom-killer: gfp_mask=0x100cca", Kind.OOM),
        ("[   60.000000] I/O error, dev vdc, sector 8 op 0x1:(WRITE)", Kind.IO_ERROR),
    ],
)
def test_each_kind_of_line(line: str, kind: Kind) -> None:
    found = console.classify(line)
    assert found is not None and found.kind is kind


@pytest.mark.parametrize("line", ["", "[    0.000000] Linux version 6.1", "dropbear: WARNING is a word", "login:"])
def test_other_lines_say_nothing(line: str) -> None:
    assert console.classify(line) is None


def test_only_panic_and_oops_end_a_guest() -> None:
    assert {kind for kind in Kind if kind.fatal} == {Kind.PANIC, Kind.OOPS}


def test_what_could_steer_a_terminal_is_taken_out() -> None:
    assert console.clean("a\x1b[31mred\x1b[0m\x07\x9b2J\ttab") == "ared2J\ttab"
    assert len(console.clean("x" * 100_000)) == 1000
