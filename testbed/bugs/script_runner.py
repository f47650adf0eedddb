"""Runs a bug's scripts in a guest, each as a file there, with any length and interpreter, and with empty standard
input."""

from __future__ import annotations

import contextlib
import shlex
from collections.abc import Mapping

from testbed.bugs.script_files import CANNOT_TRY, HOME, Script, variable
from testbed.errors import TestbedError
from testbed.guest.channels.ssh import Listener, Result
from testbed.guest.guest import Guest
from testbed.guest.setup.block_stack import Stack

_TOOLS = f"{HOME}/bin"
# Scripts run as the guest's root; those written for a user call sudo. It is a program, so that programs they start can
# call it as well.
_SUDO = f"""\
#!/bin/sh
user=root
while :; do
    case $1 in
    -u) user=$2; shift 2 || exit {CANNOT_TRY} ;;
    --) shift; break ;;
    -[EHnSkP]*) shift ;;
    -*) echo "sudo: $1: this sudo of the testbed knows -u USER, -E, -H, -n, -S, -k and -P" >&2; exit {CANNOT_TRY} ;;
    *) break ;;
    esac
done
[ $# -gt 0 ] || exit 0
set -- env -- "$@"
[ "$user" = root ] || exec setpriv "--reuid=$user" "--regid=$(id -g "$user")" --init-groups "$@"
exec "$@"
"""


async def run_script(
    guest: Guest,
    script: Script,
    environment: Mapping[str, str],
    *,
    check: bool = True,
    timeout_s: float,
    listeners: tuple[Listener, Listener] | None = None,
) -> Result:
    """Run a script with additional environment variables; raises as `Shell.run`.

    Its status is 125, with a message, if the guest cannot store the file.
    """
    loader = _loader(script, environment)
    return await guest.shell.script(
        loader, check=check, timeout_s=timeout_s, listeners=listeners, stdin=script.text.encode()
    )


def _loader(script: Script, environment: Mapping[str, str]) -> str:
    """Return the shell command that writes its standard input into the script's file, and then executes the interpreter
    on it."""
    sudo = f"{_TOOLS}/sudo"
    exports = "".join(f"export {name}={shlex.quote(value)}; " for name, value in environment.items())
    tool = f"[ -e {sudo} ] || {{ printf %s {shlex.quote(_SUDO)} >{sudo} && chmod +x {sudo}; }}"
    put = f"mkdir -p {_TOOLS} && cat >{script.path} && {{ {tool}; }}"
    start = shlex.join((*script.interpreter, script.path))
    return f"{put} || exit {CANNOT_TRY}; {exports}export PATH={_TOOLS}:$PATH; exec {start} </dev/null"


def script_environment(guest: Guest, stack: Stack, seed: int) -> dict[str, str]:
    """Return the environment of a bug's scripts: DEV_NAME of each device, NUM_NAME of each disk (MAJ:MIN), FILE_NAME of
    each loop's backing file, and SEED. Dashes in names become underscores; `script_files.environment_names` has the
    same names."""
    found = {"SEED": str(seed)}
    found |= {f"DEV_{variable(name)}": path for name, path in stack.devices.items()}
    found |= {f"NUM_{variable(name)}": disk.number for name, disk in guest.disks.items()}
    found |= {f"FILE_{variable(name)}": loop.backing_file for name, loop in stack.loops.items() if loop.backing_file}
    return found


async def wait_until_idle(guest: Guest, timeout_s: float) -> None:
    """Wait until all that a script has printed so far has arrived, by running another command, which takes longer.
    Standard output and error arrive separately, in any order."""
    with contextlib.suppress(TestbedError):
        await guest.script("true", timeout_s=timeout_s)
