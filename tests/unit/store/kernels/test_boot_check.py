"""Users' kernels: what is checked of them, their modules and their configuration before any guest boots."""

from __future__ import annotations

import asyncio
import gzip
import lzma
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from testbed.cli import _refused
from testbed.errors import HostError, UsageError
from testbed.host import process
from testbed.progress import Silent
from testbed.store.kernels import boot_check, config_needs, debs, kernel_files, module_tree
from testbed.store.kernels.kernel_files import KernelFiles
from testbed.store.kernels.kernel_image import Header
from testbed.store.kernels.table import LocalKernel, short_name, split_files
from tests.unit.store.kernels.test_kernel_image import kernel, through, whole
from tests.unit.store.kernels.test_table import TABLE

RELEASE = "6.9.0-test"
MAGIC = f"{RELEASE} SMP preempt mod_unload "
TITLE = "#\n# Automatically generated file; DO NOT EDIT.\n# Linux/x86_64 6.9.0 Kernel Configuration\n#\n"


def config(**others: str) -> str:
    """A configuration with all that guests and scenarios need, but for `others`."""
    names = {name: "y" for one in (*config_needs.GUEST, *config_needs.EVERY_SCENARIO) for name in one.options} | others
    return TITLE + "".join(
        f"CONFIG_{name}={value}\n" if value != "n" else f"# CONFIG_{name} is not set\n" for name, value in names.items()
    )


def image(text: str | None) -> bytes:
    return whole(gzip.compress(kernel(config=text, magic=MAGIC)), with_size=False)


def module(magic: str = MAGIC) -> bytes:
    return b"\x7fELF" + bytes(60) + b"\0license=GPL\0vermagic=" + magic.encode() + b"\0name=x\0"


def modules(folder: Path, *names: str, magic: str = MAGIC, suffix: str = "") -> Path:
    (folder / "kernel").mkdir(parents=True)
    pack: dict[str, Callable[[bytes], bytes]] = {
        "": bytes,
        ".gz": gzip.compress,
        ".xz": lzma.compress,
        ".zst": through("zstd", "-q"),
    }
    for name in names:
        (folder / "kernel" / f"{name}.ko{suffix}").write_bytes(pack[suffix](module(magic)))
    return folder


class Notes(Silent):
    def __init__(self) -> None:
        self.said: list[str] = []

    def note(self, text: str) -> None:
        self.said.append(text)


@pytest.fixture
def given(tmp_path: Path) -> Path:
    """A folder with a kernel that has its configuration built in, and needs no modules."""
    (tmp_path / "given").mkdir()
    (tmp_path / "given/bzImage").write_bytes(image(config()))
    return tmp_path / "given"


def fetched(spec: str | Path, root: Path, notes: Silent | None = None) -> KernelFiles:
    return asyncio.run(kernel_files.fetch(TABLE.resolve(str(spec)), root, notes or Silent()))


@pytest.fixture(autouse=True)
def no_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """No file system is made, and no module index."""

    async def made(tree: Path, target: Path) -> None:
        target.write_text("\n".join(sorted(str(path.relative_to(tree)) for path in tree.rglob("*") if path.is_file())))

    run = process.run

    async def indexed(argv: list[str | Path], **options: object) -> object:
        if argv[0] != "depmod":
            return await run(argv, **options)  # type: ignore[arg-type]  # a fake
        top = Path(argv[2]) / "lib/modules" / str(argv[3])
        (top / "modules.dep").write_text("".join(f"{path.relative_to(top)}:\n" for path in sorted(top.rglob("*.ko*"))))
        return None

    monkeypatch.setattr(kernel_files, "make_ext4", made)
    monkeypatch.setattr(process, "run", indexed)


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
    assert any("of Linux 5.4.1, and so not the configuration of 6.9.0-test" in said for said in notes.said)
    assert any("its configuration is not known" in said for said in notes.said)
    # The next command, which has it from the cache, says it again.
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


@pytest.mark.parametrize("suffix", ["", ".gz", ".xz", ".zst"])
def test_modules_of_the_kernel_are_taken_however_they_are_packed(given: Path, tmp_path: Path, suffix: str) -> None:
    (given / "bzImage").write_bytes(image(config(VIRTIO_BLK="m", EXT4_FS="m")))
    folder = modules(given / "m", "virtio_blk", "ext4", "other", suffix=suffix)
    (folder / "build").symlink_to("/usr/src")
    (folder / "kernel/passwd.ko").symlink_to("/etc/passwd")
    found = fetched(f"{given}/bzImage:{folder}", tmp_path)
    assert found.early_modules == ("virtio_blk.ko", "ext4.ko")
    assert (found.folder / "early/ext4.ko").read_bytes() == module()
    on_disk = (found.folder / "modules.ext4").read_text()
    assert (
        f"{RELEASE}/kernel/other.ko{'' if suffix == '.gz' else suffix}" in on_disk.splitlines()
        and "passwd" not in on_disk
    )


def test_modules_of_another_release_are_refused(given: Path, tmp_path: Path) -> None:
    folder = modules(given / "m", "virtio_blk", "ext4", magic="6.8.0-test SMP preempt mod_unload ")
    with pytest.raises(
        UsageError,
        match=rf"cannot load the modules .* to another kernel:\n    expected: {MAGIC.strip()}\n    got of virtio_blk.ko: 6\.8\.0",
    ):
        fetched(f"{given}/bzImage:{folder}", tmp_path)
    # Of the same release, and another build.
    folder = modules(given / "n", "loop", magic=f"{RELEASE} SMP mod_unload ")
    with pytest.raises(UsageError, match=r"got of loop\.ko: 6\.9\.0-test SMP mod_unload"):
        fetched(f"{given}/bzImage:{folder}", tmp_path)
    # What the kernel compares cannot be found in it: its release is still another one.
    (given / "bzImage").write_bytes(whole(gzip.compress(kernel(magic="")), with_size=False))
    with pytest.raises(
        UsageError, match=r"cannot load the modules in .*\n    expected: 6\.9\.0-test\n    got of loop\.ko: 6\.8"
    ):
        fetched(f"{given}/bzImage:{modules(given / 'o', 'loop', magic='6.8.0 SMP ')}", tmp_path)


def test_a_folder_without_modules_or_above_them_is_refused(given: Path, tmp_path: Path) -> None:
    (given / "empty").mkdir()
    with pytest.raises(
        UsageError,
        match=r"empty: expected the modules of Linux 6\.9\.0-test .*, found none; a kernel that needs none is given alone",
    ):
        fetched(f"{given}/bzImage:{given}/empty", tmp_path)
    modules(given / "root/lib/modules" / RELEASE, "loop")
    with pytest.raises(
        UsageError,
        match=rf"expected the folder of the modules of Linux {RELEASE} itself, which is .*/lib/modules/{RELEASE}",
    ):
        fetched(f"{given}/bzImage:{given}/root", tmp_path)
    # Of a kernel with everything built in, as `make modules_install` leaves it.
    (given / "empty/modules.builtin").write_text("kernel/drivers/block/loop.ko\n")
    assert fetched(f"{given}/bzImage:{given}/empty", tmp_path).early_modules == ()


def test_what_is_a_module_must_be_among_those_that_are_given(given: Path, tmp_path: Path) -> None:
    (given / "bzImage").write_bytes(image(config(VIRTIO_BLK="m")))
    with pytest.raises(
        UsageError,
        match=r"lacks\n  CONFIG_VIRTIO_BLK=m without virtio_blk\.ko: its root.*\n  its modules go with it as BZIMAGE:MODULES",
    ):
        fetched(given / "bzImage", tmp_path)
    with pytest.raises(
        UsageError, match=r"CONFIG_VIRTIO_BLK=m without virtio_blk\.ko: its root is ext4 on virtio-blk$"
    ):
        fetched(f"{given}/bzImage:{modules(given / 'm', 'loop')}", tmp_path)
    # A template needs more than a guest.
    (given / "bzImage").write_bytes(image(config(BLK_DEV_NVME="m")))
    notes = Notes()
    fetched(f"{given}/bzImage:{given}/m", tmp_path, notes)
    (said,) = notes.said
    assert "it lacks CONFIG_BLK_DEV_NVME=m without nvme.ko" in said and said.endswith("boot its guests with --cold")


def test_the_configuration_in_a_module_is_one(given: Path, tmp_path: Path) -> None:
    (given / "bzImage").write_bytes(image(None))
    folder = modules(given / "m", "loop")
    (folder / "kernel/configs.ko").write_bytes(module() + kernel(config=config(EXT4_FS="n")))
    with pytest.raises(UsageError, match=r"configs\.ko: built in\) lacks\n  CONFIG_EXT4_FS"):
        fetched(f"{given}/bzImage:{folder}", tmp_path)


def test_what_is_no_module_or_unpacks_to_too_much_is_refused(
    given: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = modules(given / "m", "loop")
    (folder / "kernel/loop.ko").write_bytes(b"\x7fELF of something else")
    with pytest.raises(UsageError, match=r"loop\.ko: expected a kernel module, which says what kernel it is for"):
        fetched(f"{given}/bzImage:{folder}", tmp_path)
    monkeypatch.setattr(module_tree, "MOST_BYTES", 1 << 20)
    (folder / "kernel/loop.ko").rename(folder / "kernel/loop.ko.gz")
    (folder / "kernel/loop.ko.gz").write_bytes(gzip.compress(bytes(2 << 20)))
    with pytest.raises(UsageError, match=r"loop\.ko\.gz: expected at most 1M when it is unpacked"):
        fetched(f"{given}/bzImage:{folder}", tmp_path)


def test_a_bzimage_of_syzbot_is_unpacked(given: Path, tmp_path: Path) -> None:
    (given / "bzImage-1a2b3c4d.xz").write_bytes(lzma.compress((given / "bzImage").read_bytes()))
    found = fetched(given / "bzImage-1a2b3c4d.xz", tmp_path)
    assert found.bzimage.read_bytes() == (given / "bzImage").read_bytes() and found.release == RELEASE


def test_a_damaged_kernel_is_named_as_its_user_calls_it(given: Path, tmp_path: Path) -> None:
    (given / "bzImage").write_bytes(whole(gzip.compress(kernel())[:-20], with_size=False))
    with pytest.raises(UsageError, match=rf"^{given}/bzImage: cannot be unpacked"):
        fetched(given / "bzImage", tmp_path)


def test_a_program_that_is_missing_leaves_a_note_and_no_error(
    given: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    payload = through("zstd", "-q")(kernel(config=config(EXT4_FS="n"), magic=MAGIC))
    (given / "bzImage").write_bytes(whole(payload, with_size=True))
    monkeypatch.setattr(process, "find_path", lambda tool: None)
    notes = Notes()
    fetched(given / "bzImage", tmp_path, notes)
    assert any("cannot be read: zstd: not found on this machine" in said for said in notes.said)


@pytest.fixture
def unprivileged() -> Iterator[None]:
    """The test runs as another user than root."""
    if os.geteuid() != 0:
        yield
        return
    os.setegid(65534)
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)
        os.setegid(0)


def test_a_kernel_only_root_may_read_gets_advice_that_helps(unprivileged: None) -> None:
    del unprivileged
    folder = Path(subprocess.run(["mktemp", "-d"], capture_output=True, text=True, check=True).stdout.strip())
    try:
        (folder / "vmlinuz-6.9").write_bytes(image(config()))
        (folder / "vmlinuz-6.9").chmod(0)
        with pytest.raises(
            UsageError,
            match=r"vmlinuz-6\.9: only root may read it.*give a copy, which `sudo install -m 644 .*vmlinuz-6\.9 \.` makes",
        ):
            fetched(folder / "vmlinuz-6.9", folder)
        (folder / "vmlinuz-6.9").chmod(0o644)
        modules(folder / "m", "loop")
        (folder / "m").chmod(0)
        with pytest.raises(
            UsageError, match=r"m: only root may read it.* `sudo cp -r .*/m \. && sudo chown -R \$USER m` makes"
        ):
            fetched(f"{folder}/vmlinuz-6.9:{folder}/m", folder)
        with pytest.raises(UsageError, match=r"m/loop: Permission denied; give a path that this user may read"):
            TABLE.resolve(f"{folder}/m/loop")
    finally:
        (folder / "m").chmod(0o755)
        shutil.rmtree(folder)


def test_a_file_that_may_not_be_read_is_not_said_to_be_the_caches() -> None:
    refused = _refused(PermissionError(13, "Permission denied", "/boot/vmlinuz"))
    assert isinstance(
        refused, HostError
    ) and "/boot/vmlinuz: Permission denied; if it is the testbed's own, name other places" in str(refused)


def test_paths_with_colons_are_paths(given: Path) -> None:
    odd = given / "a:b"
    odd.mkdir()
    for name in ("bzImage", "bz:Image", "x.deb", "y:z.deb"):
        (odd / name).touch()
    (odd / "m:n").mkdir()
    (odd / "m").mkdir()

    def of(spec: str) -> tuple[str, ...]:
        found = TABLE.resolve(spec)
        assert isinstance(found, LocalKernel)
        return tuple(str(path.relative_to(odd)) for path in (*found.debs, found.bzimage, found.modules) if path)

    assert of(f"{odd}/bzImage") == ("bzImage",)
    assert of(f"{odd}/bz:Image") == ("bz:Image",)
    assert of(f"{odd}/bz:Image:{odd}/m:n") == ("bz:Image", "m:n")
    assert of(f"{odd}/bzImage:{odd}/m") == ("bzImage", "m")
    assert of(f"{odd}/x.deb:{odd}/y:z.deb") == ("x.deb", "y:z.deb")
    assert (short_name(f"{odd}/bz:Image:{odd}/m"), short_name("debian-6.1"), split_files("debian-6.1")) == (
        "bz:Image",
        "debian-6.1",
        None,
    )
    for spec, said in (
        (f"{odd}/bzImage:", "bzImage is there, '' is not"),
        (f"{odd}/bzImage:none", "bzImage is there, 'none' is not"),
    ):
        with pytest.raises(UsageError, match=said):
            TABLE.resolve(spec)


def deb(folder: Path, name: str, files: dict[str, bytes | str]) -> Path:
    """A package; what is a string is a link there."""
    top = folder / f"of-{name}"
    (top / "DEBIAN").mkdir(parents=True)
    (top / "DEBIAN/control").write_text(
        "Package: x\nVersion: 1\nArchitecture: amd64\nMaintainer: a <a@example.org>\nDescription: x\n"
    )
    for path, data in files.items():
        (top / path).parent.mkdir(parents=True, exist_ok=True)
        if isinstance(data, str):
            (top / path).symlink_to(data)
        else:
            (top / path).write_bytes(data)
    subprocess.run(
        ["dpkg-deb", "-b", "--root-owner-group", "-Znone", top, folder / name], check=True, capture_output=True
    )
    return folder / name


def test_packages_are_one_kernel_with_its_configuration_and_modules(tmp_path: Path) -> None:
    one = deb(
        tmp_path,
        "image.deb",
        {f"boot/vmlinuz-{RELEASE}": image(None), f"boot/config-{RELEASE}": config(EXT4_FS="m").encode()},
    )
    two = deb(tmp_path, "modules.deb", {f"lib/modules/{RELEASE}/kernel/ext4.ko": module()})
    with pytest.raises(
        UsageError,
        match=r"CONFIG_EXT4_FS=m without ext4\.ko: .*\n  its modules go with it as BZIMAGE:MODULES_FOLDER, or as another",
    ):
        fetched(one, tmp_path)
    assert fetched(f"{one}:{two}", tmp_path).early_modules == ("ext4.ko",)
    other = deb(tmp_path, "other.deb", {"lib/modules/6.8.0/kernel/ext4.ko": module("6.8.0 SMP ")})
    with pytest.raises(
        UsageError, match=r"expected modules of Linux 6\.9\.0-test in its packages, found those of 6\.8\.0"
    ):
        fetched(f"{one}:{other}", tmp_path)


def test_links_of_a_package_are_not_followed(tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(image(config()))
    hostile = deb(
        tmp_path,
        "x.deb",
        {
            f"boot/vmlinuz-{RELEASE}": str(tmp_path / "secret"),
            "lib/modules/x": "/etc",
            "usr/share/doc/x": b"x",
            "boot/a": b"a",
        },
    )
    with pytest.raises(UsageError, match=r"expected one boot/vmlinuz-\* in its packages, found 0"):
        fetched(hostile, tmp_path)
    debs.unpack(hostile, tmp_path / "tree")
    assert [str(path.relative_to(tmp_path / "tree")) for path in sorted((tmp_path / "tree").rglob("*"))] == [
        "boot",
        "boot/a",
    ]


def test_a_package_that_is_none_or_too_large_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "none.deb").write_bytes(b"no archive")
    with pytest.raises(
        UsageError, match=r"none\.deb: expected a Debian package with files of a kernel: .*cannot be unpacked"
    ):
        fetched(tmp_path / "none.deb", tmp_path)
    monkeypatch.setattr(debs, "MOST_BYTES", 1 << 20)
    large = deb(tmp_path, "large.deb", {"boot/large": bytes(2 << 20)})
    with pytest.raises(UsageError, match=r"large\.deb: .*expected at most 1M when it is unpacked"):
        debs.unpack(large, tmp_path / "tree")
    with pytest.raises(UsageError, match=r"large\.deb: expected a file of a kernel, got one of 2"):
        fetched(large, tmp_path)


@pytest.mark.parametrize("spec", ["/dev/zero", "/dev/zero:/tmp", "{pipe}", "{pipe}.deb"])
def test_what_is_no_file_is_not_read(tmp_path: Path, spec: str) -> None:
    for name in ("pipe", "pipe.deb"):
        os.mkfifo(tmp_path / name)
    with pytest.raises(
        UsageError, match=r"expected BZIMAGE\[:MODULES_FOLDER\] or FILE\.deb\[:FILE\.deb\], got what is no file: "
    ):
        fetched(spec.format(pipe=tmp_path / "pipe"), tmp_path)


def test_a_folder_of_everything_is_not_walked_to_its_end(
    given: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module_tree, "_MOST_FILES", 3)
    folder = modules(given / "m", "a", "b", "c", "d")
    with pytest.raises(UsageError, match=r"m: expected the modules of one kernel .*, found more than 3 files"):
        fetched(f"{given}/bzImage:{folder}", tmp_path)
