"""Fixtures of the tests of kernels."""

from __future__ import annotations

from pathlib import Path

import pytest

from testbed.host import process
from testbed.store.kernels import kernel_files
from tests.support.kernel_images import config, image


@pytest.fixture
def given(tmp_path: Path) -> Path:
    """A folder with a kernel that has its configuration built in, and needs no modules."""
    (tmp_path / "given").mkdir()
    (tmp_path / "given/bzImage").write_bytes(image(config()))
    return tmp_path / "given"


@pytest.fixture
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
