from dataclasses import replace
from pathlib import Path

import pytest

from testbed.errors import HostError
from testbed.host.facts import Host, JailSupport, cpu_model
from testbed.qemu import blockdev, command_line, jail, qmp_command
from testbed.qemu.machine_id import machine_id
from testbed.topology import Disk, GuestModel
from testbed.topology.load import parse
from testbed.topology.networks import Nic
from tests.support.values import host
from tests.unit.store.test_cache import Recorder

DATA = Path(__file__).parents[2] / "data"
ROOT = Path(__file__).parents[3]
FILES = command_line.BootFiles(
    bzimage=Path("/k/bzImage"),
    initramfs=Path("/i/initramfs"),
    root=Path("/r/root.ext4"),
    modules_disk=Path("/k/modules.ext4"),
)


def model() -> GuestModel:
    return parse((ROOT / "topologies/default.yaml").read_text(), "default.yaml").guests["g0"]


def words(of: Host, **changes: object) -> tuple[tuple[str, ...], ...]:
    machine = machine_id(of, model(), kernel="k", image="i", initramfs="r")
    given: dict[str, object] = {"name": "g0", "sockets": Path("/s"), "memory": command_line.ANONYMOUS}
    return command_line.argv(of, machine, FILES, **(given | changes))  # type: ignore[arg-type]  # a test's own keywords


def test_the_argv_of_the_default_topology_is_the_golden_one() -> None:
    assert "".join(" ".join(option) + "\n" for option in words(host())) == (DATA / "argv-default.txt").read_text()


def test_a_clone_waits_for_a_state_and_copies_the_templates_memory_on_write() -> None:
    options = words(host(), memory=command_line.Memory(file=Path("/t/memory")), restore=True)
    assert ("-incoming", "defer") in options
    assert any(option[-1].endswith("mem-path=/t/memory,share=off") for option in options)
    reading = words(host(reads_memory=True), memory=command_line.Memory(file=Path("/t/memory")), restore=True)
    assert any(option[-1].endswith("mem-path=/t/memory,share=off,readonly=on,rom=off") for option in reading)


def test_a_template_shares_its_memory_file() -> None:
    options = words(host(reads_memory=True), memory=command_line.Memory(file=Path("/t/memory"), shared=True))
    assert any(option[-1].endswith("mem-path=/t/memory,share=on") for option in options)
    assert ("-incoming", "defer") not in options


def test_a_path_with_a_comma_stays_one_value() -> None:
    options = words(host(), sockets=Path("/a,b"))
    assert ("-chardev", "socket,id=qmp,path=/a,,b/qmp,server=on,wait=off") in options


def test_a_qemu_without_a_sandbox_runs_no_guest_unless_the_user_waives_it() -> None:
    notes = Recorder()
    assert any(option[0] == "-sandbox" for option in words(host()))
    jail.warn_if_unconfined(host(), notes)
    assert notes.notes == []
    jail.warn_if_unconfined(replace(host(), jail=JailSupport(why_unconfined="no libseccomp", mount_ns=True)), notes)
    assert "is not confined: a guest that takes it over may open files" in notes.notes.pop()
    with pytest.raises(HostError, match=r"expected a QEMU that has a sandbox .*TESTBED_NO_SANDBOX=1"):
        words(host(seccomp=False))
    with pytest.raises(HostError, match="expected a QEMU that has a sandbox"):
        jail.warn_if_unconfined(host(seccomp=False), notes)
    waived = replace(host(seccomp=False), sandbox_waived=True)
    assert not any(option[0] == "-sandbox" for option in words(waived))
    jail.warn_if_unconfined(waived, notes)
    assert "has no sandbox" in notes.notes[0]


def test_only_ssh_from_this_machine_reaches_the_guest() -> None:
    (option,) = (option for option in words(host()) if option[0] == "-netdev")
    assert "restrict=on" in option[1] and "hostfwd=tcp:127.0.0.1:0-:22" in option[1]


def test_without_kvm_the_accelerator_is_tcg_and_faulty_cpu_features_are_off() -> None:
    assert ("-accel", "tcg") in words(host()) and ("-cpu", "max,-la57,-pku") in words(host())
    assert ("-accel", "kvm") in words(host(kvm=True)) and ("-cpu", "host") in words(host(kvm=True))


def test_under_kvm_the_cpu_model_is_that_of_the_host() -> None:
    assert cpu_model("kvm") == "host"


@pytest.mark.parametrize("change", [{"kernel": "x"}, {"image": "x"}, {"initramfs": "x"}])
def test_the_key_of_a_template_depends_on_the_files_that_it_boots(change: dict[str, str]) -> None:
    known = {"kernel": "k", "image": "i", "initramfs": "r"}
    assert machine_id(host(), model(), **known).key != machine_id(host(), model(), **(known | change)).key


def test_the_key_of_a_template_depends_on_qemu_and_the_machine() -> None:
    known = {"kernel": "k", "image": "i", "initramfs": "r"}
    keys = {
        machine_id(host(), model(), **known).key,
        machine_id(host(identity="other"), model(), **known).key,
        machine_id(host(kvm=True), model(), **known).key,
        machine_id(host(), model().model_copy(update={"cpus": 2}), **known).key,
        machine_id(host(), model().model_copy(update={"memory": 512 << 20}), **known).key,
    }
    assert len(keys) == 5


def test_disks_do_not_change_the_key_of_a_template() -> None:
    known = {"kernel": "k", "image": "i", "initramfs": "r"}
    assert (
        machine_id(host(), model(), **known).key
        == machine_id(host(), model().model_copy(update={"disks": {}}), **known).key
    )


def plugged(name: str, disk: Disk, port: int) -> tuple[qmp_command.QmpCommand, ...]:
    return blockdev.plug_commands(name, disk, port, blockdev.plan_storage(name, disk, Path("/s")))


def test_every_disk_has_a_limits_node_even_without_limits() -> None:
    *nodes, device = plugged("data", model().disks["data"], 3)
    assert [command.execute for command in nodes] == ["blockdev-add", "blockdev-add", "object-add", "blockdev-add"]
    assert not any(nodes[2].arguments["limits"][name] for name in ("iops-total", "bps-total", "bps-read"))
    assert device.arguments == {
        "driver": "virtio-blk-pci",
        "id": "disk-data",
        "bus": "port3",
        "drive": "limited-data",
        "serial": "tb-data",
        "rerror": "report",
        "werror": "report",
    }


def test_a_throttled_disk_has_a_throttle_group_of_its_own() -> None:
    text = "version: 1\nguests: {g: {disks: {d: {type: nvme, size: 1G, throttle: {iops-total: 100}}}}}\n"
    disk = parse(text, "a.yaml").guests["g"].disks["d"]
    commands = plugged("d", disk, 0)
    assert [command.execute for command in commands] == [
        "blockdev-add",
        "blockdev-add",
        "object-add",
        "blockdev-add",
        "device_add",
    ]
    assert commands[0].arguments["node-name"] == commands[1].arguments["file"] == "store-d"
    assert commands[2].arguments["limits"]["iops-total"] == 100
    assert commands[3].arguments["file"] == "file-d" and commands[4].arguments["drive"] == "limited-d"
    assert [next(iter(command.arguments.values())) for command in blockdev.unplug_commands("d", disk)] == [
        "limited-d",
        "file-d",
        "store-d",
        "throttle-d",
    ]


def test_every_disk_has_a_root_port() -> None:
    disks = {f"d{number}": {"type": "nvme", "size": 4096} for number in range(16)}
    full = GuestModel.model_validate({"disks": disks})
    assert machine_id(host(), full, kernel="k", image="i", initramfs="r").ports == 16


def test_a_topology_that_needs_kvm_is_refused_if_kvm_does_not_work() -> None:
    with pytest.raises(HostError, match="the topology wants accelerator: kvm; here it is not used: said so"):
        machine_id(host(), model().model_copy(update={"accelerator": "kvm"}), kernel="k", image="i", initramfs="r")


def test_a_qemu_without_dgram_netdevs_supports_everything_but_networks() -> None:
    old = host(networks=False)
    wired = model().model_copy(update={"networks": {"lan": Nic()}})
    with pytest.raises(HostError, match=r"networks: expected a QEMU with -netdev dgram .* got 7\.2\.22"):
        machine_id(old, wired, kernel="k", image="i", initramfs="r")
    assert machine_id(host(), wired, kernel="k", image="i", initramfs="r") and words(old)


def test_a_guest_that_can_be_saved_has_an_overlay_of_its_root_with_a_named_image() -> None:
    files = replace(FILES, overlay=Path("/s/root.qcow2"), modules_disk=None)
    machine = machine_id(host(), model(), kernel="k", image="i", initramfs="r")
    options = command_line.argv(host(), machine, files, name="g0", sockets=Path("/s"), memory=command_line.ANONYMOUS)
    drives_of = [option[1] for option in options if option[0] == "-drive"]
    image = "backing.driver=raw,backing.file.filename=/r/root.ext4"
    assert drives_of == [f"if=none,id=root,format=qcow2,file=/s/root.qcow2,{image}"]
    assert command_line.flatten_options(options)[0] == host().qemu.path
