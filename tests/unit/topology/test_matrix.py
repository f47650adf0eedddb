"""The matrix of a topology file: its points, and mistakes in it."""

from pathlib import Path

import pytest

from testbed.errors import TopologyError
from testbed.topology import load, load_points
from tests.support.topologies import errors

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


def test_matrix_points_keep_the_types_of_their_values(tmp_path: Path) -> None:
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
def test_a_mistake_in_a_matrix_is_reported_with_its_place(old: str, new: str, message: str) -> None:
    assert any(message in line for line in errors(MATRIX.replace(old, new)))


def test_a_mistake_of_several_points_names_one_and_counts_the_others() -> None:
    messages = errors(
        MATRIX.replace("cpus: [1, 2]", "cpus: [1, 99, 98]").replace("exclude: [{disk: nvme, cpus: 2}]", "exclude: []")
    )
    assert [line.endswith("(at disk=virtio-blk,cpus=99,direct=true and 1 more points)") for line in messages] == [
        True,
        False,
    ]


def test_too_many_points_are_refused_before_they_are_built() -> None:
    axes = "\n".join(f"    a{number}: [{', '.join(map(str, range(20)))}]" for number in range(6))
    assert (
        "expected at most 100000 points, got 64000000"
        in errors(f"version: 1\nmatrix:\n  axes:\n{axes}\nguests: {{g0: {{}}}}\n")[0]
    )
