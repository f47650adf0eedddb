"""What a topology needs of this host and of what ships with the testbed: memory, and the kernels and images that it names."""

from __future__ import annotations

from collections.abc import Iterator

from testbed import paths
from testbed.errors import UsageError
from testbed.kernels import load_table
from testbed.topology.check import Mistake, did_you_mean, fits_host
from testbed.topology.model import Topology


def mistakes(topology: Topology, memory_bytes: int) -> Iterator[Mistake]:
    """Everything of a topology that this host cannot give. `memory_bytes`: what it has."""
    yield from fits_host(topology, memory_bytes)
    images = paths.shipped("images")
    there = paths.image_names(images)
    for name, guest in topology.guests.items():
        if guest.image not in there:
            yield ("guests", name, "image"), f"expected an image of images/, got {guest.image!r}{did_you_mean(guest.image, there)}"
        if guest.kernel is not None:
            try:
                load_table(images / "kernels.yaml").resolve(guest.kernel)
            except UsageError as error:
                yield ("guests", name, "kernel"), str(error)
