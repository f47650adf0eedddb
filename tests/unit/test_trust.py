"""Words for QEMU's own command line: no file brings any that its reader has not seen and trusted."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from pydantic import BaseModel

from testbed import bugs
from testbed.bugs import Case
from testbed.errors import TopologyError
from testbed.topology.base import Model
from testbed.topology.load import parse
from testbed.topology.model import Document, Guest

GUEST = "version: 1\nguests:\n  g0:\n"
PYTHON_NAMES = {
    "qemu_args": f"{GUEST}    qemu_args: [-chardev]\n",
    "cpu_model": f"{GUEST}    cpu_model: max\n",
    "read_only": f"{GUEST}    disks: {{data: {{type: nvme, size: 1G, read_only: true}}}}\n",
    "iops_total": f"{GUEST}    disks: {{data: {{type: nvme, size: 1G, throttle: {{iops_total: 1}}}}}}\n",
    "zone_size": f"{GUEST}    disks: {{data: {{type: nvme, size: 1G, zoned: {{zone_size: 1M}}}}}}\n",
    "direct_io": f"{GUEST}    disks: {{data: {{type: nvme, size: 1G}}}}\n    loops: {{l: {{backing: data/x, direct_io: true}}}}\n",
    "memory_max": f"{GUEST}    cgroups: {{tenant: {{memory_max: 1M}}}}\n",
    "script_name": "version: 1\nsummary: it breaks\nscript: 'true'\nscript_name: x\nsignature: [{status: 0}]\n",
}


@pytest.mark.parametrize(("name", "text"), PYTHON_NAMES.items(), ids=PYTHON_NAMES)
def test_a_key_has_no_other_name_than_that_of_the_file(name: str, text: str) -> None:
    """What looks for `qemu-args` was passed by `qemu_args`, which models took as well."""
    with pytest.raises(TopologyError, match=f"{name}: unknown key"):
        (parse if text.startswith(GUEST) else bugs.parse)(text, "x.yaml")


def test_no_model_of_a_file_takes_the_name_of_its_field() -> None:
    def every(model: type[BaseModel]) -> Iterator[type[BaseModel]]:
        yield model
        for below in model.__subclasses__():
            yield from every(below)

    models = list(every(Model))
    assert {Guest, Document, Case} <= set(models)
    for model in models:
        config = model.model_config
        assert not config.get("populate_by_name") and not config.get("validate_by_name"), model
