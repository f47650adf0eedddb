"""Users' scripts on a real guest: how they are run, and which output counts. One guest runs all of them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from testbed.bugs import Case
from testbed.bugs.attempt import Attempt, AttemptSpec
from testbed.bugs.load import parse_mapping
from testbed.bugs.outcome import Outcome
from testbed.bugs.signature import SignatureMatcher
from testbed.guest.factory import GuestFactory
from testbed.store.kernels.kernel_files import KernelFiles

GUEST = {"guests": {"g0": {"cpus": 1, "memory": "512M"}}}
# The failure of the issue: on 6.1 the kernel kills the shell, and bash prints its job, with the word of the signature.
KILLED = """\
#!/bin/bash
cg=/sys/fs/cgroup/$SEED
mkdir $cg && echo 32M >$cg/memory.max && echo 0 >$cg/memory.swap.max || exit 125
[ -e /mnt/back ] || { mount -t tmpfs tmpfs /mnt && truncate -s 96M /mnt/back && losetup /dev/loop0 /mnt/back; } \
|| exit 125
"""
ONE_LINE = (
    KILLED + 'unshare -m bash -c "echo \\$\\$ >$cg/cgroup.procs; exec 3<>/dev/loop0; '
    'head -c 96M /dev/zero >&3 && echo BYPASSED"\n'
)
LINES = (
    KILLED
    + """\
unshare -m bash -c "
    echo \\$\\$ >$cg/cgroup.procs
    exec 3<>/dev/loop0
    head -c 96M /dev/zero >&3 &&
    echo BYPASSED"
echo refused
"""
)


def case(script: str, *signature: dict[str, Any], **more: Any) -> Case:
    said = list(signature) or [{"output": "BYPASSED"}]
    return parse_mapping(
        {"version": 1, "summary": "a test", "topology": GUEST, "script": script, "signature": said, **more}
    )


Runs = Callable[[Case], Awaitable[tuple[Outcome, SignatureMatcher, str]]]


@pytest.fixture
async def runs(factory: GuestFactory, kernel: KernelFiles, tmp_path: Path) -> AsyncIterator[Runs]:
    """Run bugs one after another in one guest, each as a try runs it in a guest of its own."""
    guest_model = case("true").guest
    number = 0
    async with factory.guest("g0", guest_model, kernel, tmp_path / "guest") as guest:

        async def one(bug: Case) -> tuple[Outcome, SignatureMatcher, str]:
            nonlocal number
            number += 1
            spec = AttemptSpec(
                factory=factory,
                bug=bug.bug,
                guest=guest_model,
                kernel=kernel,
                number=1,
                seed=number,
                timeout_s=300,
                logs=tmp_path / "guest",
            )
            attempt = Attempt(spec)
            await attempt.try_on(guest)
            return attempt.outcome(), attempt.matcher, attempt.why

        yield one


# dash has no LINENO.
READS = "cat >/dev/null\nread -r x\necho \"$0 $LINENO [$x] $SEED\"\nsudo -n -u nobody sh -c 'echo as $(id -u) $HOME'\n"
LONG = "# a long line, for dropbear takes no command of 9000 bytes\n" * 300
READ = {
    "bash": f"#!/bin/bash\n{READS}",
    "sh": f"#!/bin/sh\n{READS}",
    "env": f"#!/usr/bin/env bash\n{READS}",
    "no first line": f"\n{READS}",
    "long": f"#!/bin/bash\n{READS}{LONG}",
    "long sh": f"#!/bin/sh\n{READS}{LONG}",
    "python": "#!/usr/bin/python3\nimport sys, os\nx = sys.stdin.read()\n"
    "print(sys.argv[0], 4, f'[{x}]', os.environ['SEED'])\n"
    "os.system('sudo -u nobody id -u')\n",
    "perl": '#!/usr/bin/perl -w\n\n\nprint "$0 ", __LINE__, " [", <STDIN> // \'\', "] $ENV{SEED}\\n"; '
    "system('sudo -u nobody id -u');\n",
}
TROUBLE = {
    "a tool is missing": ("#!/bin/bash\ntrue\nperf stat\n", "crash.sh:3: perf: not found in the guest's image"),
    "and the script goes on": (
        "#!/bin/sh\nperf stat\necho BYPASSED\n",
        "crash.sh:2: perf: not found in the guest's image",
    ),
    "its interpreter is": ("#!/usr/bin/zsh\ntrue\n", "crash.sh: /usr/bin/zsh: not found in the guest's image"),
    "it cannot be executed": ("#!/bin/bash\n/etc/passwd\n", "crash.sh:2: /etc/passwd: Permission denied"),
    "sudo's is": ("sudo perf\n", "crash.sh: perf: not found in the guest's image"),
    "it is no bash": ("#!/bin/bash\ntrue\nif true; then\n", "crash.sh:4: syntax error"),
    "it is no sh": ("#!/bin/sh\ntrue\n)\n", "crash.sh:3: Syntax error"),
    "python's module is": (
        "#!/usr/bin/python3\nimport drgn\n",
        "crash.sh: ModuleNotFoundError: No module named 'drgn'",
    ),
    "it says nothing": ("exec 2>/dev/null\nperf\n", "status 127"),
}


@pytest.mark.slow
async def test_scripts_read_nothing_and_what_is_not_theirs_does_not_count(runs: Runs) -> None:
    for what, text in READ.items():
        outcome, watch, why = await runs(
            case(text, {"output": r"^/run/testbed/crash.sh 4? ?\[\] \d+$"}, **{"script-name": "crash.sh"})
        )
        assert outcome is Outcome.HIT, (what, why, watch)
    # Also with a signature that names no output, as of `repro --script` without --expect.
    for what, (text, reason) in TROUBLE.items():
        for signature in ({"status": "failure"}, {"output": "BYPASSED"}):
            outcome, watch, why = await runs(case(text, signature, **{"script-name": "crash.sh"}))
            assert (outcome, watch.hit) == (Outcome.TROUBLE, None) and reason in why, (what, why)
    outcome, watch, _ = await runs(case("perf\n", {"status": 127}))
    assert outcome is Outcome.HIT
    with pytest.raises(Exception, match=r"prepare: .*perf: not found"):
        await runs(case("true", prepare="perf; true"))

    for text, last in ((ONE_LINE, "status 137, and it printed nothing"), (LINES, "status 0, last line: refused")):
        outcome, watch, why = await runs(case(text))
        assert (outcome, watch.hit) == (Outcome.MISS, None), why
        assert any("what the shell says of a job" in str(one) or "own text" in str(one) for one in watch.uncounted), (
            watch.uncounted,
            why,
        )
        assert why.startswith(last) and "matches and does not count" in why
    # The same words, printed.
    outcome, _, _ = await runs(case("bash -c 'true && echo BYPASSED'\n"))
    assert outcome is Outcome.HIT
    outcome, watch, why = await runs(case("set -x\ngrep -c BYPASSED /etc/passwd\n"))
    assert outcome is Outcome.MISS and "trace" in watch.uncounted[0].why and why.startswith("status 1, last line: 0")
