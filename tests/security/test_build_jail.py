"""Hostile sources and patches that are built: they cannot read or change the caller's files, or connect anywhere."""

import contextlib
import http.server
import os
import shutil
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from testbed.errors import BuildError, HostError, UsageError
from testbed.host import untrusted_files
from testbed.store import cache
from testbed.store.kernels import build_jail, builder, make_args, sources
from testbed.store.kernels.build_jail import BuildJail
from testbed.store.kernels.builder import BuildSpec
from testbed.store.kernels.compiler import Compiler
from testbed.store.kernels.make_args import MakeArg
from testbed.store.kernels.sources import Source
from testbed.store.kernels.table import Series
from tests.support.fake_kernel_source import PATCH, build, git, tree_of_two_commits
from tests.support.kernel_images import bzimage
from tests.unit.store.kernels.test_builder import Notes

AS_ACCOUNT = BuildJail(account=build_jail._ACCOUNT, users=False)
AS_ROOT = BuildJail(account=None, users=False)
AS_USER = BuildJail(account=None, users=True)
# Root tries all three jails; other users have only one.
WAYS = (AS_ACCOUNT, AS_ROOT, AS_USER) if os.geteuid() == 0 else (AS_USER,)
NAMES = ("account", "root", "user") if os.geteuid() == 0 else ("user",)
ways = pytest.mark.parametrize("way", WAYS, ids=NAMES)


@pytest.fixture(autouse=True)
def compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    async def found(args: tuple[MakeArg, ...] = ()) -> Compiler:
        return Compiler(version="gcc 12", through_ccache=False, args=args)

    monkeypatch.setattr(builder, "find_compiler", found)


def enclosed(monkeypatch: pytest.MonkeyPatch, way: BuildJail | None, why: str = "") -> None:
    """Let the machine allow exactly this jail, or none."""

    async def found() -> tuple[BuildJail | None, str]:
        return way, why

    monkeypatch.setattr(build_jail, "find_build_jail", found)


def evil_tree(folder: Path, script: str) -> Path:
    """Create a kernel tree whose Makefile runs a script while make reads it; its argument is the output folder."""
    tree = tree_of_two_commits(folder)
    (tree / "attack.sh").write_text(f'[ "$2" = bzImage ] || exit\n{script}')
    (tree / "Makefile").write_text(
        "ATTACK := $(shell sh ./attack.sh $(O) '$(MAKECMDGOALS)' >/dev/null 2>&1)\n" + (tree / "Makefile").read_text()
    )
    git(tree, "add", ".")
    git(tree, "commit", "-qm", "attack")
    return tree


def output(root: Path) -> Path:
    (found,) = root.glob("sources/*/out-*")
    return found


@contextmanager
def listening(folder: Path) -> Iterator[tuple[int, list[str]]]:
    """Listen on a port and on the socket `folder`/socket; yield the port and the list of what was connected to."""
    came: list[str] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            came.append("port")
            self.send_response(204)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    server = http.server.HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(folder / "socket"))
        listener.listen()
        listener.setblocking(False)
        try:
            yield server.server_port, came
        finally:
            server.shutdown()
            server.server_close()
            try:
                listener.accept()[0].close()
                came.append("socket")
            except BlockingIOError:
                pass


# Seconds that programs sleep which must be killed; the number is different in each process that runs tests.
MARK = 1_000_000 + os.getpid()


def left_asleep() -> list[Path]:
    """Return the processes that a test has left running."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):  # it has ended meanwhile, or is another user's
            if f"sleep\0{MARK}".encode() in path.read_bytes():
                found.append(path)
    return found


@ways
def test_a_makefile_reads_nothing_of_the_caller_writes_nowhere_and_reaches_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, way: BuildJail
) -> None:
    home = tmp_path / "home"
    home.mkdir()
    (home / "secret").write_text("the caller's")
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("TOKEN", "the caller's")
    enclosed(monkeypatch, way)
    with listening(home) as (port, came):
        connect = "import socket,sys; socket.socket().connect(('127.0.0.1', int(sys.argv[1])))"
        connect_here = "import socket,sys; socket.socket(socket.AF_UNIX).connect(sys.argv[1])"
        script = f"""\
        cd "$1"
        cat '{home}/secret' /etc/shadow /etc/passwd >secrets
        ls /root /home /run /sys '{home}' >folders
        env >env; cat /proc/*/environ >environ; ls /proc >processes
        for place in '{home}/planted' '{tmp_path}/cache/planted' '{tmp_path}/linux/planted' /usr/planted /etc/planted \\
            '{tmp_path}'/cache/sources/*/tree/planted '{tmp_path}'/cache/sources/*/changed.json
        do echo x >"$place"; done
        echo x >/proc/sys/kernel/core_pattern
        echo '|/bin/true' >/proc/sys/kernel/modprobe
        python3 -c "{connect}" {port} && echo connected >connected
        python3 -c "{connect_here}" '{home}/socket' && echo connected >connected
        mount -t tmpfs none /mnt && echo mounted >mounted
        mkdir -p /mnt; mknod disk b 254 0; chmod 4755 attacked; grep Cap /proc/self/status >capabilities
        (trap '' TERM HUP; setsid sleep {MARK}) & echo ran >ran
        """
        before = Path("/proc/sys/kernel/core_pattern").read_text()
        build(tmp_path / "cache", BuildSpec(source=str(evil_tree(tmp_path / "linux", script))))
    left = output(tmp_path / "cache")
    assert (left / "ran").read_text() == "ran\n" and not came
    assert not (left / "secrets").read_text() and not (left / "folders").read_text()
    assert not any("the caller's" in path.read_text(errors="replace") for path in left.iterdir() if path.is_file())
    assert not (left / "connected").exists() and not (left / "mounted").exists() and not (left / "disk").exists()
    assert set((left / "capabilities").read_text().split()) == {
        "CapInh:",
        "CapPrm:",
        "CapEff:",
        "CapBnd:",
        "CapAmb:",
        "0" * 16,
    }
    assert str(os.getpid()) not in (left / "processes").read_text().split() and not list(tmp_path.rglob("planted"))
    assert not Path("/usr/planted").exists() and Path("/proc/sys/kernel/core_pattern").read_text() == before
    # Its background process was killed as well.
    assert not left_asleep()


@ways
def test_what_a_build_leaves_leads_nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, way: BuildJail) -> None:
    """The build puts links in place of files that the testbed reads and writes there, perhaps as root."""
    enclosed(monkeypatch, way)
    (tmp_path / "mine").write_text("the caller's")
    names = ("testbed.config", "testbed-compiling", "testbed-make.log", "testbed-objects", ".config.old", "testbed-new")
    script = "\n".join(f'ln -sfn {tmp_path}/mine "$1/{name}"' for name in names)
    tree = evil_tree(tmp_path / "linux", script)
    build(tmp_path / "cache", BuildSpec(source=str(tree)), "one")
    build(tmp_path / "cache", BuildSpec(source=f"{tree}@HEAD~1"), "two")
    assert (tmp_path / "mine").read_text() == "the caller's"


@pytest.mark.parametrize("name", ["arch/x86/boot/bzImage", "System.map", "modules.builtin", ".config"])
@pytest.mark.parametrize("how", ["ln -sf '{mine}' {at}", "mkfifo {at}", "mkdir {at}", "truncate -s 9G {at}", "true"])
def test_a_result_that_is_a_link_a_pipe_or_without_end_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, how: str
) -> None:
    way = WAYS[0]
    enclosed(monkeypatch, way)
    (tmp_path / "mine").write_bytes(bzimage())
    tree = tree_of_two_commits(tmp_path / "linux")
    after = f"\trm -rf $(O)/{name}; {how.format(mine=tmp_path / 'mine', at=f'$(O)/{name}')}\n"
    goal = "bzImage" if name != ".config" else "allnoconfig"
    text = (tree / "Makefile").read_text()
    head, sep, tail = text.partition("allnoconfig:\n\tsed" if goal == "allnoconfig" else "$(O)/loop.o: drivers")
    made = head + sep + tail.replace("\n", "\n" + after, 1) if goal == "allnoconfig" else head + after + sep + tail
    (tree / "Makefile").write_text(made)
    git(tree, "commit", "-qam", "link")
    with pytest.raises(BuildError, match=r"expected (a regular file|at most)"):
        build(tmp_path / "cache", BuildSpec(source=str(tree)))
    # The next build in this folder works.
    assert build(tmp_path / "cache", BuildSpec(source=f"{tree}@HEAD~1")).series is Series.AFTER


def test_modules_of_a_build_are_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    enclosed(monkeypatch, WAYS[0])
    (tmp_path / "mine/1.0").mkdir(parents=True)
    (tmp_path / "mine/1.0/secret").write_text("the caller's")
    tree = tree_of_two_commits(tmp_path / "linux")
    more = (
        "modules:\n\ttrue\n"
        "modules_install:\n\tmkdir -p $(INSTALL_MOD_PATH)/lib\n"
        f"\tln -s {tmp_path}/mine $(INSTALL_MOD_PATH)/lib/modules\n"
    )
    (tree / "Makefile").write_text((tree / "Makefile").read_text() + more)
    git(tree, "commit", "-qam", "modules")
    (tmp_path / "mine.config").write_text("CONFIG_SOMETHING=m\n")
    with pytest.raises(BuildError, match="expected one folder of modules"):
        build(tmp_path / "cache", BuildSpec(source=str(tree), fragments=(tmp_path / "mine.config",)))


def test_where_the_machine_allows_no_jail_a_strangers_source_needs_the_callers_word(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    enclosed(monkeypatch, None, "unshare: no such luck")
    tree = evil_tree(tmp_path / "linux", 'echo ran >"$1/ran"')
    with pytest.raises(HostError, match=r"in a jail.*unshare: no such luck.*TESTBED_TRUST_SOURCES=1"):
        build(tmp_path / "cache", BuildSpec(source=str(tree)))
    assert not list(tmp_path.rglob("ran"))
    monkeypatch.setenv(build_jail.TRUST, "1")
    notes = Notes()
    built = build(tmp_path / "cache", BuildSpec(source=str(tree)), progress=notes)
    assert [said for said in notes.said if "not built in a jail" in said and "no such luck" in said]
    assert cache.read_meta(built.folder)["enclosed"] is False
    # A build in a jail reuses the folder of one that was built without.
    enclosed(monkeypatch, WAYS[0])
    again = build(tmp_path / "cache", BuildSpec(source=f"{tree}@HEAD~1"))
    assert cache.read_meta(again.folder)["enclosed"] is True


def test_debians_own_source_needs_no_word_and_a_patch_of_it_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tree = tree_of_two_commits(tmp_path / "linux")
    git(tree, "checkout", "-q", "main~1")
    enclosed(monkeypatch, None, "no such luck")

    async def prepare(*_: object) -> Source:
        folder = tmp_path / "cache/sources/debian"
        if not folder.exists():
            shutil.copytree(tree, folder / "tree")
            (folder / cache.META).write_text("{}")
        return Source(name="debian", key="k", origin="", folder=folder, signed=True)

    monkeypatch.setattr(sources, "prepare", prepare)
    assert build(tmp_path / "cache", BuildSpec(source="debian")).series is Series.BEFORE
    (tmp_path / "series.patch").write_text(PATCH)
    with pytest.raises(HostError, match=build_jail.TRUST):
        build(tmp_path / "cache", BuildSpec(source="debian", series=(tmp_path / "series.patch",)))


async def test_a_root_that_cannot_become_the_account_is_enclosed_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    give = build_jail.give_ownership

    def refused(jail: BuildJail | None, folder: Path) -> None:
        if jail == AS_ACCOUNT:
            raise HostError("no such uid here")
        give(jail, folder)

    monkeypatch.setattr(build_jail, "give_ownership", refused)
    assert await build_jail.find_build_jail() == (AS_ROOT if os.geteuid() == 0 else AS_USER, "")


async def test_the_reason_why_there_is_no_jail_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    way, _ = await build_jail.find_build_jail()
    assert way in WAYS
    monkeypatch.setattr(build_jail, "_prefix", lambda *_: ("sh", "-c", "echo no such luck >&2; exit 1"))
    assert await build_jail.find_build_jail() == (None, "no such luck")


def named(folder: Path, name: str, text: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(text)
    (folder / name).chmod(0o755)
    return folder / name


@ways
async def test_a_compiler_outside_of_the_system_is_seen_where_it_is_named_and_its_owners_home_is_not(
    tmp_path: Path, way: BuildJail
) -> None:
    home = tmp_path / "home"
    own = named(home / "bin", "mycc", f"#!/bin/sh\ncat {home}/lib/text {home}/secret\n")
    lone = named(home, "lone", "#!/bin/sh\necho lone\n")
    (home / "lib").mkdir()
    (home / "lib/text").write_text("mine")
    (home / "secret").write_text("the caller's")
    seen = build_jail.tool_folders((str(own), str(lone), "make"))
    done = await build_jail.run_in_jail(way, [own], folder=Path("/"), mounts=build_jail.Mounts(read=seen), check=False)
    assert done.stdout == "mine" and done.status == 1
    assert (
        await build_jail.run_in_jail(way, [lone], folder=Path("/"), mounts=build_jail.Mounts(read=seen))
    ).stdout == "lone\n"
    assert build_jail.tool_folders(("make", "nowhere")) == ()


def test_make_sees_the_compiler_that_the_user_names(tmp_path: Path) -> None:
    own = named(tmp_path / "clang/bin", "clang", "#!/bin/sh\ncat ../text\n")
    tree = tree_of_two_commits(tmp_path / "linux")
    (tree / "Makefile").write_text(
        (tree / "Makefile").read_text().replace("\tcp $< $@\n", "\tcp $< $@; test -x $(CC)\n", 1)
    )
    git(tree, "commit", "-qam", "asks for it")
    assert build(tmp_path / "cache", BuildSpec(source=str(tree), make_args=make_args.parse([f"CC={own}"])))
    with pytest.raises(BuildError):
        build(
            tmp_path / "cache",
            BuildSpec(source=str(tree), make_args=make_args.parse(["CFLAGS_KERNEL=-O1", f"CC={tmp_path}/other"])),
        )


async def test_more_paths_are_given_by_the_users_word(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "more").write_text("more")
    monkeypatch.setenv(build_jail.MORE_PATHS, str(tmp_path / "more"))
    assert (await build_jail.run_in_jail(WAYS[0], ["cat", tmp_path / "more"], folder=Path("/"))).stdout == "more"
    monkeypatch.setenv(build_jail.MORE_PATHS, "more")
    with pytest.raises(UsageError, match="TESTBED_BUILD_PATHS: expected absolute paths"):
        await build_jail.run_in_jail(WAYS[0], ["true"], folder=Path("/"))


def test_a_kconfig_file_that_names_files_of_this_machine_gets_none(tmp_path: Path) -> None:
    (tmp_path / "tree").mkdir()
    (tmp_path / "secret").write_text("the caller's")
    (tmp_path / "tree/link").symlink_to(tmp_path)
    (tmp_path / "tree/Kconfig").write_text("mine")
    os.mkfifo(tmp_path / "tree/pipe")
    for name in ("../secret", str(tmp_path / "secret"), "link/secret", "pipe", "", ".", "a\0b", "nowhere", "x" * 300):
        with pytest.raises(BuildError):
            untrusted_files.text_of_regular(tmp_path / "tree", name, 100)
    assert untrusted_files.text_of_regular(tmp_path / "tree", "Kconfig", 100) == "mine"
    with pytest.raises(BuildError, match="expected at most 3 bytes, got 4"):
        untrusted_files.text_of_regular(tmp_path / "tree", "Kconfig", 3)
