"""The uses of Python's `re`, whose time may grow faster than the text: by module, the constants or functions, and what
bounds them.

All other code uses RE2, or no patterns.
"""

from __future__ import annotations

_OF_USER = "the command line's, or a name that the caller chose"
_OF_MACHINE = "this machine's kernel, its package manager, or our own files"

# Text of the caller and of this machine, which nobody else chooses.
OURS: dict[str, tuple[str, str]] = {
    "host/resources": ("_AVAILABLE _PAGE_CACHE _PAGE_CACHE_TOTAL hierarchies", _OF_MACHINE),
    "api/supervised_guest": ("start_supervised", _OF_USER),
    "cli/option_values": ("_AGE", _OF_USER),
    "report/inventory": ("_group", _OF_USER),
    "store/kernels/make_args": ("_FLAGS _PROGRAM _TEXT _EXPANDED _check _TAKEN", _OF_USER),
    "store/kernels/table": ("_NAME unique_name _CHARGES_ISSUER", _OF_USER),
    "qemu/jail_probe": ("_CAPABILITIES", _OF_MACHINE),
    "pytest_plugin/guests": ("_new_folder", _OF_USER),
    "bugs/repro": ("distinct_names", _OF_USER),
    "guest/session": ("_NAME,_LOCK", _OF_MACHINE),
    "store/apt": ("PrivateApt _names", "an index that Debian has signed"),
    "report/runs": ("_NAME", _OF_MACHINE),
    "store/snapshot_files": ("_NAME", _OF_USER),
    "topology/trust": ("_HASH _split", _OF_USER),
    "vms/launcher": ("_NAME", _OF_USER),
}

# Used in a loop over a whole text.
IN_LOOPS_FULLMATCH = {"topology/yaml_reader:_YAML_1_1", "bugs/script_files:_LANGUAGES"}
_ANCHORED = "asked for the whole of a text or its beginning; one way to match"
_FILE_NAME = "a file's name, of at most 255 bytes"
_CUT = "lines are cut to 4,096 characters"

# Text of guests, and of others' files and sources: tests/unit/test_regex.py attacks each constant pattern; this says
# what bounds composed patterns.
STRANGERS: dict[str, tuple[str, str]] = {
    "pytest_plugin/requirements": ("_VERSION _numbers", "a name that the caller chose, at the begin of a line"),
    "bugs/script_files": ("_LANGUAGES _USES _SETTERS _BARE _SETS _COUNTED script _unmade _set", _CUT),
    "store/kernels/config_fragments": ("_SET _UNSET", _ANCHORED),
    "store/kernels/kconfig": ("_SOURCE _TEXT _COMMENT _with_value", "statements have at most 20,000 characters"),
    "store/kernels/kconfig_conditions": ("_TOKEN", "statements have at most 20,000 characters"),
    "store/kernels/mailbox": (
        "_MESSAGE _MADE_BY_GIT _DIFF _BRACKETS parse_version parse_numbers _tag parse_messages _newer",
        "subjects are cut to 1,000 characters; of a mailbox lines",
    ),
    "store/kernels/patches": ("_GIT_NAMES _MOVED _NAMES _HUNK parse_quilt_series _MODE _FAILED", "lines"),
    "store/kernels/make_output": ("_COMPILED _ERROR _QUOTED", "lines"),
    "bugs/bundle_rules": ("_NAME _OF_KERNEL", _ANCHORED),
    "text": ("_CONTROL _LONE_SURROGATES", "one character after the other"),
    "report/bugs/view": ("_seconds", _ANCHORED),
    "report/junit": ("_IMPOSSIBLE", "one character after the other"),
    "report/stack_svg": ("_PLURAL_CPUS", "one character"),
    "bugs/bundle": ("_MODULE _RELEASE", _ANCHORED),
    "store/kernels/boot_check": (
        "_TITLE _is_of",
        "the first lines of a file; a release and a banner of at most 512 bytes",
    ),
    "store/kernels/folder_scan": ("_IMAGE _COMPANION", _FILE_NAME),
    "store/kernels/kernel_image": ("find_config find_vermagic", "words of a bounded length, at most 30 of them"),
    "store/kernels/interrupted_build": ("_OF_KERNEL _RENAMED", _ANCHORED),
    "store/kernels/sources": ("_VERSION", "the first 2,000 characters"),
    "store/kernels/module_tree": ("_MODULE", _FILE_NAME),
    "store/kernels/patch_files": ("_LEFTOVER _files", _FILE_NAME),
    "guest/debug/kallsyms": ("_ADDRESS", _ANCHORED),
    "bugs/syntax_check": ("_SAID _WARNED _asked_python", "what a shell or Python of this machine says of a script"),
    "topology/schedule": ("_RANGE", _ANCHORED),
    "topology/image_files": ("image_mistakes", _FILE_NAME),
    "topology/matrix": ("_PLACEHOLDER", "one way to match"),
    "topology/yaml_reader": ("_YAML_1_1 _INTEGER _FLOAT _NO_TEXT", _ANCHORED),
    "topology/tolerant": ("_TAG", "messages of pydantic"),
    "units": ("_SIZE _DECIMAL _DURATION", _ANCHORED),
}
