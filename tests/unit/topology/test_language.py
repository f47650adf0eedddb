"""The larger topology language: extending, matrices, what stands on what, and what QEMU and the guest are told."""

import json
from pathlib import Path
from xml.etree import ElementTree

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from testbed.errors import TopologyError
from testbed.guest import devices
from testbed.guest.setup import block_stack, cgroups, disk_facts, readback
from testbed.qemu import blockdev, qmp
from testbed.report import plan_text, topology_svg
from testbed.topology import GuestModel, load, load_points
from testbed.topology.disks import make_disk
from testbed.topology.graph import build_graph
from testbed.topology.load import parse
from tests.support.values import host, host_limits

GALLERY = Path(__file__).parents[3] / "topologies"


def errors(text: str, path: Path | None = None) -> list[str]:
    with pytest.raises(TopologyError) as caught:
        if path is None:
            parse(text, "a.yaml")
        else:
            path.write_text(text)
            load_points(path)
    return [str(problem) for problem in caught.value.problems]


def guest_of(text: str) -> GuestModel:
    return parse(f"version: 1\nguests:\n  g0:\n{text}", "a.yaml").guests["g0"]


# extends -------------------------------------------------------------------------------------------------------------------------


def test_a_file_on_top_of_another_merges_replaces_and_takes_away(tmp_path: Path) -> None:
    (tmp_path / "base.yaml").write_text(
        "version: 1\nguests:\n  g0:\n    cpus: 4\n    append: [one, two]\n    disks:\n      a: {type: nvme, size: 1G}\n"
        "      b: {type: nvme, size: 1G}\n"
    )
    (tmp_path / "top.yaml").write_text(
        "version: 1\nextends: base.yaml\nguests:\n  g0:\n    append: [three]\n    disks:\n      a: {size: 2G}\n      b: null\n"
    )
    guest = load(tmp_path / "top.yaml").guests["g0"]
    assert guest.cpus == 4 and guest.append == ("three",)
    assert {name: (disk.type, disk.size) for name, disk in guest.disks.items()} == {"a": ("nvme", 2 << 30)}


def test_a_mistake_is_said_in_the_file_that_makes_it(tmp_path: Path) -> None:
    (tmp_path / "base.yaml").write_text(
        "version: 1\nguests:\n  g0:\n    disks:\n      a: {type: nvme, size: 1G, profil: hdd-7200}\n"
    )
    said = errors("version: 1\nextends: base.yaml\nguests: {g0: {cpus: 99}}\n", tmp_path / "top.yaml")
    assert said[1:] == [f"{tmp_path}/base.yaml:5:33: guests.g0.disks.a.profil: unknown key; did you mean 'profile'?"]
    assert said[0].startswith(f"{tmp_path}/top.yaml:3:21: guests.g0.cpus: ")


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ("extends: top.yaml", "does one extend itself?"),
        ("extends: none.yaml", "none.yaml:1:1: cannot be read"),
        ("extends: /etc/passwd", "expected the path of a .yaml file, relative to this one, got '/etc/passwd'"),
        ("extends: ../../etc/passwd", "expected the path of a .yaml file"),
        ("extends: 5", "expected the path of a .yaml file"),
    ],
)
def test_what_cannot_be_extended_is_said(said: str, message: str, tmp_path: Path) -> None:
    found = errors(f"version: 1\n{said}\nguests: {{g0: {{}}}}\n", tmp_path / "top.yaml")
    assert any(message in line for line in found), found


def test_a_text_without_a_file_extends_nothing() -> None:
    assert "expected the path of a .yaml file" in errors("version: 1\nextends: base.yaml\nguests: {g0: {}}\n")[0]


# matrix --------------------------------------------------------------------------------------------------------------------------

MATRIX = """\
version: 1
matrix:
  axes:
    disk: [virtio-blk, nvme]
    cpus: [1, 2]
    direct: [true]
  exclude: [{disk: nvme, cpus: 2}]
  include: [{disk: virtio-scsi, cpus: 4, direct: false}]
guests:
  g0:
    cpus: ${cpus}
    append: ["disk=${disk}", "cost=$${none}"]
    disks: {data: {type: "${disk}", size: 1G}}
    loops: {l0: {backing: data/f, size: 8M, direct-io: "${direct}"}}
"""


def test_a_matrix_is_its_points_with_values_of_their_own_types(tmp_path: Path) -> None:
    (tmp_path / "m.yaml").write_text(MATRIX)
    found = load_points(tmp_path / "m.yaml")
    assert list(found) == [
        "disk=virtio-blk,cpus=1,direct=true",
        "disk=virtio-blk,cpus=2,direct=true",
        "disk=nvme,cpus=1,direct=true",
        "disk=virtio-scsi,cpus=4,direct=false",
    ]
    last = found["disk=virtio-scsi,cpus=4,direct=false"].guests["g0"]
    assert last.cpus == 4 and last.append == ("disk=virtio-scsi", "cost=${none}")
    assert last.disks["data"].type == "virtio-scsi" and last.loops["l0"].direct_io is False
    assert load(tmp_path / "m.yaml", "disk=nvme,cpus=1,direct=true").guests["g0"].cpus == 1
    with pytest.raises(TopologyError, match="a matrix of 4 points; name one"):
        load(tmp_path / "m.yaml")
    with pytest.raises(TopologyError, match="did you mean 'disk=nvme,cpus=1,direct=true'"):
        load(tmp_path / "m.yaml", "disk=nvm,cpus=1,direct=true")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            "${cpus}",
            "${cpu}",
            "a.yaml:11:11: guests.g0.cpus: expected an axis of the matrix, got ${cpu}; did you mean 'cpus'?",
        ),
        ("cpus: [1, 2]", "cpus: [1, 1]", "matrix.axes.cpus: expected each value once"),
        ("cpus: [1, 2]", "cpus: []", "matrix.axes.cpus: "),
        (
            "exclude: [{disk: nvme",
            "exclude: [{disc: nvme",
            "matrix.exclude.0.disc: expected one of the axes disk, cpus, direct",
        ),
        (", direct: false}]", "}]", "matrix.include.0: expected a value for each axis, got none for direct"),
        ("cpus: [1, 2]", "cpus: [1, 2, 99]", "guests.g0.cpus: "),
        (
            "exclude: [{disk: nvme",
            "exclude: [{disk: nvm",
            "matrix.exclude.0.disk: expected one of virtio-blk, nvme, got nvm",
        ),
        ("  axes:", "  axis:", "matrix.axis: unknown key; did you mean 'axes'?"),
    ],
)
def test_a_mistake_in_a_matrix_is_said_with_its_place(old: str, new: str, message: str) -> None:
    assert any(message in line for line in errors(MATRIX.replace(old, new)))


def test_a_mistake_of_some_points_names_one_and_counts_the_others() -> None:
    said = errors(
        MATRIX.replace("cpus: [1, 2]", "cpus: [1, 99, 98]").replace("exclude: [{disk: nvme, cpus: 2}]", "exclude: []")
    )
    assert [line.endswith("(at disk=virtio-blk,cpus=99,direct=true and 1 more points)") for line in said] == [
        True,
        False,
    ]


def test_too_many_points_are_refused_before_they_are_made() -> None:
    axes = "\n".join(f"    a{number}: [{', '.join(map(str, range(20)))}]" for number in range(6))
    assert (
        "expected at most 100000 points, got 64000000"
        in errors(f"version: 1\nmatrix:\n  axes:\n{axes}\nguests: {{g0: {{}}}}\n")[0]
    )


# what stands on what ------------------------------------------------------------------------------------------------------------

DISKS = "    disks: {data: {type: virtio-blk, size: 1G}, fast: {type: nvme, size: 256M}}\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("    loops: {l0: {backing: l1}, l1: {backing: l0}}\n", "'l0' stands on itself"),
        (
            "    loops: {l0: {backing: data/f}}\n",
            "guests.g0.loops.l0.backing: expected a size, or a file 'data/f' among `files`",
        ),
        ("    loops: {l0: {backing: dat}}\n", "expected the name of a device, got 'dat'; did you mean 'data'?"),
        ("    loops: {data: {backing: fast}}\n", "'data' is the name of something else already (disks.data)"),
        ("    files: {f: {path: nowhere/f, size: 4K}}\n", "expected the name of a filesystem, got 'nowhere'"),
        (
            "    dm: {a: {type: linear, on: [data]}, b: {type: crypt, on: [data]}}\n",
            "'data' can be used by one thing alone, got device 'a' and",
        ),
        ("    filesystems: {fs: {type: xfs, device: fast}}\n", "xfs needs at least 300M, 'fast' has 256M"),
        (
            "    swaps: {s: {on: fast}}\n    filesystems: {fast: {type: ext4}}\n",
            "'fast' can be used by one thing alone",
        ),
        (
            "    timeline: [{at: 1s, do: unplug dat}]\n",
            "guests.g0.timeline.0: 'unplug dat': expected one of the guest's disks (data, fast), got 'dat'",
        ),
        (
            "    filesystems: {fs: {type: ext4, device: fast}}\n    files: {f: {path: fs/f, size: 5000}}\n",
            "multiple of 4096 bytes, got 5000",
        ),
        (f"    networks: {{{', '.join(f'n{number}: {{}}' for number in range(15))}}}\n", "got 2 and 15 networks"),
        ("    loops: {l0: {backing: fast, offset: 256M}}\n", "expected less than the backing device 'fast'"),
        ("    loops: {l0: {backing: fast, offset: 100}}\n", "expected a multiple of 512 bytes, got 100"),
        ("    md: {m: {level: raid1, on: [data]}}\n", "guests.g0.md.m.on: "),
        (
            "    cgroups: {a: {io.max: {dat: {rbps: 1M}}}}\n",
            "cgroups.a.io.max.dat: expected the name of a device, got 'dat'; did you mean",
        ),
        (
            "    cgroups: {a: {io.cost.qos: {data: {}}}}\n",
            "cgroups.a.io.cost.qos: only the root has it; expected it under `/`",
        ),
        ("    cgroups: {/: {memory.max: 1G}}\n", "cgroups./.memory.max: the root has no limits"),
        ("    cgroups: {a: {memory.maks: 1G}}\n", "unknown key; did you mean 'memory.max'?"),
        (
            "    cgroups: {A: {}}\n",
            "expected a path of lower-case names such as tenant or tenant/job, or / for the root",
        ),
    ],
)
def test_what_does_not_fit_together_is_said(text: str, message: str) -> None:
    said = errors(f"version: 1\nguests:\n  g0:\n{DISKS}{text}")
    assert any(message in line for line in said), said


@pytest.mark.parametrize(
    ("disk", "message"),
    [
        ("{type: virtio-blk, size: 1G, queus: 2}", "queus: unknown key; did you mean 'queues'?"),
        ("{type: virtio-blk, size: 1G, zoned: {zone-size: 1M}}", "zoned: unknown key"),
        ("{type: nvme, size: 1G, zoned: {zone-size: 3M}}", "expected a part of the size of 1G, got 3M"),
        ("{type: nvme, size: 1G, image: x.img, format: qcow2}", "expected no format beside an image"),
        (
            "{type: nvme, size: 1G, logical-block-size: 4096, physical-block-size: 512}",
            "expected at least the logical block size of 4096",
        ),
        ("{type: nvme, size: 1G, throttle-group: g}", "expected one of the guest's throttle-groups, got 'g'"),
        (
            "{type: nvme, size: 1G, throttle: {iops-total: 1}, profile: hdd-7200}",
            "expected one of profile, throttle and throttle-group",
        ),
        (
            "{type: nvme, size: 8M, partitions: [{size: 8M}]}",
            "the partitions need more than the 8M of 'd', of which its label takes 2M",
        ),
        ("{size: 1G}", "d.type: expected this key, it is missing"),
        ("{type: nvme, size: 1000}", "size: expected a multiple of 4096 bytes, got 1000"),
        (
            "{type: nvme, size: 1G, image: x.img, partitions: [{size: 8M}]}",
            "expected no partitions on an image, which has its own",
        ),
        ("{type: nvme, size: 1G, format: qcow2, cache: volatile}", "expected a disk that is kept in a raw file"),
        ("{type: nvme, size: 1G, image: x.img, cache: lies}", "expected a disk that is kept in a raw file"),
        (
            "{type: nvme, size: 1G, cache: lies, cache-size: 5000}",
            "cache-size: expected a multiple of 4096 bytes, got 5000",
        ),
        (
            "{type: nvme, size: 1G, serial: tb-e}, e: {type: nvme, size: 1G}",
            "expected a serial that no other disk has, got 'tb-e'",
        ),
        ("{type: nvme, size: 1G, read-ahead: 5000}", "read-ahead: expected a multiple of 4096 bytes, got 5000"),
        (
            "{type: nvme, size: 1G}, root: {type: nvme, size: 1G}",
            "'root' is the name of a disk that every guest has; choose another",
        ),
        ("{type: nvme, size: 8M, partitions: [{size: 6M}, {}]}", "nothing of 'd' is left for it"),
        ("{type: nvme, size: 1G, scale: 2}", "expected a profile beside it"),
        ("{type: nvme, size: 1G, latency: {jitter: 1ms}}", "expected a delay of both, read, write or flush, got none"),
    ],
)
def test_a_disk_that_cannot_be_is_said(disk: str, message: str) -> None:
    said = errors(f"version: 1\nguests:\n  g0:\n    disks: {{d: {disk}}}\n")
    assert any(message in line for line in said), said


def test_a_guest_larger_than_the_host_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("version: 1\nguests:\n  g0: {memory: 8G}\n")
    assert load(tmp_path / "a.yaml", limits=host_limits(16 << 30)).guests["g0"].memory == 8 << 30
    for room in (4 << 30, 8 << 30):
        with pytest.raises(
            TopologyError,
            match=r"a\.yaml:3:16: guests\.g0\.memory: expected less than this host's memory of [48]G, got 8G",
        ):
            load(tmp_path / "a.yaml", limits=host_limits(room))
    (tmp_path / "b.yaml").write_text("version: 1\nguests:\n  g0: {memory: 3G}\n  g1: {memory: 2G}\n")
    with pytest.raises(
        TopologyError, match=r"b\.yaml:4:16: guests\.g1\.memory: .* memory of 4G for all guests, got 5G up to this one"
    ):
        load(tmp_path / "b.yaml", limits=host_limits(4 << 30))
    (tmp_path / "c.yaml").write_text(
        "version: 1\nguests:\n  g0: {memory: 2G}\n  g1: {memory: 2G}\n  g2: {memory: 1G}\n"
    )
    with pytest.raises(TopologyError) as failed:
        load(tmp_path / "c.yaml", limits=host_limits(4 << 30))
    assert str(failed.value).count("for all guests") == 1, "the first that is too much is named, and no other"
    assert "guests.g1.memory" in str(failed.value), "as much as there is, is too much"


def test_partitions_of_a_loop_are_looked_at_after_what_it_stands_on() -> None:
    loops = "{loop0: {backing: t/file, size: 64M, partitions: [{size: 64M}]}}"
    said = errors(f"version: 1\nguests:\n  g0:\n    filesystems: {{t: {{type: tmpfs}}}}\n    loops: {loops}\n")
    assert any(
        "the partitions need more than the 64M of 'loop0', of which its label takes 2M" in line for line in said
    ), said


def test_a_disk_with_partitions_is_used_by_nothing_else(tmp_path: Path) -> None:
    text = "version: 1\nguests:\n  g0:\n    disks: {data: {type: nvme, size: 1G, partitions: [{size: 512M}]}}\n    swaps: {s: {on: data}}\n"
    (tmp_path / "a.yaml").write_text(text)
    with pytest.raises(
        TopologyError, match=r"guests\.g0\.swaps\.s: 'data' can be used by one thing alone, got .* and its partitions"
    ):
        load(tmp_path / "a.yaml", limits=host_limits(16 << 30))


def test_parts_that_are_wrong_in_themselves_do_not_hide_what_does_not_fit_together() -> None:
    said = errors(
        "version: 1\nguests:\n  g0:\n    memroy: 1G\n"
        "    disks:\n      data: {type: virtio, size: 1G}\n      good: {type: nvme, size: 1G}\n"
        "    loops:\n      l0: {backing: data/f, size: 8M}\n      l1: {backing: l2}\n      l2: {backing: l1}\n"
        "      l3: {backing: goood/f, size: 8M}\n"
    )
    assert [line.split(": ", 1)[1] for line in said] == [
        "guests.g0.memroy: unknown key; did you mean 'memory'?",
        "guests.g0.disks.data.type: expected 'virtio-blk', 'nvme', 'virtio-scsi', got 'virtio'",
        "guests.g0.loops.l1.backing: 'l1' stands on itself",
        "guests.g0.loops.l2.backing: 'l2' stands on itself",
        "guests.g0.loops.l3.backing: expected the name of a device, got 'goood'; did you mean 'good'?",
    ]


# what QEMU is told --------------------------------------------------------------------------------------------------------------


def plugged(name: str, **said: object) -> list[dict[str, object]]:
    disk = make_disk(**said)
    return [
        command.arguments
        for command in blockdev.plug_commands(name, disk, 0, blockdev.plan_storage(name, disk, Path("/s")))
    ]


def test_each_word_of_a_disk_reaches_qemu() -> None:
    *_, thread, device = plugged(
        "d",
        type="virtio-blk",
        size="1G",
        queues=2,
        io_thread=True,
        write_cache=False,
        discard=False,
        serial="S1",
        werror="stop",
    )
    assert thread == {"qom-type": "iothread", "id": "io-d"}
    assert device == {
        "driver": "virtio-blk-pci",
        "id": "disk-d",
        "bus": "port0",
        "drive": "limited-d",
        "serial": "S1",
        "rerror": "report",
        "werror": "stop",
        "num-queues": 2,
        "iothread": "io-d",
        "write-cache": "off",
        "discard": False,
    }
    *nodes, controller, disk = plugged("s", type="virtio-scsi", size="1G", read_only=True)
    assert (
        all(node["read-only"] is True for node in nodes if "driver" in node)
        and controller["id"] == "controller-s"
        and disk["bus"] == "controller-s.0"
    )
    node, *_ = plugged("n", type="nvme", size="1G", format="null-co")
    assert (node["driver"], node["size"]) == ("null-co", 1 << 30)


def test_an_overlay_never_writes_its_image_and_names_the_format() -> None:
    (store,) = blockdev.plan_storage("d", make_disk(type="nvme", size="1G", image="/images/a,b.img"), Path("/s"))
    assert store.image == (Path("/images/a,b.img"), "raw") and store.file == Path("/s/d.qcow2")
    _, origin, image, node, *_ = plugged("d", type="nvme", size="1G", image="/images/a,b.img")
    assert (origin["filename"], origin["read-only"], image["driver"], image["read-only"]) == (
        "/images/a,b.img",
        True,
        "raw",
        True,
    )
    assert (node["driver"], node["backing"], image["file"]) == ("qcow2", image["node-name"], origin["node-name"])


def test_namespaces_and_zones_make_a_disk_cold_and_are_options_of_the_command_line() -> None:
    disk = make_disk(type="nvme", size="64M", namespaces={"two": {"size": "32M", "zoned": {"zone-size": "16M"}}})
    assert disk.cold
    options = qmp.as_options(blockdev.plug_commands("one", disk, 3, blockdev.plan_storage("one", disk, Path("/s"))))
    assert [option for option, _ in options] == ["-blockdev"] * 4 + ["-object", "-blockdev"] * 2 + ["-device"] * 3
    assert json.loads(options[-1][1])["zoned.zone_size"] == 16 << 20
    assert json.loads(options[-1][1])["nsid"] == 2 and json.loads(options[-2][1])["nsid"] == 1


@pytest.mark.parametrize("path", sorted(GALLERY.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_topology_that_ships_has_a_plan_that_undoes_what_it_does(path: Path) -> None:
    for topology in load_points(path).values():
        for name, guest in topology.guests.items():
            lines = list(plan_text.describe_plan(host(), name, guest))
            assert lines[0].startswith(f"# guest {name}")
            paths = {
                one: f"/dev/{one}" for disk, said in guest.disks.items() for one in (disk, *blockdev.namespaces(said))
            }
            made = block_stack.plan_stack(guest, paths)
            steps, facts = cgroups.plan_cgroups(guest, made.devices)
            changing = [
                step for step in (*made.steps, *steps) if not step.what.startswith(("written", "sparse", "fallocated"))
            ]
            assert all(step.undo for step in changing)
            assert {fact.where.split(".")[0] for fact in (*made.facts, *facts)} <= {
                "loops",
                "filesystems",
                "md",
                "swaps",
                "cgroups",
            }


@pytest.mark.parametrize("path", sorted(GALLERY.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_topology_that_ships_can_be_drawn(path: Path) -> None:
    for topology in load_points(path).values():
        drawn = ElementTree.fromstring(topology_svg.svg(topology))
        boxes = drawn.findall(".//{http://www.w3.org/2000/svg}rect[@class='box']")
        things = sum(len(build_graph(guest).ordered()) + len(guest.cgroups) for guest in topology.guests.values())
        assert len(boxes) == things
        corners = [(box.get("x"), box.get("y")) for box in boxes]
        assert len(topology.guests) > 1 or len(set(corners)) == len(corners), "two things are drawn over each other"


# what the guest has ---------------------------------------------------------------------------------------------------------------


def test_a_guest_that_differs_from_its_file_is_said_with_the_place_in_the_file() -> None:
    guest = guest_of(
        DISKS
        + "    loops: {l0: {backing: data/f, size: 8M, direct-io: true}}\n    cgroups: {a: {io.max: {data: {rbps: 2M}}}}\n"
    )
    made = block_stack.plan_stack(guest, {"data": "/dev/vdc", "fast": "/dev/nvme0n1"})
    facts = (*made.facts, *cgroups.plan_cgroups(guest, made.devices)[1])
    good = {
        "/proc/mounts": "mnt /mnt tmpfs rw 0 0\n/dev/vdc /mnt/data ext4 rw,noatime 0 0",
        "backing_file": "/mnt/data/f",
        "loop/dio": "1",
        "partscan": "0",
        "offset": "0",
        "sizelimit": "0",
        "/ro": "0",
        "/size": str((8 << 20) // 512),
        "io.max": "8:0 rbps=1 wbps=max riops=max wiops=max\n254:32 rbps=2097152 wbps=max riops=max wiops=max",
    }

    def said(known: dict[str, str]) -> list[str]:
        text = "done 0\nread back\nnumber /dev/vdc 254:32\n"
        for number, fact in enumerate(facts):
            text += f"== {number}\n" + next(value for end, value in known.items() if fact.file.endswith(end)) + "\n"
        return list(readback.differences(facts, text))

    assert said(good) == []
    (without,) = said(good | {"loop/dio": "0"})
    assert without.startswith(
        "loops.l0.direct-io: expected 1, got 0 (/sys/block/loop0/loop/dio); a kernel gives a loop no direct I/O, and"
    )
    assert said(good | {"/size": "8"})[0].startswith("loops.l0.size: expected 16384, got 8")
    assert (
        "cgroups.a.io.max: expected rbps=2097152"
        in said(good | {"io.max": "8:0 rbps=2097152 wbps=max riops=max wiops=max"})[0]
    )
    assert said(good | {"/proc/mounts": "/dev/vdc /mnt/data xfs rw 0 0"})[0].startswith("loops.l0: expected ext4, got")
    assert len(readback.differences(facts, "")) == len(facts)


def test_numbers_may_be_written_otherwise_and_folders_are_counted() -> None:
    fact = readback.Expected(where="w", file="/f", expected="min=50 enable=1")
    assert readback.differences((fact,), "read back\n== 0\n8:0 enable=1 ctrl=user min=50.00 max=150.00\n") == ()
    assert readback.differences((fact,), "read back\n== 0\n8:0 enable=1 ctrl=user min=51.00 max=150.00\n") != ()


def test_what_the_file_says_of_disks_is_read_back_and_no_default() -> None:
    said = "{d: {type: nvme, size: 1G, queues: 8, logical-block-size: 4096}, e: {type: virtio-blk, size: 1G}}"
    guest = guest_of(f"    disks: {said}\n")
    there = {
        name: devices.Device(path=f"/dev/{name}", number="8:0", serial="", kind="nvme", size_bytes=1, read_only=False)
        for name in ("d", "e")
    }
    assert {(fact.where, fact.expected) for fact in disk_facts.expected_facts(guest.disks, there, cpus=2)} == {
        ("disks.d.queues", "2"),
        ("disks.d.logical-block-size", "4096"),
    }


# anything at all --------------------------------------------------------------------------------------------------------------------

TEXTS = [path.read_text() for path in sorted(GALLERY.glob("*.yaml"))]


@settings(max_examples=300, deadline=None)
@given(
    st.sampled_from(TEXTS),
    st.lists(st.tuples(st.integers(0, 3000), st.integers(0, 12), st.text(max_size=6)), max_size=4),
)
def test_a_mutated_topology_is_one_or_an_error_never_a_traceback(text: str, cuts: list[tuple[int, int, str]]) -> None:
    for at, length, new in cuts:
        at %= len(text) + 1
        text = text[:at] + new + text[at + length :]
    try:
        parse(text, "a.yaml")
    except TopologyError as error:
        assert error.problems


WORDS = st.sampled_from(
    [
        "g0",
        "data",
        "l0",
        "size",
        "type",
        "1G",
        "nvme",
        "${a}",
        "guests",
        "disks",
        "loops",
        "/",
        "extends",
        "matrix",
        "axes",
        "a",
    ]
)
TREES = st.recursive(
    WORDS | st.integers(-5, 5000) | st.booleans() | st.none(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(WORDS, inner, max_size=4),
    max_leaves=12,
)


@settings(max_examples=300, deadline=None)
@given(TREES, TREES)
def test_any_tree_is_a_topology_or_an_error(guest: object, matrix: object) -> None:
    text = json.dumps({"version": 1, "matrix": matrix, "guests": {"g0": guest}})
    try:
        parse(text, "a.yaml")
    except TopologyError as error:
        assert error.problems


NETWORKS = """\
version: 1
guests:
  a: {networks: {lan: {}, other: {address: 192.168.7.1/24}}}
  b: {networks: {lan: {}, other: {address: 192.168.7.2/24}}}
"""


def test_guests_on_a_network_know_each_other() -> None:
    links = parse(NETWORKS, "n.yaml").links
    assert [(link.network, link.address, link.peers) for link in links["b"]] == [
        ("lan", "10.77.1.2/24", (("a", "10.77.1.1"),)),
        ("other", "192.168.7.2/24", (("a", "192.168.7.1"),)),
    ]
    assert len({link.mac for own in links.values() for link in own}) == 4


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        (
            "  b: {networks: {lan: {}, other",
            "  b: {networks: {lam: {}, other",
            "guests.a.networks.lan: expected another guest on 'lan'",
        ),
        (
            "lan: {}, other",
            "lan: {}, lo",
            "guests.a.networks.lo: 'lo' is the name of an interface that every guest has",
        ),
        ("7.2/24", "7.1/24", "guests.b.networks.other.address: expected an address of its own, got that of 'a'"),
        (
            "7.2/24",
            "8.2/24",
            "guests.b.networks.other.address: expected an address in 192.168.7.0/24, as 'a' has, got 192.168.8.2/24",
        ),
        (
            "192.168.7.1/24",
            "10.0.2.7/24",
            "guests.a.networks.other: expected another network than 10.0.2.0/24, which is QEMU's own",
        ),
        (
            "192.168.7.1/24",
            "192.168.7.1",
            "guests.a.networks.other.address: expected an IPv4 address and its network's length",
        ),
    ],
)
def test_mistakes_about_networks(old: str, new: str, said: str) -> None:
    assert any(said in line for line in errors(NETWORKS.replace(old, new)))


@pytest.mark.parametrize(
    ("right", "wrong", "message"),
    [
        ("    memory: 256M\n", "    memory: 255M\n", "at least 256M, got 255M"),
        ("    memory: 257M\n", "    memory: 268435457\n", "a whole number of MiB"),
        (
            "    filesystems: {fs: {type: ext4, device: data}}\n    files: {f: {path: fs/f, size: 966365184}}\n",
            "    filesystems: {fs: {type: ext4, device: data}}\n    files: {f: {path: fs/f, size: 966369280}}\n",
            "the files on 'fs' need more than nine tenths of its 1G",
        ),
        (
            "    loops: {l0: {backing: fast, offset: 512}}\n",
            "    loops: {l0: {backing: fast, offset: 513}}\n",
            "a multiple of 512 bytes, got 513",
        ),
        (
            "    cgroups: {a: {io.weight: {default: 50}}}\n",
            "    cgroups: {a: {io.weight: {dat: 50}}}\n",
            "expected the name of a device, got 'dat'",
        ),
        (
            "    loops: {l0: {backing: fast}, l1: {backing: fast}}\n",
            "    swaps: {s: {on: fast}, t: {on: fast}}\n",
            "'fast' can be used by one thing alone",
        ),
    ],
)
def test_what_is_just_right_is_no_mistake_and_what_is_just_wrong_is_one(right: str, wrong: str, message: str) -> None:
    head = f"version: 1\nguests:\n  g0:\n{DISKS}"
    parse(head + right, "a.yaml")
    said = errors(head + wrong)
    assert any(message in line for line in said), said


@pytest.mark.parametrize(
    ("right", "wrong", "message"),
    [
        ("read-ahead: 128K", "read-ahead: 4095", "a multiple of 4096 bytes, got 4095"),
        ("cache: lies, cache-size: 8192", "cache: lies, cache-size: 4095", "a multiple of 4096 bytes, got 4095"),
        ("zoned: {zone-size: 64M}", "zoned: {zone-size: 48M}", "expected a part of the size of 1G, got 48M"),
        ("serial: own", "serial: tb-e", "expected a serial that no other disk has, got 'tb-e'"),
        (
            "logical-block-size: 4096, physical-block-size: 4096",
            "logical-block-size: 4096, physical-block-size: 2048",
            "at least the logical",
        ),
        ("partitions: [{size: 8M}]", "partitions: [{size: 2G}]", "the partitions need more than the 1G of 'd'"),
        ("partitions: [{size: 1022M}]", "partitions: [{size: 1023M}]", "the partitions need more than the 1G of 'd'"),
        (
            "partitions: [{size: 512M}, {size: 510M}]",
            "partitions: [{size: 512M}, {size: 511M}]",
            "the partitions need more than",
        ),
        ("partitions: [{size: 512M}, {}]", "partitions: [{size: 1022M}, {}]", "nothing of 'd' is left for it"),
        ("profile: hdd-7200, scale: 2", "scale: 2", "expected a profile beside it"),
        ("latency: {read: 1ms}", "latency: {}", "expected a delay of both, read, write or flush, got none"),
    ],
)
def test_a_disk_that_is_just_right_is_no_mistake_and_one_that_is_just_wrong_is(
    right: str, wrong: str, message: str
) -> None:
    def text(words: str) -> str:
        return f"version: 1\nguests:\n  g0:\n    disks: {{d: {{type: nvme, size: 1G, {words}}}, e: {{type: nvme, size: 1G}}}}\n"

    parse(text(right), "a.yaml")
    said = errors(text(wrong))
    assert any(message in line for line in said), said


@pytest.mark.parametrize(
    ("text", "mistake"),
    [
        (
            f"{DISKS}    throttle-groups: {{g: {{iops-total: 1, iops-read: 1}}}}\n",
            "throttle-groups.g: expected iops-total or iops-read",
        ),
        (
            f"{DISKS}    filesystems: {{fs: {{type: xfs, device: fast}}}}\n",
            "filesystems.fs.type: xfs needs at least 300M, 'fast' has 256M",
        ),
        (
            f"{DISKS}    swaps: {{s: {{on: fast}}, t: {{on: fast}}, u: {{on: fast}}}}\n",
            "swaps.u: 'fast' can be used by one thing alone",
        ),
        (
            f"{DISKS}    filesystems: {{data: {{type: ext4}}}}\n    loops: {{l0: {{backing: data/f, size: 64M, filesystem: xfs}}}}\n",
            "loops.l0.filesystem: 'data' has ext4 already, got xfs",
        ),
        (
            f"{DISKS}    filesystems: {{data: {{type: xfs}}}}\n    loops: {{l0: {{backing: data/f, size: 64M, filesystem: ext4}}}}\n",
            "loops.l0.filesystem: 'data' has xfs already, got ext4",
        ),
        (
            "    disks: {d: {type: nvme, size: 1G, partitions: [{size: 512M}, {size: 256M}, {size: 511M}]}}\n",
            "disks.d.partitions.2: the partitions need more than the 1G of 'd'",
        ),
        (
            "    disks: {d: {type: nvme, size: 1G, partitions: [{size: 512M}, {size: 510M}, {}]}}\n",
            "disks.d.partitions.2: nothing of 'd' is left for it",
        ),
        (
            "    disks: {d: {type: nvme, size: 1G, throttle: {iops-total: 1}, profile: hdd-7200}}\n",
            "disks.d.throttle: expected one of profile, throttle and throttle-group, got profile and throttle",
        ),
        (
            f"    disks: {{{', '.join(f'd{number}: {{type: nvme, size: 1G}}' for number in range(17))}}}\n",
            "disks: expected at most 16 disks and networks, one for each hot-plug port, got 17",
        ),
    ],
)
def test_a_mistake_is_said_where_it_is(text: str, mistake: str) -> None:
    assert [line for line in errors(f"version: 1\nguests:\n  g0:\n{text}") if f": guests.g0.{mistake}" in line]


def test_as_many_disks_as_there_are_ports_are_no_mistake() -> None:
    disks = ", ".join(f"d{number}: {{type: nvme, size: 1G}}" for number in range(16))
    assert len(parse(f"version: 1\nguests:\n  g0:\n    disks: {{{disks}}}\n", "a.yaml").guests["g0"].disks) == 16
