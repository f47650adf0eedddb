"""Kernels that a stranger packed: no file of this machine gets into a guest, and all that is unpacked has a limit."""

from __future__ import annotations

import asyncio
import gzip
import os
import subprocess
import tracemalloc
from pathlib import Path

import pytest

from testbed.errors import UsageError
from testbed.progress import Silent
from testbed.store.kernels import debs, kernel_files, module_tree
from testbed.store.kernels.kernel_files import KernelFiles
from tests.support.kernel_images import RELEASE, TABLE, Notes, config, deb, image, module, modules

SECRET = "root:$6$of-this-machine:20228:0:99999:7:::"
NEEDS_MODULE = image(config(VIRTIO_BLK="m"))


def fetched(spec: str | Path, root: Path, notes: Silent | None = None) -> KernelFiles:
    """Fetch a kernel as the command does, with depmod and mke2fs."""
    return asyncio.run(kernel_files.fetch(TABLE.resolve(str(spec)), root / "cache", notes or Silent()))


def given_to_guests(found: KernelFiles) -> bytes:
    return b"".join(path.read_bytes() for path in sorted(found.folder.rglob("*")) if path.is_file())


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    """Create a secret file of this machine, like /etc/shadow."""
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/shadow").write_text(SECRET)
    return tmp_path / "etc/shadow"


def packed(folder: Path, files: dict[str, bytes | str]) -> Path:
    there: dict[str, bytes | str] = {
        f"boot/vmlinuz-{RELEASE}": NEEDS_MODULE,
        f"lib/modules/{RELEASE}/kernel/virtio_blk.ko": module(),
    }
    return deb(folder, "x.deb", there | files)


def test_links_of_a_package_bring_nothing_of_this_machine_into_a_guest_and_are_named(
    secret: Path, tmp_path: Path
) -> None:
    up = "../" * 20
    hostile = packed(
        tmp_path,
        {
            f"boot/config-{RELEASE}": str(secret),
            f"lib/modules/{RELEASE}/kernel/shadow.ko": str(secret),
            f"lib/modules/{RELEASE}/kernel/up.ko": f"{up}{str(secret)[1:]}",
            f"lib/modules/{RELEASE}/etc": str(secret.parent),
            f"lib/modules/{RELEASE}/config": str(secret),
            f"lib/modules/{RELEASE}/build": f"/usr/src/linux-headers-{RELEASE}",
            f"lib/modules/{RELEASE}/loop.ko": "loop.ko",
        },
    )
    notes = Notes()
    assert SECRET.encode() not in given_to_guests(fetched(hostile, tmp_path, notes))
    (said,) = notes.said
    for name in ("kernel/shadow.ko", "kernel/up.ko", "etc", "config", "loop.ko"):
        assert f"lib/modules/{RELEASE}/{name} (a link to " in said or " and 1 more" in said
    assert (
        f"boot/config-{RELEASE} (a link to {secret}, which is no file of the package)" in said and "build" not in said
    )
    debs.unpack(hostile, tmp_path / "tree")
    assert not [path for path in (tmp_path / "tree").rglob("*") if path.is_symlink()]


def test_a_package_that_is_called_as_an_option_is_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    packed(tmp_path, {}).rename(tmp_path / "-x.deb")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tree").mkdir()
    assert debs.unpack(Path("-x.deb"), tmp_path / "tree") == ()
    assert (tmp_path / f"tree/boot/vmlinuz-{RELEASE}").is_file()


def test_a_kernel_that_is_a_link_to_a_file_of_this_machine_is_none(tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(image(config()))
    with pytest.raises(UsageError, match=r"expected one boot/vmlinuz-\* in its packages, found 0"):
        fetched(packed(tmp_path, {f"boot/vmlinuz-{RELEASE}": str(tmp_path / "secret")}), tmp_path)


@pytest.mark.parametrize(
    "to", [f"../usr/lib/modules/{RELEASE}/vmlinuz", f"/usr/lib/modules/{RELEASE}/vmlinuz", "other", "hard"]
)
def test_links_of_a_package_to_its_own_files_are_these_files(tmp_path: Path, to: str) -> None:
    """Distributions that keep a kernel next to its modules have such links."""
    own = f"usr/lib/modules/{RELEASE}"
    files: dict[str, bytes | str] = {
        f"{own}/vmlinuz": NEEDS_MODULE,
        f"{own}/config": config(VIRTIO_BLK="m").encode(),
        f"{own}/kernel/virtio_blk.ko": module(),
        f"{own}/weak/again.ko": "../kernel/virtio_blk.ko",
        f"boot/vmlinuz-{RELEASE}": to,
        "boot/other": f"../usr/lib/modules/{RELEASE}/vmlinuz",
    }
    package = deb(tmp_path, "x.deb", {name: data for name, data in files.items() if data != "hard"})
    if to == "hard":
        top = tmp_path / "of-x.deb"
        (top / f"boot/vmlinuz-{RELEASE}").hardlink_to(top / own / "vmlinuz")
        subprocess.run(
            ["dpkg-deb", "-b", "--root-owner-group", "-Znone", top, package], check=True, capture_output=True
        )
    notes = Notes()
    found = fetched(package, tmp_path, notes)
    assert (found.early_modules, found.release, notes.said) == (("virtio_blk.ko",), RELEASE, [])
    tree = tmp_path / "tree"
    assert debs.unpack(package, tree) == () and (tree / own / "weak/again.ko").read_bytes() == module()
    debs.unpack(package, tree)  # once more, over hard links to one file
    assert (tree / own / "vmlinuz").read_bytes() == NEEDS_MODULE and (
        tree / own / "kernel/virtio_blk.ko"
    ).read_bytes() == module()


@pytest.mark.parametrize("packed_as", ["package", "folder"])
def test_a_name_that_modules_dep_would_show_as_a_path_is_left_out_and_named(
    secret: Path, tmp_path: Path, packed_as: str
) -> None:
    """depmod does not quote names: a folder `virtio_pci: ` turns its content into that module's dependencies."""
    base = f"lib/modules/{RELEASE}"
    files: dict[str, bytes | str] = {
        f"{base}/kernel/virtio_pci: {secret} x/y.ko": module(),
        f"{base}/kernel/virtio_pci": b"x",
        f"{base}/x/y.ko:": b"x",
    }
    spec: str | Path = packed(tmp_path, files)
    if packed_as == "folder":
        (tmp_path / f"of-x.deb/{base}/kernel/a\nb.ko").write_bytes(module())  # dpkg-deb refuses to pack such a name
        top = tmp_path / "of-x.deb"
        spec = f"{top}/boot/vmlinuz-{RELEASE}:{top}/{base}"
    notes = Notes()
    found = fetched(spec, tmp_path, notes)
    assert SECRET.encode() not in given_to_guests(found) and found.early_modules == ("virtio_blk.ko",)
    assert (
        "virtio_pci:  (its name is none that module tools read)" in notes.said[0] and "y.ko: (its name" in notes.said[0]
    )


def test_modules_dep_is_believed_only_of_modules_that_are_given(secret: Path, tmp_path: Path) -> None:
    folder = modules(tmp_path / "m", "virtio_blk")
    assert module_tree.unpack_modules(folder, ["kernel/virtio_blk.ko"], tmp_path / "early") == ("virtio_blk.ko",)
    for path in (str(secret), "../etc/shadow", "kernel"):
        with pytest.raises(UsageError, match=r"modules\.dep: expected paths of modules that are given"):
            module_tree.unpack_modules(folder, [path], tmp_path / f"early-{len(path)}")


def test_a_folder_of_modules_that_is_a_link_to_the_users_own_files_is_refused(tmp_path: Path) -> None:
    """An archive is unpacked in the home; its lib/modules/RELEASE is a link to the home, which has a module."""
    home, got = tmp_path / "home", tmp_path / "home/got"
    (home / ".ssh").mkdir(parents=True)
    (home / ".ssh/id_ed25519").write_text(SECRET)
    (got / "lib/modules").mkdir(parents=True)
    (got / f"vmlinuz-{RELEASE}").write_bytes(NEEDS_MODULE)
    modules(got / "own", "virtio_blk")
    (got / f"lib/modules/{RELEASE}").symlink_to("../../..")
    with pytest.raises(
        UsageError,
        match=rf"expected the modules of Linux {RELEASE}, got a link to {home}; where that is what you mean, name",
    ):
        fetched(f"{got}/vmlinuz-{RELEASE}:{got}/lib/modules/{RELEASE}", tmp_path)
    (got / f"lib/modules/{RELEASE}").unlink()
    (got / "lib/modules").rmdir()
    (got / "lib/modules").symlink_to(home)
    with pytest.raises(UsageError, match=r"got a link to .*home/\.ssh; where"):
        fetched(f"{got}/vmlinuz-{RELEASE}:{got}/lib/modules/.ssh", tmp_path)
    # A link above both is no attack, and neither is a distribution's lib -> usr/lib.
    (tmp_path / "linked").symlink_to(got)
    assert fetched(f"{tmp_path}/linked/vmlinuz-{RELEASE}:{tmp_path}/linked/own", tmp_path).early_modules == (
        "virtio_blk.ko",
    )
    (got / "lib/modules").unlink()
    (got / "usr/lib/modules").mkdir(parents=True)
    (got / "own").rename(got / f"usr/lib/modules/{RELEASE}")
    (got / "lib").rmdir()
    (got / "lib").symlink_to("usr/lib")
    assert fetched(f"{got}/vmlinuz-{RELEASE}:{got}/lib/modules/{RELEASE}", tmp_path).early_modules == ("virtio_blk.ko",)


def test_links_and_special_files_of_a_folder_of_modules_are_left_out_and_named(secret: Path, tmp_path: Path) -> None:
    (tmp_path / "bzImage").write_bytes(NEEDS_MODULE)
    folder = modules(tmp_path / "m", "virtio_blk")
    (folder / "kernel/again.ko").symlink_to("virtio_blk.ko")
    (folder / "build").symlink_to("/usr/src/linux")
    (folder / "source").symlink_to("build")
    (folder / "vmlinuz").symlink_to(tmp_path / "bzImage")
    os.mkfifo(folder / "kernel/pipe.ko")
    (folder / "kernel/shadow.ko").symlink_to(secret)
    (folder / "etc").symlink_to(secret.parent)
    (folder / "kernel/self.ko").symlink_to("self.ko")
    (folder / "kernel/virtio_blk.ko").chmod(0o4755)
    notes = Notes()
    found = fetched(f"{tmp_path}/bzImage:{folder}", tmp_path, notes)
    assert SECRET.encode() not in given_to_guests(found)
    (said,) = notes.said
    assert said.startswith(
        f"{folder}: left out: etc (a link to {secret.parent}, which is no file in it), kernel/pipe.ko (neither a file"
    )
    assert "kernel/self.ko (a link " in said and f"kernel/shadow.ko (a link to {secret}" in said and "again" not in said
    assert not [path for path in found.folder.rglob("*") if path.stat().st_mode & 0o6000]
    copied = tmp_path / "copied"
    module_tree.copy_modules(folder, copied)
    assert sorted(path.name for path in copied.rglob("*.ko")) == ["again.ko", "virtio_blk.ko"]
    assert not [path for path in copied.rglob("*") if path.is_symlink() or path.stat().st_mode & 0o6000]


@pytest.mark.parametrize("name", [f"config-{RELEASE}", "config", ".config", "m/config"])
def test_a_configuration_that_is_a_link_to_elsewhere_is_not_read_and_named(
    secret: Path, tmp_path: Path, name: str
) -> None:
    top = tmp_path / "given"
    top.mkdir()
    (top / "bzImage").write_bytes(image(None))
    modules(top / "m", "virtio_blk")
    (top / name).symlink_to(secret)
    notes = Notes()
    found = fetched(f"{top}/bzImage:{top}/m", tmp_path, notes)
    assert found.config is None and SECRET not in "".join(notes.said) and SECRET.encode() not in given_to_guests(found)
    assert any(
        f"{top / name}: left out: a link to {secret}, which does not lie with the kernel" in said for said in notes.said
    ) or (name == "m/config" and any("config (a link to" in said for said in notes.said))
    # A link named like a configuration may lead to anything, even in the same folder.
    (top / "notes.txt").write_text(SECRET)
    (top / name).unlink()
    (top / name).symlink_to(os.path.relpath(top / "notes.txt", (top / name).parent))
    assert fetched(f"{top}/bzImage:{top}/m", tmp_path, again := Notes()).config is None and SECRET not in "".join(
        again.said
    )


def test_a_configuration_behind_the_links_of_a_distribution_is_read(tmp_path: Path) -> None:
    """In openSUSE's /boot, both are links to files next to the modules."""
    own, boot = tmp_path / f"usr/lib/modules/{RELEASE}", tmp_path / "boot"
    modules(own, "virtio_blk")
    boot.mkdir()
    (own / "vmlinuz").write_bytes(image(None))
    (own / "config").write_text(config(VIRTIO_BLK="m"))
    for name in ("vmlinuz", "config"):
        (boot / f"{name}-{RELEASE}").symlink_to(f"../usr/lib/modules/{RELEASE}/{name}")
    found = fetched(f"{boot}/vmlinuz-{RELEASE}:{own}", tmp_path)
    assert found.config is not None and found.config.read_text() == config(VIRTIO_BLK="m")


def test_what_a_folder_of_modules_holds_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "bzImage").write_bytes(NEEDS_MODULE)
    folder = modules(tmp_path / "m", "virtio_blk")
    spec = f"{tmp_path}/bzImage:{folder}"
    os.truncate(folder / "kernel/virtio_blk.ko", 1 << 40)  # a sparse file
    with pytest.raises(
        UsageError, match=r"m: expected the modules of one kernel \(lib/modules/RELEASE\), found files of 1T"
    ):
        fetched(spec, tmp_path)
    (folder / "kernel/virtio_blk.ko").unlink()
    # Each alone is within the limit of a module; all together are not.
    monkeypatch.setattr(module_tree, "_MOST_IN_ALL_BYTES", 8 << 20)
    for number in range(4):
        (folder / f"kernel/m{number}.ko.gz").write_bytes(gzip.compress(module() + bytes(3 << 20)))
    with pytest.raises(UsageError, match=r"m2\.ko\.gz: expected at most .* when it is unpacked"):
        module_tree.copy_modules(folder, tmp_path / "copied")
    monkeypatch.setattr(module_tree, "MOST_EARLY_BYTES", 1 << 20)
    with pytest.raises(
        UsageError,
        match=r"m0\.ko\.gz: expected at most 1M when it is unpacked, got more: of modules that reach the root",
    ):
        module_tree.unpack_modules(folder, ["kernel/m0.ko.gz"], tmp_path / "early")


def test_folders_without_end_are_not_walked_to_their_end(tmp_path: Path) -> None:
    folder = modules(tmp_path / "m", "virtio_blk")
    at = os.open(folder, os.O_RDONLY)
    try:
        for _ in range(200):
            os.mkdir("d", dir_fd=at)
            below = os.open("d", os.O_RDONLY, dir_fd=at)
            os.close(at)
            at = below
    finally:
        os.close(at)
    tree = module_tree.survey_modules(folder)
    assert [path.name for path in tree.files] == ["virtio_blk.ko"]
    (said,) = tree.left_out
    assert said.endswith("(more than 32 folders below each other)")
    subprocess.run(["rm", "-rf", folder], check=True)
    with pytest.raises(UsageError, match=r"expected names of at most 255 bytes and 32 folders"):
        debs.unpack(deb(tmp_path, "deep.deb", {f"lib/modules/{RELEASE}/{'d/' * 40}x": b""}), tmp_path / "tree")


def test_a_module_that_unpacks_to_very_much_costs_no_memory(tmp_path: Path) -> None:
    path = tmp_path / "bomb.ko.gz"
    with gzip.open(path, "wb", compresslevel=1) as file:
        for _ in range(64):
            file.write(bytes(1 << 20))
        file.write(b"\0vermagic=" + RELEASE.encode() + b" SMP \0")
    tracemalloc.start()
    try:
        assert module_tree.read_vermagics({"bomb": path}, ()) == {f"{RELEASE} SMP": "bomb"}
        assert tracemalloc.get_traced_memory()[1] < 16 << 20
    finally:
        tracemalloc.stop()
    path.write_bytes(gzip.compress(b"\0vermagic=" + b"x" * (3 << 20)))
    with pytest.raises(UsageError, match=r"bomb\.ko\.gz: expected a kernel module"):
        module_tree.read_vermagics({"bomb": path}, ())


def test_a_package_with_holes_pipes_or_names_that_clash_is_no_traceback(tmp_path: Path) -> None:
    top = tmp_path / "of-x.deb"
    package = deb(tmp_path, "x.deb", {f"lib/modules/{RELEASE}/a.ko": module()})
    os.mkfifo(top / f"lib/modules/{RELEASE}/pipe.ko")
    subprocess.run(["dpkg-deb", "-b", "--root-owner-group", "-Znone", top, package], check=True, capture_output=True)
    assert debs.unpack(package, tmp_path / "tree") == (f"lib/modules/{RELEASE}/pipe.ko (a device or a pipe)",)
    for number, name in enumerate((f"lib/modules/{RELEASE}", f"lib/modules/{RELEASE}/a.ko/b.ko")):
        clash = deb(tmp_path, f"clash{number}.deb", {name: b"x"})
        with pytest.raises(UsageError, match=r"clash.\.deb: expected a Debian package with files of a kernel"):
            debs.unpack(clash, tmp_path / "tree")
