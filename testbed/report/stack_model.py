"""Models of a `stack` in `results.json`: the devices, filesystems and control groups of a guest."""

from __future__ import annotations

from testbed.report.fields import Count, DocumentModel, Every, Named


class Block(DocumentModel):
    """A block device of a stack. `kind`: loop, dm, md, or the type of an emulated disk; `name`: of a disk, its name in
    the topology; `number`: MAJ:MIN; `partitions`: bytes by /dev path; `on`: the devices below a dm or md device. Fields
    of loop devices are empty or 0 for other devices.
    """

    kind: str
    name: str
    device: str
    number: str
    size_bytes: Count
    read_only: bool
    logical_block_size: Count
    read_ahead_bytes: Count
    scheduler: str
    profile: str
    backing_file: str
    direct_io: bool
    offset_bytes: Count
    size_limit_bytes: Count
    partitions: Named[Count]
    on: Every[str]


class Mount(DocumentModel):
    """A filesystem, as in /proc/mounts."""

    mount_point: str
    type: str
    source: str
    options: str


class Swap(DocumentModel):
    """A swap area on a file or a device."""

    on: str
    size_bytes: Count


class Group(DocumentModel):
    """A control group by its path below the root. `limits`: lines of its limit files, by file name."""

    path: str
    limits: Named[Every[str]]


class Stack(DocumentModel):
    """The devices, filesystems and control groups of a guest while a claim was measured, as its kernel lists them.
    `cpus`: those online; `controllers`: those enabled below the root group; `more_groups`: how many are not in
    `groups`.
    """

    cpus: str
    controllers: str
    blocks: Every[Block]
    mounts: Every[Mount]
    swaps: Every[Swap]
    groups: Every[Group]
    more_groups: Count = 0
