"""Requirements of tests: versions of QEMU, and options of a kernel."""

import pytest

from testbed.pytest_plugin import requirements


@pytest.mark.parametrize(
    ("need", "fits"),
    [
        (">=7.2", True),
        (">= 7.2.22", True),
        (">7.2", False),
        ("<8", True),
        ("==7.2", True),
        ("<7", False),
        (">=8.0", False),
        ("nvme", True),
    ],
)
def test_versions_of_qemu(need: str, fits: bool) -> None:
    assert (requirements.lacking_version([need], "7.2.22") == "") is fits


def test_options_of_a_kernel() -> None:
    config = "CONFIG_BLK_CGROUP=y\nCONFIG_LOOP=m\n# CONFIG_KASAN is not set\n"
    assert [requirements.config_lacks(need, config) for need in ("BLK_CGROUP", "CONFIG_LOOP=m", "KASAN", "LOOP=y")] == [
        "",
        "",
        "CONFIG_KASAN",
        "CONFIG_LOOP=y (it has m)",
    ]
