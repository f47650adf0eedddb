"""Configurations, Kconfig files, the table of ablations, and the output of make."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from testbed.errors import BuildError
from testbed.scenarios.catalogue import SCENARIOS
from testbed.store.kernels import compiler, config_fragments, config_needs, kconfig, make_args, make_output, table
from testbed.store.kernels.ablations import ABLATIONS, apply_ablation
from testbed.store.kernels.compiler import Compiler
from testbed.store.kernels.config_fragments import LostOption, Option

KCONFIG = Path(__file__).parents[4] / "images/kconfig"
FILES = {
    "Kconfig": 'mainmenu "Linux"\nsource "arch/$(SRCARCH)/Kconfig"\nsource "lib/Kconfig"\n',
    "arch/x86/Kconfig": """\
config X86
    def_bool y
    select HELPER if NET

choice
    prompt "Timer"
    default HZ_250

config HZ_250
    bool "250"

config HZ_1000
    bool "1000"
endchoice
""",
    "lib/Kconfig": """\
config HELPER
    bool

menu "Networking"
    depends on NET || \\
    NETLESS

config BRIDGE
    tristate "Bridge"
    depends on INET && (STP = y || !SMALL)
    help
      config NOT_ONE
      depends on nothing

if DEBUG

config DEEP
    bool "Deep" if EXPERT
    depends on $(cc-option,-fdeep) # asks the compiler

endif
endmenu

menu "Frontends"
    visible if !AUTOMATIC

config FRONTEND
    tristate 'A "front" # end' if EXPERT || DEBUG

endmenu
""",
}
KNOWN = kconfig.read_kconfig(FILES.get)


def config(**values: str) -> dict[str, Option]:
    return {name: Option(value=value, where="") for name, value in values.items()}


def why(name: str, wanted: str = "y", **values: str) -> str:
    return kconfig.explain(
        LostOption(name=name, wanted=Option(value=wanted, where=""), got="n"), KNOWN, config(**values)
    )


def test_kconfig_files_are_read_with_what_is_around_their_options() -> None:
    assert KNOWN.definitions.keys() == {"X86", "HZ_250", "HZ_1000", "HELPER", "BRIDGE", "DEEP", "FRONTEND"}
    assert KNOWN.definitions["DEEP"][0].conditions == ("NET || NETLESS", "DEBUG")


def test_the_option_that_blocks_is_named() -> None:
    assert why("BRIDGE", NET="y", STP="y") == "it depends on INET, which is n (lib/Kconfig:8)"
    assert why("BRIDGE", INET="y", STP="y") == "it depends on NET || NETLESS (lib/Kconfig:8)"
    assert why("BRIDGE", NETLESS="y", INET="m", SMALL="y") == "it depends on (STP = y || !SMALL) (lib/Kconfig:8)"
    assert why("DEEP", NET="y", DEBUG="y") == "it depends on EXPERT, which is n (lib/Kconfig:17)"
    assert why("HZ_1000", HZ_250="y").startswith("it is one of a choice")
    assert why("HELPER") == "it has no prompt (lib/Kconfig:1); it is selected by X86"
    assert why("HELPER", "n", X86="y", NET="y") == "it is selected by X86"
    assert why("HELPER", "n").startswith("it has no prompt, so that it cannot be turned off")
    assert why("HZ_250", "n").startswith("it is one of a choice, and no other one is chosen")
    assert why("NOWHERE") == "this source has no such option"


def test_what_was_chosen_is_told_from_what_was_computed_and_from_what_a_source_does_not_have() -> None:
    def chosen(name: str, wanted: str, got: str, **asked: str) -> bool:
        lost = LostOption(name=name, wanted=Option(value=wanted, where=""), got=got)
        return kconfig.chosen_losses((lost,), KNOWN, config(**asked), config(X86="y", NET="y")) == (lost,)

    assert chosen("BRIDGE", "y", "n") and chosen("BRIDGE", "m", "n") and chosen("HZ_250", "n", "y")
    assert chosen("FRONTEND", "y", "n", DEBUG="y") and not chosen("FRONTEND", "y", "n", DEBUG="y", AUTOMATIC="y")
    assert chosen("DEEP", "y", "n", EXPERT="y") and not chosen("DEEP", "y", "n")  # without EXPERT it is its default
    assert not chosen("HELPER", "y", "n") and not chosen("NOWHERE", "y", "n")
    # Other options need these.
    assert not chosen("BRIDGE", "m", "y") and not chosen("HELPER", "n", "y")
    lost = [LostOption(name=name, wanted=Option(value="y", where=""), got="n") for name in ("HELPER", "NOWHERE")]
    assert kconfig.unknown_options(lost, KNOWN) == ("NOWHERE",)


def test_a_fragments_last_line_counts_and_what_is_lost_is_told() -> None:
    wanted = config_fragments.merge(
        config_fragments.parse("CONFIG_A=y\n# why\n# CONFIG_B is not set\nCONFIG_N=4\n", "one"),
        config_fragments.parse("CONFIG_A=m\n", "two"),
    )
    assert config_fragments.format_config(wanted) == "CONFIG_A=m\n# CONFIG_B is not set\nCONFIG_N=4\n"
    lost = config_fragments.lost_options(wanted, config_fragments.parse("CONFIG_A=m\nCONFIG_B=y\n", ".config"))
    assert [(option.name, option.wanted.where, option.got) for option in lost] == [
        ("B", "one:3", "y"),
        ("N", "one:4", "n"),
    ]


def test_a_line_that_is_no_option_is_an_error_with_its_place() -> None:
    with pytest.raises(BuildError, match=r"mine:2: expected CONFIG_NAME=VALUE.*got 'B=y'"):
        config_fragments.parse("CONFIG_A=y\nB=y\n", "mine")


def test_the_base_fragment_has_what_guests_and_scenarios_need() -> None:
    base = config_fragments.parse((KCONFIG / "base.config").read_text(), "base")
    # Other options select this one, so that the fragment does not name it.
    selected = config(EVENT_TRACING="y")
    assert config_needs.unmet_requirements((*config_needs.GUEST, *config_needs.EVERY_SCENARIO), base) == ()
    flavours = [config_fragments.parse(path.read_text(), path.name) for path in KCONFIG.glob("*.config")]
    assert (
        config_needs.unmet_requirements(config_needs.SOME_SCENARIOS, config_fragments.merge(*flavours, selected)) == ()
    )


def test_what_is_needed_and_lacking_is_named_with_who_needs_it() -> None:
    assert config_needs.unmet_requirements(
        config_needs.EVERY_SCENARIO, config(MEMCG="y", BLK_CGROUP="m", CGROUP_WRITEBACK="y", BLK_DEV_LOOP="m")
    ) == ("CONFIG_BLK_CGROUP=y: every scenario needs it",)
    mentioned = {
        word.rstrip(",") for need in config_needs.SOME_SCENARIOS for word in need.why.split() if word in SCENARIOS
    }
    assert mentioned >= {
        "io-max",
        "io-weight",
        "lock-order",
        "destroy-race",
        "no-worker",
        "io-latency",
        "listener",
        "engine",
    }


def test_a_key_holds_all_that_makes_a_kernel() -> None:
    gcc, clang = Compiler(version="gcc 12", through_ccache=False), make_args.parse(["LLVM=1"])
    keys = [
        compiler.build_key(*arguments)
        for arguments in (
            ("source", {"a.c": "1"}, "CONFIG_A=y", gcc),
            ("other", {"a.c": "1"}, "CONFIG_A=y", gcc),
            ("source", {"a.c": "2"}, "CONFIG_A=y", gcc),
            ("source", {"a.c": "1"}, "", gcc),
            ("source", {"a.c": "1"}, "CONFIG_A=y", replace(gcc, version="gcc 13")),
            ("source", {"a.c": "1"}, "CONFIG_A=y", replace(gcc, args=clang)),
        )
    ]
    assert len(set(keys)) == len(keys)
    # ccache does not change the build, and options that are not set do not change earlier keys.
    assert (
        compiler.build_key("source", {"a.c": "1"}, "CONFIG_A=y", replace(gcc, through_ccache=True))
        == keys[0]
        == "1c7d78c3d647a55b"
    )


def test_progress_counts_objects_and_tells_the_time_that_is_left() -> None:
    assert make_output.compiled_object("  CC      drivers/block/loop.o") == "drivers/block/loop.o"
    assert make_output.compiled_object("  CC [M]  fs/xfs/xfs.o") == "fs/xfs/xfs.o"
    assert make_output.compiled_object("  LD      vmlinux.o") is None
    assert make_output.estimate_progress(0, 10, 1000, 5) == (0.01, "10 of about 1000 objects")
    assert make_output.estimate_progress(500, 100, 1000, 60) == (0.6, "600 of about 1000 objects, about 4 min left")
    assert make_output.estimate_progress(1000, 3, 1000, 60) == (None, "3 objects")


def test_the_first_error_of_a_compiler_is_shown() -> None:
    output = (
        "warning: x\ndrivers/block/loop.c:12:3: error: unknown type\n   12 | foo\n"
        "make[3]: *** [loop.o] Error 1\nlate: error: y\n"
    )
    assert make_output.first_error(output).splitlines()[0] == "drivers/block/loop.c:12:3: error: unknown type"
    assert "unknown type" in make_output.first_error(output) and make_output.first_error("") == "make gave no reason"


def test_a_failure_of_the_machine_is_told_from_one_of_the_source_that_is_quoted() -> None:
    killed = "gcc: fatal error: Killed signal terminated program cc1"
    assert make_output.machine_error(f"a.c:1: warning: x\n{killed}\ncompilation terminated.\n") == killed
    assert (
        make_output.machine_error(
            'a.c:12:3: error: unknown type\n   12 | say("No space left on device");\n      | ^~~\n'
        )
        is None
    )


def test_the_series_is_seen_in_the_source() -> None:
    assert table.has_series("cmd->memcg_css = NULL;") and table.has_series("css_put(cmd->mem_css);")
    assert not table.has_series("cmd->css = NULL;")


def only(text: str) -> Callable[[str], str | None]:
    return lambda path: text


def test_each_ablation_changes_something_and_is_of_a_patch() -> None:
    assert {patch for ablation in ABLATIONS.values() for patch in ablation.patches} == {1, 2, 3, 4}
    for ablation in ABLATIONS.values():
        assert all(edit.find != edit.put for way in ablation.ways for edit in way)


def test_an_edit_whose_text_is_there_twice_is_refused() -> None:
    edit = ABLATIONS["idle-at-once"].ways[0][0]
    assert apply_ablation(ABLATIONS["idle-at-once"], only(edit.find)) == {edit.file: edit.put}
    with pytest.raises(BuildError, match="found 2 times"):
        apply_ablation(ABLATIONS["idle-at-once"], only(edit.find * 2))
    with pytest.raises(BuildError, match="there is no such file"):
        apply_ablation(ABLATIONS["idle-at-once"], lambda path: None)
