"""Warnings that each kernel of the table is made to print, and those that its image could print: all are found."""

import mmap
import re
from pathlib import Path

import pytest

from testbed.errors import GuestLost
from testbed.guest.channels import kernel_log
from testbed.guest.channels.kernel_log import Kind
from testbed.guest.factory import open_factory
from testbed.hardware.faults import Fault
from testbed.host import paths
from testbed.store.kernels import kernel_files, kernel_image
from testbed.store.kernels.table import shipped_table
from testbed.topology import GuestModel
from tests.guest.conftest import Notes
from tests.support.splat import At, Code, template

KERNELS = shipped_table().rows
UNKNOWN = "WARNING: a format that nobody knows yet"
HIDDEN = "BUG: the console does not show this"

# $1: a disk that is about to fail.
_FILES = (
    "mkfs.ext4 -q $1 64M && mkdir /mnt/files && mount $1 /mnt/files && head -c 1M /dev/zero >/mnt/files/before && sync"
)
# $1: another disk. No command succeeds.
_BROKEN = """\
echo more >/mnt/files/after
sync -f /mnt/files && exit 1
touch /mnt/files/later
dd if=$1 of=/dev/null bs=4k count=1 iflag=direct && exit 1
exit 0
"""
# $1-N: modules; the hidden one is loaded with a lower console level. A program prints the same text.
_COMPLAIN = f"""\
for module in "$@"; do
    [ "$module" != /tmp/hidden.ko ] || dmesg -n 1
    insmod "$module" && exit 1
done
dmesg -n 5
echo "<3>{UNKNOWN}, and a program's" >/dev/kmsg
exit 0
"""


@pytest.mark.slow
@pytest.mark.parametrize("name", KERNELS)
async def test_a_real_warning_of_each_kernel_is_a_finding_and_a_programs_is_not(
    notes: Notes, model: GuestModel, logs: Path, tmp_path: Path, name: str
) -> None:
    async with open_factory(notes, kernels=(name,)) as factory:
        kernel = await factory.kernel(name)
        of = template((kernel.folder / "early" / "virtio_blk.ko").read_bytes())
        modules = {kind: Code(of) for kind in ("warn", "atomic", "unknown", "hidden", "oops")}
        modules["warn"].warn()
        modules["warn"].call("refcount_warn_saturate", At(0), 3)  # REFCOUNT_SUB_UAF
        printk = "printk" if name == "debian-5.10" else "_printk"  # 5.15
        modules["unknown"].call(printk, modules["unknown"].string(f"\x014{UNKNOWN}\n"))
        modules["hidden"].call(printk, modules["hidden"].string(f"\x013{HIDDEN}\n"))
        modules["oops"].null()
        if name == "debian-5.10":  # has no CONFIG_PREEMPT_COUNT
            del modules["atomic"]
        else:
            modules["atomic"].call("_raw_spin_lock", At(0))
            modules["atomic"].call("msleep", 10)
            modules["atomic"].call("_raw_spin_unlock", At(0))
        with pytest.raises(GuestLost, match="oops on its console"):
            async with factory.guest("g0", model, kernel, logs) as guest:
                for what, code in modules.items():
                    (tmp_path / what).write_bytes(code.module())
                    await guest.put(tmp_path / what, f"/tmp/{what}.ko")
                await guest.script(_FILES, guest.disks["data"].path)
                for disk in ("data", "fast"):
                    await guest.hardware.inject(
                        disk, tuple(Fault(operation=one, effect="EIO") for one in ("read", "write", "flush"))
                    )
                await guest.script(_BROKEN, guest.disks["fast"].path)
                await guest.script(_COMPLAIN, *(f"/tmp/{what}.ko" for what in modules if what != "oops"))
                shown = [finding.text for finding in guest.console.findings]
                await guest.save_dmesg()
                await guest.script("insmod /tmp/oops.ko")
    found = [(finding.kind, finding.text) for finding in guest.console.findings]
    disks = {kind: [text for kind_of, text in found if kind_of is kind] for kind in (Kind.IO_ERROR, Kind.FILESYSTEM)}
    assert any("nvme0n1" in text for text in disks[Kind.IO_ERROR]) and any(
        "EXT4-fs" in text for text in disks[Kind.FILESYSTEM]
    ), found
    # All findings since the kernel started, its boot included.
    found = [(kind, text) for kind, text in found if kind not in disks]
    kinds = [kind for kind, _ in found if kind is not Kind.OOPS]
    atomic = [Kind.ATOMIC_SLEEP, Kind.WARNING] if "atomic" in modules else []
    assert kinds == [Kind.WARNING, Kind.REFCOUNT, Kind.WARNING, *atomic, Kind.OTHER, Kind.OTHER, Kind.PROGRAM], found
    assert "tests/support/splat.py:42" in found[0][1] and "splat]" in found[0][1]
    assert [text for kind, text in found if kind is Kind.OTHER] == [UNKNOWN, HIDDEN]
    assert UNKNOWN in shown and HIDDEN not in shown
    assert [text for kind, text in found if kind is Kind.PROGRAM] == [f"{UNKNOWN}, and a program's"]
    assert Kind.OOPS in {kind for kind, _ in found}


# Formats that an image must contain, and the kind of finding when a kernel prints them.
FORMATS = {
    "WARNING: .*%pS": Kind.WARNING,
    "INFO: task %s:%d blocked": Kind.HUNG_TASK,
    "INFO: %s detected stalls": Kind.RCU_STALL,
    "soft lockup - CPU": Kind.LOCKUP,
    "Watchdog detected hard LOCKUP": Kind.LOCKUP,
    "BUG: scheduling while atomic": Kind.ATOMIC_SLEEP,
    "BUG: unable to handle": Kind.OOPS,
    "Kernel panic - not syncing": Kind.PANIC,
    "BUG: Bad page state": Kind.BAD_PAGE,
    "list_add corruption": Kind.LIST_CORRUPTION,
    "refcount_t: ": Kind.REFCOUNT,
    r"percpu ref \(": Kind.REFCOUNT,
    "invoked oom-killer": Kind.OOM,
    "error, dev %s": Kind.IO_ERROR,
    "Buffer I/O error on dev": Kind.IO_ERROR,
    r"EXT4-fs error \(": Kind.FILESYSTEM,
    "Aborting journal on device": Kind.FILESYSTEM,
    "nvme nvme0: .* timeout, aborting": Kind.DISK,
    "nvme nvme0: .* timeout, ": Kind.DISK,
}
# Words that begin an alarm, and the lines that contain them but are none: a healthy kernel prints them about its
# firmware, processor or command line, or after another line. All other alarms of an image must be findings.
ALARM = re.compile(r"\b(?:WARNING|BUG|PANIC|Oops|UBSAN|KCSAN|KASAN|KFENCE|KMSAN|ODEBUG)\b|\bINFO: ")
NONE = re.compile(
    r"\[BIOS BUG\]|^(?:ITS|RETBleed|Spectre V2 |Speculative Return Stack Overflow|process): WARNING: "
    r"|^WARNING: Unprivileged eBPF|^WARNING: 'bootconfig' found|tall ended|^EXT4-fs .*INFO: recovery required"
)
# printk's conversions, with the letters that %p takes behind it (lib/vsprintf.c).
CONVERSION = re.compile(r"%[-+ #0]*(?:\*|\d+)?(?:\.(?:\*|\d+))?(?:hh|h|ll|l|z|t|j|L)?([diouxXcs%]|p[A-Za-z]*)")
VALUES = {"c": "c", "x": "1f", "X": "1F", "s": "name", "%": "%"}


def filled(text: str) -> str:
    """Fill a format with some values, as the kernel prints it."""

    def value(found: re.Match[str]) -> str:
        kind = found[1]
        if kind[0] != "p":
            return VALUES.get(kind, "7")
        return "loop_workfn+0x10/0x20" if kind[1:2] in ("S", "s", "B") else "00000000c2d1e4d3"

    return CONVERSION.sub(value, text)


def formats(image: mmap.mmap) -> set[str]:
    """Return a kernel's lines of warnings or worse (after KERN_SOH and a level), and those that only begin like one."""
    texts = re.findall(rb"\x01[0-4]([\x20-\x7e\t\n]{4,1000})(?=[\0\x01])", image)
    texts += re.findall(rb"(?<=\0)((?:WARNING|BUG|refcount_t|percpu ref)[ :][\x20-\x7e\t\n]{4,1000})(?=\0)", image)
    # dev_warn() takes the level as an argument, and prints the driver and the device before the text.
    texts += [
        b"nvme nvme0: " + text
        for text in re.findall(rb"(?<=\0)(I/O [\x20-\x7e]{4,200}timeout, [\x20-\x7e\n]{4,200})(?=\0)", image)
    ]
    return {line for text in texts for line in text.decode().split("\n") if line.strip()}


@pytest.mark.parametrize("name", KERNELS)
async def test_what_a_kernels_image_can_print_of_an_alarm_is_a_finding(notes: Notes, name: str) -> None:
    kernel = await kernel_files.fetch(KERNELS[name], paths.folders().cache, notes)
    with kernel_image.vmlinux(kernel.bzimage) as image:
        found = formats(image)
    kinds = {
        line: one.kind if (one := kernel_log.classify(f"[    1.000000] {filled(line)}")) else None for line in found
    }
    for pattern, kind in FORMATS.items():
        assert {of for line, of in kinds.items() if re.search(pattern, line)} == {kind}, pattern
    alarms = {line for line in found if ALARM.search(line) and not NONE.search(line)}
    assert len(alarms) > 50 and {line for line in alarms if kinds[line] is None} == set()
