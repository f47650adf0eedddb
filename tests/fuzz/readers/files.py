"""Files that people exchange and run: topologies, bugs, bundles, disk images."""

from __future__ import annotations

import hashlib
import io
import json
import random
import tarfile

from testbed.bugs import bundle as bundles
from testbed.bugs.load import parse, parse_mapping, read_plain, to_yaml
from testbed.hardware import disk_images
from testbed.hardware.disk_images import HEAD_BYTES, TAIL_BYTES, Content
from testbed.topology.load import parse_points
from testbed.topology.yaml_reader import read_file
from tests.fuzz import mutate
from tests.fuzz.readers import place


def topology(data: bytes) -> None:
    """Load all points of a file's matrix, relative to an empty folder."""
    path = place.file(data, "topology.yaml")
    parse_points(read_file(path), "topology.yaml", path.parent)


def bug(data: bytes) -> None:
    """Load a bug without other files, and write it as a file again."""
    text = read_file(place.file(data, "bug.yaml"))
    parse(text)
    plain, _ = read_plain(text, "bug.yaml")
    parse(to_yaml(plain))


def bundle(data: bytes) -> None:
    """Read everything of a bundle that is read before it runs."""
    path = place.file(data, "bundle.tar")
    found = bundles.read(path)
    parse_mapping(found.plain)
    with place.folder() as root:
        bundles.kernels(found, root)


def sealed(data: bytes, rng: random.Random) -> bytes:
    """Add a member to a bundle and to its manifest."""
    try:
        with tarfile.open(fileobj=io.BytesIO(data)) as archive:
            files = {one.name: (archive.extractfile(one) or io.BytesIO()).read() for one in archive}
        name = rng.choice(sorted(files))
        files[name] = mutate.mutated(files[name], rng, (), (mutate.json_node,))
        manifest = json.loads(files["manifest.json"])
        manifest["files"] = {
            name: hashlib.sha256(data).hexdigest() for name, data in files.items() if name != "manifest.json"
        }
        files["manifest.json"] = json.dumps(manifest).encode()
        made = io.BytesIO()
        with tarfile.open(fileobj=made, mode="w", format=tarfile.USTAR_FORMAT) as archive:
            for name, member in files.items():
                info = tarfile.TarInfo(name)
                info.size = len(member)
                archive.addfile(info, io.BytesIO(member))
    except Exception:  # tarfile raises many kinds for damaged archives
        return mutate.tar_member(data, rng)
    return made.getvalue().rstrip(b"\0") + bytes(1024)


def disk_image(data: bytes) -> None:
    """Check the beginning and end of a disk image, as raw and as qcow2."""
    content = Content(head=data[:HEAD_BYTES], tail=data[-TAIL_BYTES:], size_bytes=len(data))
    for wanted in ("raw", "qcow2"):
        list(disk_images.image_mistakes(content, wanted, "its name", 1 << 30))
