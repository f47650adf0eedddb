"""Checks of a user's kernel, its modules and its configuration before any guest boots."""

from __future__ import annotations

import gzip
import lzma
import os
from pathlib import Path

import pytest

from testbed.errors import UsageError
from testbed.host import process
from testbed.store.kernels import boot_check
from testbed.store.kernels.kernel_image import Header
from tests.support.kernel_images import (
    MAGIC,
    RELEASE,
    Notes,
    config,
    fetched,
    image,
    kernel,
    module,
    modules,
    through,
    whole,
)

pytestmark = pytest.mark.usefixtures("no_disk")


def test_a_kernel_with_its_configuration_built_in_is_taken_and_its_configuration_kept(
    given: Path, tmp_path: Path
) -> None:
    notes = Notes()
    found = fetched(given / "bzImage", tmp_path, notes)
    assert (found.release, notes.said) == (RELEASE, [])
    assert found.config is not None and found.config.read_text() == config()


@pytest.mark.parametrize(
    ("option", "why"),
    [
        ("VIRTIO_BLK", "its root is ext4 on virtio-blk"),
        ("VIRTIO_PCI", "its root is ext4 on virtio-blk"),
        ("EXT4_FS", "its root is ext4 on virtio-blk"),
        ("SERIAL_8250_CONSOLE", "the console and the agent's port are serial"),
        ("DEVTMPFS", "/dev, /proc, /sys, /run and cgroups are mounted"),
        ("BLK_DEV_INITRD", "it starts from an initramfs"),
        ("CGROUPS", "/dev, /proc, /sys, /run and cgroups are mounted"),
    ],
)
@pytest.mark.parametrize("where", ["built in", "beside it", "in its tree"])
def test_a_kernel_that_no_guest_can_boot_is_refused_before_one_does(
    tmp_path: Path, option: str, why: str, where: str
) -> None:
    text = config(**{option: "n"})
    path = tmp_path / "given" / ("arch/x86/boot/bzImage" if where == "in its tree" else "bzImage")
    path.parent.mkdir(parents=True)
    if where != "built in":
        (tmp_path / "given/.config").write_text(text)
    path.write_bytes(image(text if where == "built in" else None))
    with pytest.raises(
        UsageError,
        match=rf"Linux {RELEASE}: no guest can boot it; its configuration \(.*\) lacks\n  CONFIG_{option}=y.*: {why}",
    ):
        fetched(path, tmp_path)


def test_what_scenarios_need_is_asked_before_they_run(given: Path, tmp_path: Path) -> None:
    for option in ("MEMCG", "BLK_CGROUP"):
        (given / "bzImage").write_bytes(image(config(**{option: "n"})))
        notes = Notes()
        found = fetched(given / "bzImage", tmp_path, notes)  # a bug may need none of them
        assert notes.said == [f"{given}/bzImage: it lacks CONFIG_{option}=y: every scenario needs it"]
        with pytest.raises(
            UsageError,
            match=rf"kernel bzImage: no scenario can test it; .* lacks\n  CONFIG_{option}=y: every",
        ):
            boot_check.check_for_scenarios(found.name, found.config)
    boot_check.check_for_scenarios("unknown", None)


def test_a_kernel_without_a_configuration_is_taken_with_a_note(given: Path, tmp_path: Path) -> None:
    (given / "bzImage").write_bytes(image(None))
    (given / "config").write_text("[core]\n\tpager = less\n")  # git's
    (given / ".config").write_text(config(EXT4_FS="n").replace("6.9.0", "5.4.1"))
    notes = Notes()
    assert fetched(given / "bzImage", tmp_path, notes).config is None
    assert any("of Linux 5.4.1, and so not the configuration of 6.9.0-test" in note for note in notes.said)
    assert any("its configuration is not known" in note for note in notes.said)
    # The next command takes the kernel from the cache and prints the notes again.
    again = Notes()
    fetched(given / "bzImage", tmp_path, again)
    assert again.said == notes.said


def test_a_configuration_that_was_changed_after_the_build_is_not_the_kernels(tmp_path: Path) -> None:
    path = tmp_path / "linux/arch/x86/boot/bzImage"
    path.parent.mkdir(parents=True)
    path.write_bytes(image(None))
    (tmp_path / "linux/.config").write_text(config(EXT4_FS="n"))
    os.utime(path, (0, 0))
    assert fetched(path, tmp_path).config is None


def test_the_configuration_of_what_a_link_names_is_its_own(given: Path, tmp_path: Path) -> None:
    (given / f"vmlinuz-{RELEASE}").write_bytes(image(None))
    (given / f"config-{RELEASE}").write_text(config(EXT4_FS="n"))
    (given / "boot").mkdir()
    (given / "boot/vmlinuz").symlink_to(f"../vmlinuz-{RELEASE}")
    (given / "mine.xz").write_bytes(lzma.compress(image(None)))
    for name in ("boot/vmlinuz", f"vmlinuz-{RELEASE}", "mine.xz"):
        with pytest.raises(UsageError, match=rf"config-{RELEASE}\) lacks\n  CONFIG_EXT4_FS"):
            fetched(given / name, tmp_path)


def test_debians_version_is_that_of_the_banner() -> None:
    header = Header(
        release="6.1.0-57-amd64",
        banner="6.1.0-57-amd64 (x@y) #1 SMP PREEMPT_DYNAMIC Debian 6.1.192-3 (2026-11-26)",
        size_bytes=0,
        payload=None,
    )
    assert [boot_check._is_of(version, header) for version in ("6.1.192", "6.1.0", "6.1.19", "6.1", "5.10.0")] == [
        True,
        True,
        *[False] * 3,
    ]


def test_modules_of_another_release_are_refused(given: Path, tmp_path: Path) -> None:
    folder = modules(given / "m", "virtio_blk", "ext4", magic="6.8.0-test SMP preempt mod_unload ")
    with pytest.raises(
        UsageError,
        match=(
            rf"cannot load the modules .* to another kernel:\n    expected: {MAGIC.strip()}\n"
            rf"    got of virtio_blk.ko: 6\.8\.0"
        ),
    ):
        fetched(f"{given}/bzImage:{folder}", tmp_path)
    # Modules of the same release, but of another build.
    folder = modules(given / "n", "loop", magic=f"{RELEASE} SMP mod_unload ")
    with pytest.raises(UsageError, match=r"got of loop\.ko: 6\.9\.0-test SMP mod_unload"):
        fetched(f"{given}/bzImage:{folder}", tmp_path)
    # The kernel's vermagic is not found, but its release still differs from the modules'.
    (given / "bzImage").write_bytes(whole(gzip.compress(kernel(magic="")), with_size=False))
    with pytest.raises(
        UsageError, match=r"cannot load the modules in .*\n    expected: 6\.9\.0-test\n    got of loop\.ko: 6\.8"
    ):
        fetched(f"{given}/bzImage:{modules(given / 'o', 'loop', magic='6.8.0 SMP ')}", tmp_path)


def test_a_folder_without_modules_or_above_them_is_refused(given: Path, tmp_path: Path) -> None:
    (given / "empty").mkdir()
    with pytest.raises(
        UsageError,
        match=(
            r"empty: expected the modules of Linux 6\.9\.0-test .*, found none; "
            r"a kernel that needs none is given alone"
        ),
    ):
        fetched(f"{given}/bzImage:{given}/empty", tmp_path)
    modules(given / "root/lib/modules" / RELEASE, "loop")
    with pytest.raises(
        UsageError,
        match=rf"expected the folder of the modules of Linux {RELEASE} itself, which is .*/lib/modules/{RELEASE}",
    ):
        fetched(f"{given}/bzImage:{given}/root", tmp_path)
    # The folder that `make modules_install` makes for a kernel with everything built in.
    (given / "empty/modules.builtin").write_text("kernel/drivers/block/loop.ko\n")
    assert fetched(f"{given}/bzImage:{given}/empty", tmp_path).early_modules == ()


def test_what_is_a_module_must_be_among_those_that_are_given(given: Path, tmp_path: Path) -> None:
    (given / "bzImage").write_bytes(image(config(VIRTIO_BLK="m")))
    with pytest.raises(
        UsageError,
        match=(
            r"lacks\n  CONFIG_VIRTIO_BLK=m without virtio_blk\.ko: its root.*\n"
            r"  its modules go with it as BZIMAGE:MODULES"
        ),
    ):
        fetched(given / "bzImage", tmp_path)
    with pytest.raises(
        UsageError, match=r"CONFIG_VIRTIO_BLK=m without virtio_blk\.ko: its root is ext4 on virtio-blk$"
    ):
        fetched(f"{given}/bzImage:{modules(given / 'm', 'loop')}", tmp_path)
    # A template needs more options than a guest.
    (given / "bzImage").write_bytes(image(config(BLK_DEV_NVME="m")))
    notes = Notes()
    fetched(f"{given}/bzImage:{given}/m", tmp_path, notes)
    (note,) = notes.said
    assert "it lacks CONFIG_BLK_DEV_NVME=m without nvme.ko" in note and note.endswith("boot its guests with --cold")


def test_the_configuration_in_a_module_is_one(given: Path, tmp_path: Path) -> None:
    (given / "bzImage").write_bytes(image(None))
    folder = modules(given / "m", "loop")
    (folder / "kernel/configs.ko").write_bytes(module() + kernel(config=config(EXT4_FS="n")))
    with pytest.raises(UsageError, match=r"configs\.ko: built in\) lacks\n  CONFIG_EXT4_FS"):
        fetched(f"{given}/bzImage:{folder}", tmp_path)


def test_a_program_that_is_missing_leaves_a_note_and_no_error(
    given: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    payload = through("zstd", "-q")(kernel(config=config(EXT4_FS="n"), magic=MAGIC))
    (given / "bzImage").write_bytes(whole(payload, with_size=True))
    monkeypatch.setattr(process, "find_path", lambda tool: None)
    notes = Notes()
    fetched(given / "bzImage", tmp_path, notes)
    assert any("cannot be read: zstd: not found on this machine" in note for note in notes.said)
