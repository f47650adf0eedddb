"""Lines by which kernels report bugs, errors of disks and exhausted limits."""

from testbed.guest.channels.kernel_log import Kind

# Lines that no recorded console has. The formats are from the kernels' sources: a comment names the version that has
# the format; a format without one is the same from 5.10 to 7.2.
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
        "general protection fault, probably for non-canonical address 0xdead000000000122: 0000 [#1] SMP NOPTI",  # until 6.9  # noqa: E501 - a kernel's line
        "Oops: general protection fault, probably for non-canonical address 0xdead000000000122: 0000 [#1] SMP NOPTI",  # 6.10  # noqa: E501 - a kernel's line
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
        "slab error in cache_free_debugcheck(): cache `kmalloc-64': double free, or memory outside object was overwritten",  # until 6.7  # noqa: E501 - a kernel's line
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
        "ODEBUG: free active (active state 0) object: 00000000c2d1e4d3 object type: timer_list hint: loop_free_idle_workers_timer+0x0/0x2",  # noqa: E501 - a kernel's line
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
        "kworker/u4:1: page allocation failure: order:4, mode:0x40dc0(GFP_KERNEL|__GFP_COMP|__GFP_ZERO), nodemask=(null)",  # noqa: E501 - a kernel's line
    ],
    Kind.IO_ERROR: [
        "blk_update_request: I/O error, dev vdc, sector 8 op 0x1:(WRITE) flags 0x800 phys_seg 1 prio class 0",  # until 5.17  # noqa: E501 - a kernel's line
        "blk_update_request: critical medium error, dev sda, sector 8 op 0x0:(READ) flags 0x0 phys_seg 1 prio class 0",  # until 5.17  # noqa: E501 - a kernel's line
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
        "XFS (loop0): Corruption of in-memory data (0x8) detected at xfs_defer_finish+0x1/0x2 (x.c:10).  Shutting down filesystem.",  # noqa: E501 - a kernel's line
        "XFS (loop0): Metadata CRC error detected at xfs_agf_read_verify+0x1/0x2, xfs_agf block 0x1",
        "XFS (loop0): Log I/O Error Detected. Shutting down filesystem.",
        "XFS (loop0): log I/O error -5",
        "XFS (loop0): Please unmount the filesystem and rectify the problem(s)",
        "XFS: Assertion failed: 0, file: fs/xfs/xfs_log.c, line: 10",
        "BTRFS error (device loop0): bdev /dev/loop0 errs: wr 1, rd 0, flush 0, corrupt 0, gen 0",
        "BTRFS error (device loop0 state EA): parent transid verify failed on logical 1 mirror 1 wanted 2 found 3",  # 5.19  # noqa: E501 - a kernel's line
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
