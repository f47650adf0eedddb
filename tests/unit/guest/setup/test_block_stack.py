from testbed.guest.setup import block_stack, steps
from testbed.topology import GuestModel
from testbed.topology.load import parse

TEXT = """\
version: 1
guests:
  g:
    disks: {data: {type: nvme, size: 1G}}
    loops:
      l0: {backing: data/disk.img, size: 512M}
      l1: {backing: l0/inner.img, size: 256M, direct-io: true}
      l2: {backing: ram/disk.img, size: 8M, filesystem: tmpfs}
"""
GUEST = parse(TEXT, "a.yaml").guests["g"]


def with_loops(*names: str) -> GuestModel:
    return GUEST.model_copy(update={"loops": {name: GUEST.loops[name] for name in names}})


NESTED = with_loops("l0", "l1")


def test_a_loop_is_set_up_after_what_is_below_it() -> None:
    made = block_stack.plan_stack(with_loops("l1", "l0"), {"data": "/dev/nvme0n1"})
    assert [step.what for step in made.steps][2::3] == [
        "/dev/loop1 on /mnt/data/disk.img",
        "/dev/loop0 on /mnt/l0/inner.img",
    ]
    made = block_stack.plan_stack(NESTED, {"data": "/dev/nvme0n1"})
    assert [step.what for step in made.steps] == [
        "ext4 on /dev/nvme0n1 at /mnt/data",
        "written /mnt/data/disk.img",
        "/dev/loop0 on /mnt/data/disk.img",
        "ext4 on /dev/loop0 at /mnt/l0",
        "written /mnt/l0/inner.img",
        "/dev/loop1 on /mnt/l0/inner.img",
    ]
    assert made.loops["l1"].disks == ("data",)
    assert made.steps[-1].do == ("losetup --direct-io=on /dev/loop1 /mnt/l0/inner.img",)


def test_tmpfs_needs_no_disk_and_its_file_is_sparse() -> None:
    alone = block_stack.plan_stack(with_loops("l2"), {"data": "/dev/vdc"})
    assert alone.loops["l2"].disks == ()
    assert [step.what for step in alone.steps] == [
        "tmpfs on memory at /mnt/ram",
        "sparse /mnt/ram/disk.img",
        "/dev/loop0 on /mnt/ram/disk.img",
    ]


def test_exactly_the_finished_steps_are_undone_in_reverse_order() -> None:
    made = block_stack.plan_stack(NESTED, {"data": "/dev/vdc"})
    assert steps.undo_script(made.steps).splitlines()[1:-1] == [
        "losetup -d /dev/loop1 || failed=1",
        "umount /mnt/l0 || failed=1",
        "losetup -d /dev/loop0 || failed=1",
        "umount /mnt/data || failed=1",
    ]
    assert steps.undo_script(made.steps[:2]).splitlines()[1:-1] == ["umount /mnt/data || failed=1"]
    assert steps.undo_script(()).splitlines() == ["failed=0", "exit $failed"]


def test_the_steps_done_are_read_from_the_scripts_output() -> None:
    assert steps.steps_done("done 0\nsomething\ndone 1\nread back\ndone 7\n") == 2
    assert steps.steps_done("") == 0
