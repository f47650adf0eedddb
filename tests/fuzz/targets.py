"""The table of fuzz targets: parsers of what a stranger, a guest or a QEMU that a guest has taken over may write."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from testbed.errors import BuildError, GuestError, HostError, ReadingError, TopologyError, UsageError
from testbed.store.kernels.kernel_image import UnknownImage
from tests.fuzz.mutate import Mutator, inside_gzip, json_node, tar_member
from tests.fuzz.readers import exports, files, guests, kernels, patches, runs

_HERE = Path(__file__).parent


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """`read`: takes any bytes, and returns or raises one of `refusals`, the parser's documented errors. `words`: of the
    format, for mutations; `mutators`: those that know its structure; `most_bytes`: the limit of an input that grows by
    mutation.
    """

    name: str
    read: Callable[[bytes], None]
    refusals: tuple[type[Exception], ...] = ()
    words: tuple[bytes, ...] = ()
    mutators: tuple[Mutator, ...] = ()
    most_bytes: int = 4096


def _words(text: str) -> tuple[bytes, ...]:
    """Split a text into words; `_` stands for a space and `|` for a newline."""
    return tuple(word.replace("_", " ").replace("|", "\n").encode() for word in text.split())


_YAML = _words(
    "version:_1| guests: g0: disks: cpus: memory:_1G type:_nvme size: image: extends: matrix: ${a}"
    " timeline: cgroups: loops: &a *a"
)
_BUG = _words(
    "version:_1| summary: script: prepare: signature: console: output: kernels: shows: topology: status:"
    " hang: script-file: (?P<a>"
)
_MAIL = _words(
    "From_ From:_ Subject:_ [PATCH_ [RFC_PATCH_v2_1/2] Re:_ Message-ID:_<"
    " Content-Type:_multipart/mixed;_boundary=b --b| =?utf-8?q?"
    " =?utf-8?B? ?= charset= Content-Transfer-Encoding:_base64 ;_name*0*= ( diff_--git_a/x_b/x| --_|"
    " @@_-1_+1_@@ 1/9999 v999"
)
_DIFF = _words(
    "diff_--git_ ---_a/ +++_b/ @@_-1,2_+1,2_@@ /dev/null rename_from_ copy_from_ old_mode_100644"
    " GIT_binary_patch ---_ +++_ -p0"
    " new_file_mode_120000 \\_No_newline"
)
_KCONFIG = _words(
    'config_A| menuconfig_ choice| endchoice| menu_"m"| endmenu| if_ endif| source_"lib/Kconfig.0"'
    ' depends_on_ select_ visible_if_ bool_"b"'
    " help| && || != ( ) $( default_ comment_ \\| prompt_"
)
_CONSOLE = _words(
    "[____1.234567]_ BUG:_ WARNING:_ Oops:_ Kernel_panic_-_not_syncing [_cut_here_] ---[_end_trace_"
    " CPU:_0_PID:_1_Comm:_ INFO:_task_"
    " kern__:warn__:_ EXT4-fs_error BTRFS XFS_( nvme0:_ kmemleak:_ [#1]"
)
_SHELL = _words(
    "/run/testbed/crash.sh:_line_3:_ bash:_line_1:_ 12_Killed +_ <<EOF ' \" ` command_not_found BYPASSED"
    " \\ 3>&1 env:_ $( #!/bin/sh|"
)
_AGENT = _words(
    "disks_ group_name= gone_name= io=7:0,1,2,3,4 current= uptime_ns= time_turn=0 failed_ frozen"
    " virtio-blk,vda,254:0,2048,0,646174,"
)
_FILES_OF_KERNEL = _words(
    "7:0_ rbytes=1_wbytes=2_rios=3_wios=4_dbytes=5_dios=6 (unknown) cost.usage= oom_kill_ max depth= 254:32"
)
_PRINTED = _words("7a3f_section_ 7a3f_file_ 7a3f_whole_ 7a3f_note_ 7a3f_finish 7a3f_absent_ pid_ rate_ number_")
_SURVEY = _words(
    "block_ part_ below_ mount_ swap_ group_ limit_ controllers_ more_ end| dev_ size_ ro_0"
    " loop/backing_file_ read_back| ==_0| number_"
)
_SUITE = _words(
    "status\tpass| status\tfail| reason\toutput| nodev [not_run] =>_sda (bs=512) runtime exit_status\t"
    " ./check:_ _is_not_available."
)
_FIO = _words('"jobs" "read" "clat_ns" "percentile" "50.000000" "iops" "bw_bytes" "error"')
_QMP = _words('"event":"BLOCK_IO_ERROR" "STOP" "RESUME" "node-name" "operation" "action" "stop"')
_RESULTS = _words('"verdict" "scenarios" "partial" "kernels" "attempts" "spread" "claim" null # SKIP ok_1 1..0')
_SAMPLES = _words('"guest_s" "disks" "groups" "rd" "wr" "bytes" "latency" "io" "oom_kill" "do" "error"')

_NBD = tuple(
    bytes.fromhex(word)
    for word in ("49484156454f5054", "25609513", "00000007", "00000006", "0003", "00010000", "02000000")
)

_ROWS = (
    Target(name="topology", read=files.topology, refusals=(TopologyError,), words=_YAML, mutators=(json_node,)),
    Target(name="bug", read=files.bug, refusals=(TopologyError,), words=_BUG, mutators=(json_node,)),
    Target(
        name="bundle",
        read=files.bundle,
        refusals=(UsageError, HostError, TopologyError),
        mutators=(files.sealed, tar_member),
        most_bytes=16384,
    ),
    Target(name="disk-image", read=files.disk_image),
    Target(name="mailbox", read=patches.mails, refusals=(BuildError,), words=_MAIL),
    Target(name="diff", read=patches.diff, refusals=(BuildError,), words=_DIFF),
    Target(name="quilt", read=patches.quilt, refusals=(BuildError,), words=_words("_-p1 # a.patch|")),
    Target(
        name="git-summary",
        read=patches.git_said,
        refusals=(BuildError,),
        words=_words("create_mode_120000_ mode_change_ 1\t2\ta -\t-\t"),
    ),
    Target(name="kconfig", read=patches.kconfig_files, refusals=(BuildError,), words=_KCONFIG),
    Target(
        name="config",
        read=patches.configuration,
        refusals=(BuildError,),
        words=_words("CONFIG_A=y| #_CONFIG_A_is_not_set| CONFIG_ =m"),
    ),
    Target(name="deb", read=kernels.package, refusals=(UsageError,), mutators=(tar_member,), most_bytes=8192),
    Target(
        name="bzimage",
        read=kernels.bzimage,
        refusals=(UsageError, UnknownImage),
        mutators=(inside_gzip,),
        most_bytes=16384,
    ),
    Target(name="elf", read=kernels.elf, refusals=(ValueError,)),
    Target(name="console", read=guests.console_lines, words=_CONSOLE),
    Target(name="kernel-log", read=guests.log, words=_CONSOLE),
    Target(name="script-output", read=guests.script_output, words=_SHELL),
    Target(name="agent", read=guests.agent, refusals=(GuestError,), words=_AGENT),
    Target(name="agent-groups", read=guests.group_lines, refusals=(ReadingError,), words=_AGENT),
    Target(name="agent-disks", read=guests.disk_listing, words=_AGENT),
    Target(name="io-stat", read=guests.counter_files, refusals=(ReadingError,), words=_FILES_OF_KERNEL),
    Target(name="flat-file", read=guests.flat_files, refusals=(ReadingError,), words=_FILES_OF_KERNEL),
    Target(name="shell-output", read=guests.shell_output, refusals=(ReadingError,), words=_PRINTED),
    Target(name="cpus", read=guests.online, refusals=(ReadingError,)),
    Target(name="survey", read=guests.survey_of, words=_SURVEY),
    Target(name="blktests", read=guests.suite_records, words=_SUITE),
    Target(name="fio", read=guests.fio_figures, refusals=(ValueError,), words=_FIO, mutators=(json_node,)),
    Target(name="copied-out", read=guests.copied_out, refusals=(HostError,), mutators=(tar_member,), most_bytes=8192),
    Target(name="monitor", read=guests.monitor_events, words=_QMP, mutators=(json_node,)),
    Target(name="nbd", read=exports.nbd, words=_NBD, mutators=(exports.nbd_field,)),
    Target(
        name="results",
        read=runs.scenarios,
        refusals=(UsageError,),
        words=_RESULTS,
        mutators=(json_node,),
        most_bytes=8192,
    ),
    Target(
        name="bug-results",
        read=runs.bugs,
        refusals=(UsageError,),
        words=_RESULTS,
        mutators=(json_node,),
        most_bytes=8192,
    ),
    Target(
        name="ktap", read=runs.ktap_of, refusals=(UsageError,), words=_RESULTS, mutators=(json_node,), most_bytes=8192
    ),
    Target(name="run-list", read=runs.listed, words=_RESULTS, mutators=(json_node,)),
    Target(name="samples", read=runs.samples, words=_SAMPLES),
)
TARGETS = {row.name: row for row in _ROWS}


def samples(name: str) -> list[Path]:
    """Return the files that a target's inputs are made of; not findings, since inputs like them take as long as limits
    allow.
    """
    return sorted((_HERE / "corpus" / name).glob("*"))


def found(name: str) -> list[Path]:
    """Return a target's findings, which were fixed."""
    return sorted((_HERE / "findings" / name).glob("*"))
