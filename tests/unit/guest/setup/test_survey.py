"""Surveys of the storage stack in a guest: the script in the host's shells, the parser of its output, and reports."""

from __future__ import annotations

import subprocess
from dataclasses import asdict, replace
from pathlib import Path
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from testbed.guest.setup import survey, survey_parser
from testbed.guest.setup.survey import Hardware, Survey, SurveyError
from testbed.report import stack_svg
from testbed.report.html import html
from testbed.report.markdown import markdown
from testbed.report.schema import Document
from testbed.report.stack_model import Stack
from testbed.scenarios.runner import Result
from testbed.topology.disks import make_disk
from testbed.topology.model import GuestModel
from testbed.topology.storage import Loop
from testbed.units import GIB, MIB
from tests.support.run_results import changed, document, passed, plain
from tests.unit.report.test_html import Page

SCENARIOS = Path(survey.__file__).parents[2] / "scenarios/claims"
DISKS = {
    "/dev/vdc": Hardware(name="data", type="virtio-blk", profile="hdd-7200"),
    "/dev/nvme0n1": Hardware(name="fast", type="nvme"),
}
# Recorded on Linux 6.1, shortened: a loop on a file on ext4, another one with direct I/O on the first
# one's partition, swap, and limits.
RECORDED = """\
cpus 0-1
block vdc
dev 254:32
size 2097152
ro 0
queue/logical_block_size 512
queue/read_ahead_kb 128
queue/scheduler mq-deadline kyber [bfq] none
block nvme0n1
dev 259:0
size 2097152
ro 0
queue/logical_block_size 4096
queue/read_ahead_kb 128
queue/scheduler [none] mq-deadline
block loop0
dev 7:0
size 131072
ro 0
queue/logical_block_size 512
queue/read_ahead_kb 128
queue/scheduler [none] mq-deadline
loop/backing_file /mnt/data/my file
loop/dio 0
loop/offset 0
loop/sizelimit 0
part loop0p1 65536
block loop1
dev 7:1
size 65536
ro 1
queue/logical_block_size 4096
queue/read_ahead_kb 128
queue/scheduler [none] mq-deadline
loop/backing_file /dev/loop0p1
loop/dio 1
loop/offset 1048576
loop/sizelimit 0
mount /dev/vda / ext4 rw,noatime 0 0
mount mnt /mnt tmpfs rw,relatime,inode64 0 0
mount run /run tmpfs rw,relatime,mode=755,inode64 0 0
mount cgroup2 /sys/fs/cgroup cgroup2 rw,relatime 0 0
mount /dev/vdc /mnt/data ext4 rw,noatime 0 0
mount tmpfs /tmp tmpfs rw,relatime,size=524288k 0 0
swap Filename				Type		Size		Used		Priority
swap /dev/nvme0n1                            partition	1048572		0		-2
controllers cpu io memory pids
group
limit io.cost.qos 254:32 enable=1 ctrl=user rpct=0.00
group /probe
group /reader
limit memory.max 67108864
limit io.max 254:32 rbps=1048576 wbps=max riops=max wiops=max
group /writer
end
"""


def surveyed(text: str = RECORDED) -> Survey:
    parsed = survey_parser.parse(text, DISKS)
    assert isinstance(parsed, Survey), parsed
    return parsed


def stack(text: str = RECORDED) -> Stack:
    return Stack.model_validate(asdict(surveyed(text)))


def test_a_survey_has_the_devices_mounts_swap_and_limits_of_the_guest_and_nothing_that_every_guest_has() -> None:
    parsed = surveyed()
    assert (parsed.cpus, parsed.controllers) == ("0-1", "cpu io memory pids")
    data, fast, first, second = parsed.blocks
    assert (data.name, data.kind, data.profile, data.size_bytes, data.scheduler) == (
        "data",
        "virtio-blk",
        "hdd-7200",
        GIB,
        "bfq",
    )
    assert (fast.name, fast.logical_block_size, fast.read_ahead_bytes) == ("fast", 4096, 128 << 10)
    assert (first.backing_file, first.direct_io, first.partitions) == (
        "/mnt/data/my file",
        False,
        {"/dev/loop0p1": 32 * MIB},
    )
    assert (second.direct_io, second.read_only, second.offset_bytes) == (True, True, MIB)
    assert [(mount.mount_point, mount.type, mount.source) for mount in parsed.mounts] == [
        ("/mnt/data", "ext4", "/dev/vdc"),
        ("/tmp", "tmpfs", "tmpfs"),
    ]
    assert [(swap.on, swap.size_bytes) for swap in parsed.swaps] == [("/dev/nvme0n1", 1048572 << 10)]
    assert [group.path for group in parsed.groups] == ["/", "/reader", "/writer"]
    assert parsed.groups[1].limits["memory.max"] == ("67108864",)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "its steps were not at the claim"),
        (RECORDED.removesuffix("end\n"), "has no end"),
        (RECORDED.replace("size 2097152", "size ²", 1), "expected a whole number below 2**64, got '²'"),
        (RECORDED.replace("size 2097152\n", "", 1), "KeyError: 'size'"),
        (RECORDED.replace("block vdc", "block sda"), "KeyError: '/dev/sda'"),
        (RECORDED.replace("cpus", "cpu"), "'cpu' is no word of a survey"),
        (RECORDED.replace("mount /dev/vdc /mnt/data ext4 rw,noatime 0 0", "mount /dev/vdc"), "not enough values"),
        ("cpus 0\n" + "group /g\n" * 5000 + "end\n", "has no end within"),
    ],
)
def test_an_incomplete_survey_is_an_error_with_a_reason(text: str, why: str) -> None:
    parsed = survey_parser.parse(text, DISKS)
    assert isinstance(parsed, SurveyError) and why in parsed.why


@given(st.lists(st.sampled_from(RECORDED.splitlines()) | st.text(max_size=30)))
def test_any_output_of_a_guest_is_a_survey_or_an_error_and_can_be_drawn(lines: list[str]) -> None:
    parsed = survey_parser.parse("\n".join([*lines, "end"]), DISKS)
    if isinstance(parsed, Survey):
        ElementTree.fromstring(stack_svg.svg(Stack.model_validate(asdict(parsed)), "on base"))


@pytest.mark.parametrize("shell", ["sh", "bash"])
def test_the_script_is_one_that_shells_run_to_its_end_and_its_first_survey_stays(tmp_path: Path, shell: str) -> None:
    """Runs on the host, whose devices are not in the topology."""
    script = "\n".join((survey.survey_commands([]), f"set -e; {survey.TAKE}; {survey.TAKE}", survey.SHOW)).replace(
        "/run/", f"{tmp_path}/"
    )
    done = subprocess.run([shell, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[0].startswith("cpus ") and done.stdout.splitlines()[-1] == "end"
    assert done.stdout.count("cpus ") == 1 and done.stderr == ""


def test_steps_run_without_the_survey_script(tmp_path: Path) -> None:
    script = f"set -e; {survey.TAKE}; echo on\n{survey.SHOW}".replace("/run/", f"{tmp_path}/")
    assert subprocess.run(["sh", "-c", script], capture_output=True, text=True, check=True).stdout == "on\n"


@pytest.mark.parametrize(
    "path", [path for path in SCENARIOS.glob("*.py") if "= Scenario(" in path.read_text()], ids=lambda path: path.stem
)
def test_each_scenario_takes_a_survey_where_it_measures(path: Path) -> None:
    """Accepts a call of `meter`, which takes the survey itself."""
    text = path.read_text()
    assert "survey.TAKE" in text or ".meter(" in text


# In reports -----------------------------------------------------------------------------------------------------------


def test_cgroups_beyond_the_limit_of_a_survey_are_counted() -> None:
    more = RECORDED.replace("group /writer\nend", "group /writer\nmore 136\nend")
    assert surveyed(more).more_groups == 136 and stack_svg.describe_stack(stack(more)).endswith(
        ", writer; 136 more cgroups"
    )
    assert "; 136 more cgroups<" in stack_svg.svg(stack(more), "on base")


def test_of_many_control_groups_without_limits_only_their_number_is_shown() -> None:
    many = RECORDED.replace("group /writer\n", "".join(f"group /many-{number}\n" for number in range(32)))
    assert stack_svg.describe_stack(stack(many)).endswith(
        "; cgroups: 32 cgroups (without limits), / (io.cost.qos data enable=1 ctrl=user rpct=0.00), "
        "reader (memory.max 64M, io.max data rbps=1048576)"
    )
    assert len(surveyed(many).groups) == 34


def test_what_stands_on_what_is_said_and_drawn() -> None:
    assert stack_svg.describe_stack(stack()).split("; ") == [
        "data (virtio-blk 1G, hdd-7200, bfq)",
        "fast (nvme 1G, 4096 B sectors)",
        "/tmp (tmpfs)",
        "/mnt/data (ext4) on data",
        "swap (swap 1024.0M) on fast",
        "loop0 (loop 64M, buffered) on /mnt/data/my file",
        "loop0p1 (partition 32M) on loop0",
        "loop1 (loop 32M, direct I/O, 4096 B sectors, from 1M, read-only) on loop0p1",
        (
            "cgroups: / (io.cost.qos data enable=1 ctrl=user rpct=0.00), "
            "reader (memory.max 64M, io.max data rbps=1048576), writer"
        ),
    ]
    drawn = ElementTree.fromstring(stack_svg.svg(stack(), "on base"))
    titles = {text.text for text in drawn.iter("{http://www.w3.org/2000/svg}text")}
    assert {
        "on base",
        "data",
        "fast",
        "/mnt/data",
        "/mnt/data/my file",
        "loop0",
        "loop0p1",
        "loop1",
        "/tmp",
        "reader",
    } <= titles
    # Each of the two limits has a line to its disk.
    assert len([path for path in drawn.iter("{http://www.w3.org/2000/svg}path") if path.get("class") == "limit"]) == 2


def test_a_loop_that_is_reported_to_be_on_itself_is_drawn_without_that_edge() -> None:
    itself = RECORDED.replace("loop/backing_file /dev/loop0p1", "loop/backing_file /dev/loop1")
    assert "loop1 (loop 32M, direct I/O, 4096 B sectors, from 1M, read-only)" in stack_svg.describe_stack(
        stack(itself)
    ).split("; ")


def stood(result: Result, **by_side: Survey | SurveyError) -> Result:
    return replace(result, sides={side: replace(done, stack=by_side[side]) for side, done in result.sides.items()})


# A topology that no scenario used.
ASKED = GuestModel(
    disks={"data": make_disk(type="virtio-blk", size=GIB)},
    loops={"odd-loop": Loop(backing="data/f", filesystem="xfs", size=MIB)},
)


def test_reports_show_the_stack_of_each_case_and_not_that_of_the_file(tmp_path: Path) -> None:
    done = document(tmp_path, stood(passed(tmp_path), base=surveyed(), patched=surveyed()), model=ASKED)
    page = Page(html(done, tmp_path))
    words = " ".join(page.text.split())
    assert (
        "The stack on each kernel while the claim was measured, "
        "read back from the guest: data (virtio-blk 1G, hdd-7200, bfq)"
    ) in words
    assert "The part of the topology that the run used: machine, disks and timeline." in words
    shown = [value for name, value in page.attributes if name == "alt"]
    assert (
        len(shown) == 2
        and page.tags["img"] == 2
        and "odd-loop" not in words
        and not any("odd-loop" in text or "xfs" in text for text in shown)
    )
    assert "| gate | base, patched | data (virtio-blk 1G, hdd-7200, bfq); fast" in markdown(done)


def test_what_was_not_read_back_is_said_and_not_drawn(tmp_path: Path) -> None:
    why = SurveyError(why="guest g0: lost")
    done = document(tmp_path, stood(passed(tmp_path), base=surveyed(), patched=why))
    page = Page(html(done, tmp_path))
    words = " ".join(page.text.split())
    assert "The stack on base while the claim was measured, read back from the guest: data" in words
    assert "The stack on patched while the claim was measured is not known: guest g0: lost" in words
    assert page.tags["img"] == 2  # the base's, and what was asked for
    assert "| gate | patched | not known: guest g0: lost |" in markdown(done)


def test_a_run_of_a_testbed_that_did_not_record_stacks_has_none_drawn(tmp_path: Path) -> None:
    old = plain(document(tmp_path, passed(tmp_path)))
    for side in ("base", "patched"):
        del old["scenarios"][0][side]["stack"], old["scenarios"][0][side]["stack_unread"]
    done = Document.model_validate(old)
    assert "is not known: the run is of a testbed that did not record it" in " ".join(
        Page(html(done, tmp_path)).text.split()
    )
    assert markdown(done).endswith("\nIt is not known: the run is of a testbed that did not record it.\n")


def test_unused_parts_of_the_topology_are_listed(tmp_path: Path) -> None:
    done = document(tmp_path, passed(tmp_path))
    done = changed(done, "topology_unused", ["guests.g0.loops", "guests.g0.cgroups"])
    assert "Scenarios did not use of the file: guests.g0.loops, guests.g0.cgroups." in " ".join(
        Page(html(done, tmp_path)).text.split()
    )
