"""Plans made from a topology: QEMU commands, steps in the guest, a diagram, and values to read back."""

import json
from pathlib import Path
from xml.etree import ElementTree

import pytest

from testbed.guest import devices
from testbed.guest.setup import block_stack, cgroups, disk_facts, readback
from testbed.qemu import blockdev, qmp_command
from testbed.report import plan_text, topology_svg
from testbed.topology import load_points
from testbed.topology.disks import make_disk
from testbed.topology.graph import build_graph
from tests.support.topologies import GALLERY, guest_of
from tests.support.values import host

DISKS = "    disks: {data: {type: virtio-blk, size: 1G}, fast: {type: nvme, size: 256M}}\n"


def plugged(name: str, **options: object) -> list[dict[str, object]]:
    disk = make_disk(**options)
    return [
        command.arguments
        for command in blockdev.plug_commands(name, disk, 0, blockdev.plan_storage(name, disk, Path("/s")))
    ]


def test_each_key_of_a_disk_reaches_qemu() -> None:
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
    options = qmp_command.as_options(
        blockdev.plug_commands("one", disk, 3, blockdev.plan_storage("one", disk, Path("/s")))
    )
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


def test_a_guest_that_differs_from_its_file_is_reported_with_the_place_in_the_file() -> None:
    guest = guest_of(
        DISKS
        + "    loops: {l0: {backing: data/f, size: 8M, direct-io: true}}\n"
        + "    cgroups: {a: {io.max: {data: {rbps: 2M}}}}\n"
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

    def differences(known: dict[str, str]) -> list[str]:
        text = "done 0\nread back\nnumber /dev/vdc 254:32\n"
        for number, fact in enumerate(facts):
            text += f"== {number}\n" + next(value for end, value in known.items() if fact.file.endswith(end)) + "\n"
        return list(readback.differences(facts, text))

    assert differences(good) == []
    (without,) = differences(good | {"loop/dio": "0"})
    assert without.startswith(
        "loops.l0.direct-io: expected 1, got 0 (/sys/block/loop0/loop/dio); "
        "a kernel gives a loop no direct I/O, without"
    )
    assert differences(good | {"/size": "8"})[0].startswith("loops.l0.size: expected 16384, got 8")
    assert (
        "cgroups.a.io.max: expected rbps=2097152"
        in differences(good | {"io.max": "8:0 rbps=2097152 wbps=max riops=max wiops=max"})[0]
    )
    assert differences(good | {"/proc/mounts": "/dev/vdc /mnt/data xfs rw 0 0"})[0].startswith(
        "loops.l0: expected ext4, got"
    )
    assert len(readback.differences(facts, "")) == len(facts)


def test_numbers_may_be_formatted_differently_and_folders_are_counted() -> None:
    fact = readback.Expected(where="w", file="/f", expected="min=50 enable=1")
    assert readback.differences((fact,), "read back\n== 0\n8:0 enable=1 ctrl=user min=50.00 max=150.00\n") == ()
    assert readback.differences((fact,), "read back\n== 0\n8:0 enable=1 ctrl=user min=51.00 max=150.00\n") != ()


def test_only_stated_disk_properties_are_read_back() -> None:
    disks = "{d: {type: nvme, size: 1G, queues: 8, logical-block-size: 4096}, e: {type: virtio-blk, size: 1G}}"
    guest = guest_of(f"    disks: {disks}\n")
    there = {
        name: devices.Device(path=f"/dev/{name}", number="8:0", serial="", kind="nvme", size_bytes=1, read_only=False)
        for name in ("d", "e")
    }
    assert {(fact.where, fact.expected) for fact in disk_facts.expected_facts(guest.disks, there, cpus=2)} == {
        ("disks.d.queues", "2"),
        ("disks.d.logical-block-size", "4096"),
    }
