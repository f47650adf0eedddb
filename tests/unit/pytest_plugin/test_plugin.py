"""The pytest plugin without guests: what it collects and refuses, and its cost for suites that do not use it."""

import os
import subprocess
import sys

import pytest

# Imported before the sessions below: they remove the modules that they import from sys.modules, but not from the
# packages that have these as attributes.
import testbed.pytest_plugin.markers  # noqa: F401 - loading is all

INI = "[pytest]\nasyncio_default_fixture_loop_scope = function\n"
MATRIX = """\
version: 1
matrix:
  axes:
    disk: [virtio-blk, nvme]
    filesystem: [ext4, xfs]
  exclude:
    - {disk: nvme, filesystem: xfs}
guests:
  g0:
    disks: {data: {type: "${disk}", size: 1G}}
    loops: {l0: {backing: data/disk.img, filesystem: "${filesystem}", size: 64M}}
"""


@pytest.fixture
def suite(pytester: pytest.Pytester) -> pytest.Pytester:
    pytester.makeini(INI)
    return pytester


def collected(suite: pytest.Pytester, *options: str) -> list[str]:
    done = suite.runpytest("--collect-only", "-q", *options)
    assert done.ret == pytest.ExitCode.OK, done.outlines
    return [line.partition("::")[2] for line in done.outlines if "::" in line]


def test_test_ids_have_the_kernel_and_the_point(suite: pytest.Pytester) -> None:
    suite.makepyfile(
        test_it="""
        import pytest

        @pytest.mark.testbed_kernels("debian-5.10", "debian-6.1")
        async def test_x(vm): ...

        async def test_y(cgroup): ...

        async def test_z(compare): ...

        def test_none(): ...
        """
    )
    (suite.path / "test_it.yaml").write_text(MATRIX)
    points = ("virtio-blk-ext4", "virtio-blk-xfs", "nvme-ext4")
    assert sorted(collected(suite)) == sorted(
        [
            *(f"test_x[{kernel}-{point}]" for kernel in ("debian-5.10", "debian-6.1") for point in points),
            *(f"test_y[debian-6.1-{point}]" for point in points),
            *(f"test_z[{point}]" for point in points),
            "test_none",
        ]
    )
    assert collected(suite, "--testbed-kernel", "debian-6.12", "-k", "test_x and nvme") == [
        "test_x[debian-6.12-nvme-ext4]"
    ]
    assert len(collected(suite, "--testbed-kernel=debian-5.10", "--testbed-kernel=debian-6.12", "-k", "test_y")) == 6


def test_ids_of_similar_points_are_their_whole_names(suite: pytest.Pytester) -> None:
    suite.makepyfile(test_it="async def test_x(vm): ...")
    (suite.path / "topology.yaml").write_text(
        "version: 1\nmatrix: {axes: {cpus: [1-2, 1], queues: [1, 2-1]}}\n"
        "guests: {g0: {environment: {X: '${cpus}${queues}'}}}\n"
    )
    assert "test_x[debian-6.1-cpus=1-2,queues=1]" in collected(suite)


def test_sources_of_a_topology_by_precedence(suite: pytest.Pytester) -> None:
    def guests(name: str) -> str:
        return f"version: 1\nguests: {{{name}: {{}}}}\n"

    suite.makepyfile(
        test_named="""
        import pytest

        def test_beside(topology): assert list(topology.guests) == ["beside"]

        @pytest.mark.testbed_topology("marked.yaml")
        def test_path(topology): assert list(topology.guests) == ["marked"]

        @pytest.mark.testbed_topology("version: 1\\nguests: {text: {}}\\n")
        def test_text(topology): assert list(topology.guests) == ["text"]

        @pytest.mark.testbed_topology({"guests": {"mapping": {}}})
        def test_mapping(topology): assert list(topology.guests) == ["mapping"]

        @pytest.mark.testbed_topology(cpus=1, disks={"data": {"type": "nvme", "size": "1G"}})
        def test_keys(topology): assert list(topology.guests["g0"].disks) == ["data"]
        """,
        test_other="def test_folder(topology): assert list(topology.guests) == ['folder']",
    )
    for file, name in (("test_named", "beside"), ("topology", "folder"), ("marked", "marked"), ("option", "option")):
        (suite.path / f"{file}.yaml").write_text(guests(name))
    suite.runpytest("-q").assert_outcomes(passed=6)
    # A marker belongs to the test; the option replaces files.
    suite.runpytest("-q", "--testbed-topology", "option.yaml").assert_outcomes(passed=4, failed=2)


def test_the_default_topology_is_a_guest_without_disks(suite: pytest.Pytester) -> None:
    suite.makepyfile(
        "def test_plain(topology): assert [*topology.guests] == ['g0'] and not topology.guests['g0'].disks"
    )
    suite.runpytest("-q").assert_outcomes(passed=1)


def test_a_marker_can_select_a_point(suite: pytest.Pytester) -> None:
    (suite.path / "m.yaml").write_text(MATRIX)
    suite.makepyfile(
        """
        import pytest
        @pytest.mark.testbed_topology("m.yaml", point="disk=nvme,filesystem=ext4")
        def test_one(topology): assert topology.guests["g0"].disks["data"].type == "nvme"
        """
    )
    suite.runpytest("-q").assert_outcomes(passed=1)


@pytest.mark.parametrize(
    ("marker", "said"),
    [
        ("testbed_kernels()", "testbed_kernels: expected names of kernels, or base= and patched=, got nothing"),
        ("testbed_kernels('debian-9')", "testbed_kernels: kernel 'debian-9': expected one of debian-5.10"),
        (
            "testbed_kernels(left='debian-6.1')",
            "testbed_kernels: expected names of kernels, or base= and patched=, got left='debian-6.1'",
        ),
        ("testbed_kernels('debian-6.1', 'debian-6.1')", "testbed_kernels: expected each kernel once"),
        ("testbed_kernels(base='nowhere')", "testbed_kernels: kernel 'nowhere'"),
        ("testbed_topology()", "testbed_topology: expected a path, YAML, a mapping"),
        ("testbed_topology(7)", "testbed_topology: expected a path, YAML, a mapping"),
        ("testbed_topology('nowhere.yaml')", "nowhere.yaml:1:1: cannot be read"),
        ("testbed_topology({'guests': {'g0': {'diks': {}}}})", "guests.g0.diks: unknown key"),
        ("testbed_topology(disks={'data': {'type': 'floppy'}})", "guests.g0.disks.data"),
        (
            "testbed_topology('m.yaml', point='disk=ram')",
            "testbed_topology: expected a point of the matrix, such as disk=virtio-blk",
        ),
        ("testbed_topology('m.yaml', point=3)", "testbed_topology: point: expected a name"),
        ("testbed_requires()", "testbed_requires: expected module=, config=, tool=, qemu=, got nothing"),
        ("testbed_requires('fio')", "testbed_requires: expected module=, config=, tool=, qemu=, got 'fio'"),
        ("testbed_requires(tool=3)", "testbed_requires: tool: expected a name or several, got 3"),
        ("testbed_requires(tols='fio')", "got tols"),
        ("testbed_timeout()", "testbed_timeout: expected a number of seconds, got ()"),
        ("testbed_timeout('5s')", "testbed_timeout: expected a number of seconds, got ('5s',)"),
        ("testbed_timeout(0)", "testbed_timeout: expected a number of seconds"),
    ],
)
def test_errors_of_markers_name_the_test(suite: pytest.Pytester, marker: str, said: str) -> None:
    (suite.path / "m.yaml").write_text(MATRIX)
    suite.makepyfile(test_wrong=f"import pytest\n\n@pytest.mark.{marker}\nasync def test_x(vm): ...\n")
    done = suite.runpytest("-q")
    assert done.ret == pytest.ExitCode.INTERRUPTED
    text = done.stdout.str()
    assert (
        said in text and "test_wrong.py:3: test_x: " in text and "Traceback" not in text and "site-packages" not in text
    )


@pytest.mark.slow
def test_missing_tools_are_reported_with_their_packages(suite: pytest.Pytester) -> None:
    suite.makepyfile("def test_x(testbed): ...")
    words = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    done = subprocess.run(
        words, cwd=suite.path, capture_output=True, text=True, timeout=60, env={**os.environ, "PATH": "/nowhere"}
    )
    assert done.returncode == 1 and "1 error" in done.stdout
    assert "testbed: this machine lacks " in done.stdout and "; as root: apt-get install " in done.stdout, done.stdout
    assert "qemu-system-x86_64" in done.stdout
    assert "During handling" not in done.stdout and "Traceback" not in done.stdout


def test_a_timeout_is_for_coroutines(suite: pytest.Pytester) -> None:
    suite.makepyfile("import pytest\n@pytest.mark.testbed_timeout(5)\ndef test_x(): ...\n")
    suite.runpytest("-q").stdout.fnmatch_lines("*testbed_timeout: expected an `async def` test*")


@pytest.mark.parametrize(
    ("option", "said"),
    [
        ("--testbed-kernel=debian-9", "--testbed-kernel: kernel 'debian-9': expected one of"),
        ("--testbed-base=debian-9", "--testbed-base: kernel 'debian-9': expected one of"),
        (
            "--testbed-artifacts=/dev/null",
            "--testbed-artifacts /dev/null: expected a folder, got /dev/null: File exists",
        ),
        ("--testbed-topology=nowhere.yaml", "--testbed-topology: nowhere.yaml:1:1: cannot be read"),
    ],
)
def test_a_wrong_option_is_a_usage_error(suite: pytest.Pytester, option: str, said: str) -> None:
    suite.makepyfile("def test_x(): ...")
    done = suite.runpytest(option)
    assert (
        done.ret == pytest.ExitCode.USAGE_ERROR and said in done.stderr.str() and "Traceback" not in done.stderr.str()
    )


def test_a_suite_can_override_the_topology_fixture(suite: pytest.Pytester) -> None:
    (suite.path / "topology.yaml").write_text("this: is no topology, and nobody reads it\n")
    suite.makepyfile(
        """
        import pytest
        @pytest.fixture
        def topology(): return {"guests": {"g0": {}}}
        async def test_x(vm): ...
        """
    )
    assert collected(suite) == ["test_x[debian-6.1]"]


def test_pytest_lists_markers_and_options(suite: pytest.Pytester) -> None:
    markers, options = suite.runpytest("--markers").stdout.str(), suite.runpytest("--help").stdout.str()
    for name in ("topology", "kernels", "requires", "timeout"):
        assert f"testbed_{name}(" in markers
    for name in ("kernel", "base", "patched", "topology", "keep", "cold", "artifacts"):
        assert f"--testbed-{name}" in options


@pytest.mark.parametrize("mode", ["strict", "auto"])
def test_a_timeout_names_the_line_where_the_test_waits(suite: pytest.Pytester, mode: str) -> None:
    suite.makepyfile(
        """
        import asyncio
        import pytest
        @pytest.mark.asyncio
        @pytest.mark.testbed_timeout(0.2)
        async def test_slow():
            await asyncio.sleep(600)
        class TestIt:
            @pytest.mark.asyncio(loop_scope="class")
            @pytest.mark.testbed_timeout(100)
            async def test_quick(self):
                pytest.skip("that is all right")
        """
    )
    done = suite.runpytest("-o", f"asyncio_mode={mode}")
    done.assert_outcomes(failed=1, skipped=1)
    done.stdout.fnmatch_lines("*expected an end within 0.2 s, got none; it was at *: await asyncio.sleep(600)")


def test_an_unused_plugin_imports_nothing(suite: pytest.Pytester) -> None:
    suite.makepyfile(
        """
        import sys
        def test_nothing():
            loaded = {name.split(".")[0] for name in sys.modules}
            assert not loaded & {"asyncssh", "pydantic", "qemu", "yaml", "filelock", "cryptography"}, sorted(loaded)
            assert {name for name in sys.modules if name.startswith("testbed")} == {
                "testbed", "testbed.pytest_plugin", "testbed.pytest_plugin.fixtures", "testbed.pytest_plugin.session"
            }
        """
    )
    words = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:hypothesispytest"]
    done = subprocess.run(words, cwd=suite.path, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout


def test_last_failed_tests_are_found_again(suite: pytest.Pytester) -> None:
    (suite.path / "topology.yaml").write_text(MATRIX)
    suite.makepyfile("def test_x(topology): assert topology.guests['g0'].disks['data'].type == 'nvme'")
    suite.runpytest("-q").assert_outcomes(passed=1, failed=2)
    suite.runpytest("-q", "--lf").assert_outcomes(failed=2)


def test_all_wrong_markers_of_a_test_are_reported(suite: pytest.Pytester) -> None:
    markers = (
        "testbed_kernels('debian-9', base='debian-8')",
        "testbed_requires(tols='fio', tool=3)",
        "testbed_timeout(0)",
        "testbed_topology(7)",
    )
    suite.makepyfile(
        test_wrong="import pytest\n\n"
        + "".join(f"@pytest.mark.{one}\n" for one in markers)
        + "async def test_x(vm): ...\n"
    )
    text = suite.runpytest("-q").stdout.str()
    for said in (
        "kernel 'debian-9'",
        "kernel 'debian-8'",
        "got tols",
        "tool: expected a name",
        "testbed_timeout: expected",
        "testbed_topology: e",
    ):
        assert said in text
