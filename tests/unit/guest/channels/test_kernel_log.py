import re
from collections import Counter
from pathlib import Path

import pytest
import re2

from testbed.guest.channels import kernel_log
from testbed.guest.channels.kernel_log import Kind

DATA = Path(__file__).parents[3] / "data"
DOCS = Path(__file__).parents[4] / "docs" / "reports.md"

# Recorded consoles of real guests, and what is in them. Those of 6.1 with a call trace of `splat` had the module data/splat.c loaded, and
# those that are called splats modules as tests/guest/guest/test_warnings.py makes them; of those that are called disks, every line is one.
RECORDED = {
    "console-panic-6.1.txt": {Kind.PANIC: 1},
    "console-oom-6.1.txt": {Kind.OOM: 6},
    "console-boot-5.10.txt": {},
    "console-lockup-5.10.txt": {Kind.LOCKUP: 2},
    "console-lockup-6.1.txt": {Kind.LOCKUP: 2},
    "console-warning-6.1.txt": {Kind.WARNING: 1},
    "console-refcount-6.1.txt": {Kind.REFCOUNT: 1, Kind.WARNING: 1},
    "console-list-6.1.txt": {Kind.LIST_CORRUPTION: 1, Kind.OOPS: 2},
    "console-oops-6.1.txt": {Kind.OOPS: 2},
    "console-atomic-6.1.txt": {Kind.ATOMIC_SLEEP: 1, Kind.WARNING: 1},
    "console-hung-6.1.txt": {Kind.HUNG_TASK: 6},
    "console-rcu-6.1.txt": {Kind.RCU_STALL: 2},
    "console-disks-5.10.txt": {Kind.IO_ERROR: 11, Kind.FILESYSTEM: 7},
    "console-disks-6.1.txt": {Kind.IO_ERROR: 16, Kind.FILESYSTEM: 12},
    "console-disks-6.12.txt": {Kind.IO_ERROR: 11, Kind.FILESYSTEM: 7},
    "console-disks-7.2.txt": {Kind.IO_ERROR: 12, Kind.FILESYSTEM: 7},
    "console-splats-5.10.txt": {Kind.REFCOUNT: 1, Kind.WARNING: 1, Kind.OOPS: 2},
    "console-splats-6.12.txt": {Kind.WARNING: 3, Kind.REFCOUNT: 1, Kind.ATOMIC_SLEEP: 1, Kind.OOPS: 2},
    "console-splats-7.2.txt": {Kind.WARNING: 3, Kind.REFCOUNT: 1, Kind.ATOMIC_SLEEP: 1, Kind.OOPS: 2},
}

# The whole logs of kernels that have booted, and that have seen a disk of each kind come and go.
BOOTED = ("dmesg-boot-5.10.txt", "dmesg-boot-6.1.txt", "dmesg-boot-6.12.txt", "dmesg-boot-7.2.txt")

# Lines that no guest here was brought to print, by the kernel whose source has the format; what no version is named for is the same from
# 5.10 to 7.2.
LINES = {
    Kind.PANIC: [
        "Kernel panic - not syncing: Attempted to kill init! exitcode=0x00000009",
        "Kernel panic - not syncing: stack-protector: Kernel stack is corrupted in: loop_queue_work+0x1/0x2 [loop]",
    ],
    Kind.OOPS: [
        "BUG: unable to handle page fault for address: ffffffff",
        "BUG: kernel NULL pointer dereference, address: 0000000000000000",
        "BUG: TASK stack guard page was hit at 00000000c2d1e4d3 (stack is 00000000c2d1e4d3..00000000c2d1e4d4)",  # 5.15
        "BUG: invalid or fatal FRED event; event type 3 vector 14 error 0x0 aux 0x0 at 0010:ffffffff81000000",  # 6.9
        "general protection fault, probably for non-canonical address 0xdead000000000122: 0000 [#1] SMP NOPTI",  # until 6.9
        "Oops: general protection fault, probably for non-canonical address 0xdead000000000122: 0000 [#1] SMP NOPTI",  # 6.10
        "divide error: 0000 [#1] SMP NOPTI",  # until 6.9
        "Oops: divide error: 0000 [#1] SMP NOPTI",  # 6.10
        "invalid opcode: 0000 [#1] SMP NOPTI",  # until 6.9
        "Oops: 0002 [#1] SMP NOPTI",
        "PANIC: double fault, error_code: 0x0",
        "traps: PANIC: double fault, error_code: 0x0",
        "kernel BUG at mm/slub.c:4000!",
        "Kernel BUG at loop_queue_rq+0x1/0x2 [verbose debug info unavailable]",
    ],
    Kind.LOCKDEP: [
        "WARNING: possible circular locking dependency detected",
        "WARNING: possible recursive locking detected",
        "WARNING: possible irq lock inversion dependency detected",
        "WARNING: inconsistent lock state",
        "WARNING: SOFTIRQ-safe -> SOFTIRQ-unsafe lock order detected",
        "WARNING: suspicious RCU usage",
        "WARNING: bad unlock balance detected!",
        "WARNING: bad contention detected!",
        "WARNING: held lock freed!",
        "WARNING: lock held when returning to user space!",
        "WARNING: nested lock was not taken",
        "WARNING: losetup/77 still has locks held!",
        "[ BUG: Invalid wait context ]",
        "BUG: MAX_LOCKDEP_CHAINS too low!",
        "BUG: key ffff888005d2c1a8 has not been registered!",
        "BUG: spinlock bad magic on CPU#0, losetup/77",
        "BUG: rwlock wrong CPU on CPU#1, losetup/77, 00000000c2d1e4d3",
        "INFO: trying to register non-static key.",
        "DEBUG_LOCKS_WARN_ON(lock->magic != lock)",
    ],
    Kind.ATOMIC_SLEEP: [
        "BUG: sleeping function called from invalid context at kernel/locking/mutex.c:580",
        "BUG: scheduling while atomic: insmod/77/0x00000002",
        "BUG: using smp_processor_id() in preemptible [00000000] code: losetup/77",
        "BUG: workqueue leaked lock or atomic: kworker/0:1/0x00000001/77",  # until 6.9
        "BUG: workqueue leaked atomic, lock or RCU: kworker/0:1[77]",  # 6.10
    ],
    Kind.KASAN: [
        "BUG: KASAN: slab-use-after-free in loop_free_idle_workers+0x1/0x2",
        "BUG: KFENCE: out-of-bounds read in loop_free_idle_workers+0x1/0x2",  # 5.12
        "BUG: KMSAN: uninit-value in loop_free_idle_workers+0x1/0x2",  # 6.1
        "KASAN: null-ptr-deref in range [0x0000000000000010-0x0000000000000017]",
    ],
    Kind.KCSAN: [
        "BUG: KCSAN: data-race in loop_queue_rq / loop_workfn",
        "BUG: KCSAN: assert: race in loop_queue_rq+0x1/0x2",
    ],
    Kind.UBSAN: [
        "UBSAN: array-index-out-of-bounds in drivers/block/loop.c:12:3",
        "UBSAN: shift-out-of-bounds in ./include/linux/log2.h:67:13",
    ],
    Kind.SLAB: [
        "BUG kmalloc-64 (Not tainted): Left Redzone overwritten",
        "BUG kmalloc-rnd-03-64 (Tainted: G    B   W  OE     ): Object already free",
        "BUG ext4_inode_cache (Tainted: [B]=BAD_PAGE): Poison overwritten",  # 6.12
        "INFO: Slab 0x00000000c2d1e4d3 objects=32 used=32 fp=0x0000000000000000 flags=0x0200",  # until 5.11
        "slab error in cache_free_debugcheck(): cache `kmalloc-64': double free, or memory outside object was overwritten",  # until 6.7
    ],
    Kind.BAD_PAGE: [
        "BUG: Bad page state in process dd  pfn:0a1b2",
        "BUG: Bad page map in process dd  pte:8000000000000027 pmd:0a1b2067",
        "BUG: Bad page cache in process dd  pfn:0a1b2",
        "BUG: Bad rss-counter state mm:00000000c2d1e4d3 type:MM_ANONPAGES val:1",
        "BUG: non-zero pgtables_bytes on freeing mm: 4096",
        "mm/pgtable-generic.c:42: bad pmd 00000000c2d1e4d3(0000000000000027)",
        "swap_info_get: Bad swap file entry 3ffffffffffff",
    ],
    Kind.LIST_CORRUPTION: [
        "list_add double add: new=ffff, prev=ffff, next=ffff.",
        "list_add corruption. prev->next should be next (ffff), but was 0000. (prev=ffff).",
        "list_del corruption, ffff->next is LIST_POISON1 (dead000000000100)",
    ],
    Kind.REFCOUNT: [
        "refcount_t: addition on 0; use-after-free.",
        "refcount_t: underflow; use-after-free.",
        "percpu ref (css_release) <= 0 (-1) after switching to atomic",
    ],
    Kind.LEAK: [
        "kmemleak: 3 new suspected memory leaks (see /sys/kernel/debug/kmemleak)",
        "BUG: memory leak",
        "kmemleak: unreferenced object 0xffff888005d2c1a8 (size 64):",
    ],
    Kind.WARNING: [
        "WARNING: CPU: 0 PID: 1 at drivers/block/loop.c:10 loop_workfn+0x1/0x2",  # until 6.18
        "WARNING: CPU: 0 PID: 1 at loop_workfn+0x1/0x2",  # until 6.18, without CONFIG_DEBUG_BUGVERBOSE
        "WARNING: drivers/block/loop.c:10 at loop_workfn+0x1/0x2 [loop], CPU#0: kworker/0:1/77",  # 6.19
        "WARNING: at loop_workfn+0x1/0x2, CPU#0: a b/77",  # 6.19
        "WARNING: ./include/linux/rcupdate.h:10 at loop_workfn+0x1/0x2, CPU#3: (sd-pam)/77",  # 6.19
        "ODEBUG: free active (active state 0) object: 00000000c2d1e4d3 object type: timer_list hint: loop_free_idle_workers_timer+0x0/0x2",
    ],
    Kind.HUNG_TASK: [
        "INFO: task dd:77 blocked for more than 120 seconds.",
        "INFO: task dd:77 blocked in I/O wait for more than 120 seconds.",  # 6.19
        "INFO: task dd:77 is blocked on a mutex likely owned by task losetup:78.",  # 6.16
    ],
    Kind.LOCKUP: [
        "watchdog: BUG: soft lockup - CPU#0 stuck for 26s! [dd:1]",
        "NMI watchdog: Watchdog detected hard LOCKUP on cpu 0",
        "watchdog: CPU0: Watchdog detected hard LOCKUP on cpu 0",  # 6.6
        "BUG: workqueue lockup - pool cpus=0 node=0 flags=0x0 nice=0 stuck for 31s!",
    ],
    Kind.RCU_STALL: [
        "rcu: INFO: rcu_preempt detected stalls on CPUs/tasks:",
        "rcu: INFO: rcu_sched self-detected stall on CPU",
        "rcu: INFO: rcu_preempt detected expedited stalls on CPUs/tasks: { 0-...D } 29 jiffies s: 97 root: 0x1/.",
        "INFO: rcu_tasks detected stalls on tasks:",
        "rcu: rcu_preempt kthread starved for 5250 jiffies! g1234 f0x0 RCU_GP_WAIT_FQS(5) ->state=0x0 ->cpu=0",
    ],
    Kind.OOM: [
        "kworker/u4:1 invoked oom-killer: gfp_mask=0x100cca",
        "Memory cgroup out of memory: Killed process 77 (dd) total-vm:1kB, anon-rss:1kB",
        "Out of memory and no killable processes...",
        "Out of memory: Killed process 77 (dd) total-vm:1kB, anon-rss:1kB",
        "kworker/u4:1: page allocation failure: order:4, mode:0x40dc0(GFP_KERNEL|__GFP_COMP|__GFP_ZERO), nodemask=(null)",
    ],
    Kind.IO_ERROR: [
        "blk_update_request: I/O error, dev vdc, sector 8 op 0x1:(WRITE) flags 0x800 phys_seg 1 prio class 0",  # until 5.17
        "blk_update_request: critical medium error, dev sda, sector 8 op 0x0:(READ) flags 0x0 phys_seg 1 prio class 0",  # until 5.17
        "I/O error, dev vdc, sector 8 op 0x1:(WRITE) flags 0x800 phys_seg 1 prio class 2",  # 5.18
        "critical medium error, dev nvme0n1, sector 8 op 0x0:(READ) flags 0x0 phys_seg 1 prio class 2",  # 5.18
        "timeout error, dev nvme0c0n1, sector 8 op 0x0:(READ) flags 0x0 phys_seg 1 prio class 2",  # 5.18
        "Buffer I/O error on dev loop0, logical block 8, lost async page write",
        "Buffer I/O error on device loop0, logical block 8",
        "loop: Write error at byte offset 4096, length 4096.",
        "nvme0n1: Read(0x2) @ LBA 8, 8 blocks, Unrecovered Read Error (sct 0x2 / sc 0x81) DNR ",  # 5.19
        "sd 0:0:0:0: [sda] tag#1 FAILED Result: hostbyte=DID_OK driverbyte=DRIVER_OK cmd_age=0s",
        "sd 0:0:0:0: rejecting I/O to offline device",
        "Write-error on swap-device (253:16:4096)",
    ],
    Kind.FILESYSTEM: [
        "EXT4-fs error (device vdc): ext4_find_entry:1455: inode #2: comm ls: reading directory lblock 0",
        "EXT4-fs warning (device loop0): ext4_end_bio:343: I/O error 10 writing to inode 12 starting block 33793)",
        "EXT4-fs (vdc): Remounting filesystem read-only",
        "EXT4-fs (vdc): I/O error while writing superblock",
        "EXT4-fs (vdc): ext4_check_descriptors: Checksum for group 0 failed (1!=2)",
        "Aborting journal on device vdc-8.",
        "JBD2: I/O error when updating journal superblock for vdc-8.",
        "JBD2: corrupted journal superblock",
        "Page cache invalidation failure on direct I/O.  Possible data corruption due to collision with buffered I/O!",
        "JBD2: Detected IO errors while flushing file data on vdc-8",
        'XFS (loop0): metadata I/O error in "xfs_da_read_buf+0x1/0x2" at daddr 0x8 len 8 error 5',
        "XFS (loop0): Corruption of in-memory data (0x8) detected at xfs_defer_finish+0x1/0x2 (x.c:10).  Shutting down filesystem.",
        "XFS (loop0): Metadata CRC error detected at xfs_agf_read_verify+0x1/0x2, xfs_agf block 0x1",
        "XFS (loop0): Log I/O Error Detected. Shutting down filesystem.",
        "XFS (loop0): log I/O error -5",
        "XFS (loop0): Please unmount the filesystem and rectify the problem(s)",
        "XFS: Assertion failed: 0, file: fs/xfs/xfs_log.c, line: 10",
        "BTRFS error (device loop0): bdev /dev/loop0 errs: wr 1, rd 0, flush 0, corrupt 0, gen 0",
        "BTRFS error (device loop0 state EA): parent transid verify failed on logical 1 mirror 1 wanted 2 found 3",  # 5.19
        "BTRFS critical (device loop0): corrupt leaf: root=1 block=2 slot=3",
        "BTRFS: error (device loop0) in btrfs_commit_transaction:2418: errno=-5 IO failure",
        "BTRFS warning (device loop0): csum failed root 5 ino 257 off 0 csum 0x1 expected csum 0x2 mirror 1",
        "F2FS-fs (loop0): inconsistent node block, nid:4, node_footer[nid:0,ino:0,ofs:0,cpver:0,blkaddr:0]",
        "FAT-fs (loop0): error, fat_get_cluster: invalid cluster chain (i_pos 0)",
    ],
    Kind.DISK: [
        "nvme nvme0: I/O 12 QID 1 timeout, aborting",  # until 6.5
        "nvme nvme0: I/O tag 123 (307b) opcode 0x2 (I/O Cmd) QID 1 timeout, aborting req_op:READ(0) size:4096",  # 6.6
        "nvme nvme0: I/O tag 123 (307b) QID 1 timeout, reset controller",
        "nvme nvme0: I/O 12 QID 1 timeout, completion polled",
        "nvme nvme0: controller is down; will reset: CSTS=0xffffffff, PCI_STATUS=0xffff",
        "nvme nvme0: Abort status: 0x0",
        "nvme nvme0: Device not ready; aborting reset, CSTS=0x1",
        "ata1.00: exception Emask 0x0 SAct 0x0 SErr 0x0 action 0x6 frozen",
        "sd 0:0:0:0: [sda] tag#1 timing out command, waited 180s",
    ],
    Kind.OTHER: [
        "WARNING: a format that nobody knows yet",
        "BUG: Dentry 00000000c2d1e4d3{i=1,n=a}  still in use (1) [unmount of tmpfs tmpfs]",
        "BUG loop0 code 8 qlen 1",
        "loop: BUG: another one",
        "IPv6: BUG: Address fe80::1 on device eth0 is missing its host route.",
        "NEIGH: BUG, double timer add, state is 1",
        "INFO: a format that nobody knows yet",
        "WARNING: stack recursion on stack type 1",
        "KTSAN is none, but WARNING: is",
    ],
}


def stamped(text: str) -> str:
    return f"[   60.000000] {text}"


@pytest.mark.parametrize(("name", "kinds"), RECORDED.items(), ids=RECORDED.keys())
def test_recorded_consoles(name: str, kinds: dict[Kind, int]) -> None:
    reader = kernel_log.ConsoleReader()
    found = [finding for line in (DATA / name).read_text().splitlines() if (finding := reader.take(line))]
    assert Counter(finding.kind for finding in found) == kinds


@pytest.mark.parametrize("name", ["console-warning-6.1.txt", "console-splats-6.12.txt", "console-splats-7.2.txt"])
def test_warnings_whose_banner_is_another_one_day_are_findings_by_their_frame(name: str) -> None:
    reader = kernel_log.ConsoleReader()
    lines = (DATA / name).read_text().replace("WARNING: ", "Attention ").splitlines()
    found = [finding for line in lines if (finding := reader.take(line))]
    # The one below `refcount_t` has a line that is known.
    count = RECORDED[name][Kind.WARNING] - RECORDED[name].get(Kind.REFCOUNT, 0)
    assert [one.kind for one in found].count(Kind.OTHER) == count and found[0].text.startswith("Attention ")


@pytest.mark.parametrize("name", BOOTED)
def test_a_healthy_boot_says_nothing_whatever_the_level(name: str) -> None:
    reader = kernel_log.ConsoleReader()
    lines = (DATA / name).read_text().splitlines()
    assert len(lines) > 300 and [finding for line in lines if (finding := reader.take(line))] == []


@pytest.mark.parametrize(("kind", "text"), [(kind, text) for kind, texts in LINES.items() for text in texts])
def test_each_kind_of_line(kind: Kind, text: str) -> None:
    found = kernel_log.classify(stamped(text))
    assert found is not None and (found.kind, found.seconds, found.text) == (kind, 60.0, text.strip())
    # Programs of the guest have no stamp, and use the words of the last class.
    assert (kernel_log.classify(text) is None) == (kind is Kind.OTHER)


def test_every_kind_has_a_line() -> None:
    assert set(LINES) == set(Kind) - {Kind.PROGRAM, Kind.UNREAD}


# Such a line comes between `cut here` and `end trace`, which a search without a class knows.
FRAMED = (Kind.LIST_CORRUPTION, Kind.REFCOUNT)


@pytest.mark.parametrize("kind", [kind for kind in Kind if kind.splat and kind not in FRAMED])
def test_a_search_that_names_no_class_finds_every_splat(kind: Kind) -> None:
    pattern = re2.compile(kernel_log.ANY_SPLAT)
    assert [text for text in LINES[kind] if not pattern.search(stamped(text))] == []


@pytest.mark.parametrize(
    "text",
    [
        "Linux version 6.1",
        "Kernel command line: console=ttyS0 panic=-1 loglevel=5 mitigations=off",
        "x86/fpu: Supporting XSAVE feature 0x001: 'x87 floating point registers'",
        "kfence: initialized - using 2097152 bytes for 255 objects",
        "kasan: KernelAddressSanitizer initialized",
        "**   This means that this is a DEBUG kernel and it is     **",
        "Spectre V2 : WARNING: Unprivileged eBPF is enabled with eIBRS on, data leaks possible via Spectre v2 BHB attacks!",
        "INFO: NMI handler (perf_event_nmi_handler) took too long to run: 1.001 msecs",
        "INFO: lockdep is turned off.",
        "rcu: INFO: Expedited stall ended before state dump start",
        "EXT4-fs (vdc): INFO: recovery required on readonly filesystem",
        "ODEBUG: selftest passed",
        "EXT4-fs (vdc): mounted filesystem with ordered data mode. Opts: (null). Quota mode: none.",
        "EXT4-fs (vdc): VFS: Can't find ext4 filesystem",
        "EXT4-fs (vdc): warning: metadata_csum and uninit_bg are redundant flags - please run fsck.",
        "XFS (loop0): Mounting V5 Filesystem",
        "XFS (loop0): Ending clean mount",
        "XFS (loop0): Unmounting Filesystem",
        "BTRFS info (device loop0): disk space caching is enabled",
        "nvme nvme0: Shutdown timeout set to 8 seconds",
        "nvme nvme0: 1/0/0 default/read/poll queues",
        "traps: dd[77] general protection fault ip:55d0c8 sp:7ffd error:0 in dd[55d0c8000000+1000]",
        "dd[77]: segfault at 0 ip 000055d0c8 sp 00007ffd error 4 in dd[55d0c8000000+1000]",
        "clocksource: timekeeping watchdog on CPU0: Marking clocksource 'tsc' as unstable because the skew is too large:",
        "[Firmware Bug]: TSC_DEADLINE disabled due to Errata; please update microcode to version: 0x52 (or later)",
        "workqueue: blk_mq_run_work_fn hogged CPU for >10000us 4 times, consider switching to WQ_UNBOUND",
        "hrtimer: interrupt took 5500000 ns",
    ],
)
def test_lines_of_a_healthy_kernel_say_nothing(text: str) -> None:
    assert kernel_log.classify(stamped(text)) is None


HARMLESS = "INFO: lockdep is turned off."


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        (Kind.OOPS, f"BUG: unable to handle page fault for address: ffffffff {HARMLESS}"),
        (Kind.OOPS, f"{HARMLESS} BUG: unable to handle page fault for address: ffffffff"),
        (Kind.PANIC, f"{HARMLESS} Kernel panic - not syncing: {HARMLESS}"),
        (Kind.OTHER, f"BUG: a format that nobody knows yet {HARMLESS}"),
        (Kind.OTHER, f"loop: BUG: a format that nobody knows yet; {HARMLESS}"),
    ],
)
def test_an_alarm_wins_over_what_is_harmless_on_the_same_line(kind: Kind, text: str) -> None:
    found = kernel_log.classify(stamped(text))
    assert found is not None and found.kind is kind


@pytest.mark.parametrize(
    "line",
    ["", "dropbear: WARNING is a word", "login:", "WARNING: a program's", "BUG: a program's", "INFO: a program's"],
)
def test_other_lines_say_nothing(line: str) -> None:
    assert kernel_log.classify(line) is None


@pytest.mark.parametrize("program", ["systemd[1]", "systemd-journald[151]", "(sd-pam)[77]", "sshd(pam_unix)[77]"])
@pytest.mark.parametrize("text", ["INFO: hello", "WARNING: a program's", "BUG: a program's", "a BUG, it says"])
def test_the_broad_class_is_not_for_a_line_that_a_program_has_put_its_name_before(program: str, text: str) -> None:
    assert kernel_log.classify(stamped(f"{program}: {text}")) is None
    found = kernel_log.classify(stamped(f"{program}: BUG: unable to handle page fault for address: ffffffff"))
    assert found is not None and found.kind is Kind.OOPS


@pytest.mark.parametrize("before", ["", "root@g0:~# ", "half a line of a program", "\x1b[2J", "<4>"])
@pytest.mark.parametrize("caller", ["", "[    T1]", "[   C12]"])
def test_what_stands_before_a_stamp_is_not_the_kernels(before: str, caller: str) -> None:
    found = kernel_log.classify(f"{before}[    1.500000]{caller} WARNING: a format that nobody knows yet\r")
    assert found is not None and (found.kind, found.seconds, found.text) == (
        Kind.OTHER,
        1.5,
        "WARNING: a format that nobody knows yet",
    )


@pytest.mark.parametrize("stamp", ["9" * 400 + ".000000", "\u0661.000000", "\u00b2.000000", "1.0", "-1.000000", "nan"])
def test_what_is_no_time_is_no_stamp(stamp: str) -> None:
    assert kernel_log.classify(f"[{stamp}] WARNING: a format that nobody knows yet") is None
    found = kernel_log.classify(f"[{stamp}] refcount_t: underflow; use-after-free.")
    assert found is not None and found.seconds is None


def heard(text: str) -> list[tuple[Kind, str]]:
    reader = kernel_log.ConsoleReader()
    return [(found.kind, found.text) for line in text.splitlines() if (found := reader.take(stamped(line)))]


CUT, END = "------------[ cut here ]------------", "---[ end trace 0000000000000000 ]---"
BODY = "Modules linked in: loop\nCPU: 0 UID: 0 PID: 151 Comm: dd Not tainted 9.0.0 #1\nRIP: 0010:loop_workfn+0x1/0x2\nCall Trace:\n <TASK>"
HEADING = "Attention, block/blk-core.c has warned"


@pytest.mark.parametrize(
    "report",
    [
        f"{CUT}\n{HEADING}\n{BODY}\n{END}",
        f"{CUT}\n{HEADING}\nanother line\n{BODY}\n{END}",
        f"{HEADING}\n{BODY}\n{END}",  # as the console of 7.2 shows it
        f"quiet\n{HEADING}\n{BODY}\n{END}\nquiet",
    ],
)
def test_a_report_that_is_known_by_its_frame_alone_is_one_finding(report: str) -> None:
    assert heard(report) == [(Kind.OTHER, HEADING)]
    assert heard(f"{report}\n{report}") == [(Kind.OTHER, HEADING)] * 2
    oom = "dd invoked oom-killer: gfp_mask=0xcc0(GFP_KERNEL), order=0"
    killed = f"{oom}\nCPU: 0 PID: 7 Comm: dd Not tainted 6.1\nCall Trace:\n dump_stack+0x1/0x2"
    assert heard(f"{killed}\n{report}") == [(Kind.OOM, oom), (Kind.OTHER, HEADING)]


def test_a_report_with_a_line_that_is_known_is_no_other() -> None:
    banner = "WARNING: drivers/block/loop.c:10 at loop_workfn+0x1/0x2 [loop], CPU#0: kworker/0:1/77"
    for report in (f"{CUT}\nsome words first\n{banner}\n{BODY}\n{END}", f"some words first\n{banner}\n{BODY}\n{END}"):
        assert [kind for kind, _ in heard(f"{report}\n{report}")] == [Kind.WARNING] * 2
    assert heard(f"{CUT}\n{END}\n{END}") == [] and heard(f"{BODY}\n{END}") == []
    # One that was known does not stand for the next.
    hung = "INFO: task dd:77 blocked for more than 120 seconds.\n" + "      Not tainted\n" * 20
    assert [kind for kind, _ in heard(f"{hung}{HEADING}\n{BODY}\n{END}")] == [Kind.HUNG_TASK, Kind.OTHER]


def test_only_panic_and_oops_end_a_guest() -> None:
    assert {kind for kind in Kind if kind.fatal} == {Kind.PANIC, Kind.OOPS}


def test_what_could_steer_a_terminal_is_taken_out() -> None:
    assert kernel_log.clean("a\x1b[31mred\x1b[0m\x07\x9b2J\ttab") == "ared2J\ttab"
    assert len(kernel_log.clean("x" * 100_000)) == 1000


def test_the_docs_have_every_class() -> None:
    table = [line.split("|")[1] for line in DOCS.read_text(encoding="utf-8").splitlines() if "|" in line]
    assert {kind.value for kind in Kind} <= {name for cell in table for name in re.findall("`([^`]+)`", cell)}
