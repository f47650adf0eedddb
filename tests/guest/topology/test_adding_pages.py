"""The filesystem that docs/adding-a-filesystem.md adds, mounted in a guest."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tests.support import docs_pages

PAGE = "adding-a-filesystem"


def test_the_filesystem_that_the_docs_add_is_mounted_in_a_guest(tmp_path: Path) -> None:
    docs_pages.apply(PAGE, tmp_path)
    (tmp_path / "my.yaml").write_text(docs_pages.example(PAGE, "yaml"))
    env = os.environ | {"PYTHONPATH": str(tmp_path), "PYTHONDONTWRITEBYTECODE": "1"}

    def testbed(*words: str) -> str:
        argv = [sys.executable, "-m", "testbed", *words]
        return subprocess.run(argv, cwd=tmp_path, env=env, check=True, stdout=subprocess.PIPE, text=True).stdout

    name = f"ext2-{os.getpid()}"
    testbed("up", "my.yaml", "--name", name)
    try:
        assert " /mnt/data ext2 " in testbed("ssh", name, "--", "cat", "/proc/mounts")
    finally:
        testbed("down", name)
