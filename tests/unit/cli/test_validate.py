"""`testbed validate`, and listings that need no guest."""

from __future__ import annotations

from pathlib import Path

from tests.support.command import testbed


def test_validate_prints_all_errors_of_all_files_and_exits_1(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("version: 1\nguests: {g0: {cpu: 2, memory: big}}\n")
    (tmp_path / "b.yaml").write_text("version: 3\nguests: {g0: {}}\n")
    done = testbed(tmp_path, "validate", str(tmp_path / "a.yaml"), str(tmp_path / "b.yaml"), "topologies/default.yaml")
    assert done.returncode == 1
    assert done.stdout.splitlines() == [
        f"{tmp_path}/a.yaml:2:15: guests.g0.cpu: unknown key; did you mean 'cpus'?",
        f"{tmp_path}/a.yaml:2:31: guests.g0.memory: expected a size such as 2G, got 'big'",
        f"{tmp_path}/b.yaml:1:10: version: expected 1, got 3",
    ]


def test_validate_names_unknown_kernels_and_images(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(
        "version: 1\nguests:\n  g0: {kernel: debian-0.1}\n  g1: {image: bokworm, kernel: /etc/hostname}\n"
    )
    done = testbed(tmp_path, "validate", str(tmp_path / "a.yaml"))
    assert done.returncode == 1
    first, second = done.stdout.splitlines()
    assert first.startswith(
        f"{tmp_path}/a.yaml:3:16: guests.g0.kernel: kernel 'debian-0.1': expected one of debian-5.10, "
    )
    assert second == (
        f"{tmp_path}/a.yaml:4:15: guests.g1.image: expected an image of images/, "
        "got 'bokworm'; did you mean 'bookworm'?"
    )


def test_validate_of_good_files_exits_0(tmp_path: Path) -> None:
    assert testbed(tmp_path, "validate", "topologies/default.yaml").returncode == 0


def test_kernels_and_images_are_listed_without_fetching_any(tmp_path: Path) -> None:
    kernels = testbed(tmp_path, "kernel", "list")
    assert kernels.returncode == 0
    assert "debian-5.10\tbefore\tbase\tnot fetched" in kernels.stdout
    assert "bookworm\tnot built" in testbed(tmp_path, "image", "list").stdout
