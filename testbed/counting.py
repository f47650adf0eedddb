"""What a guest's cgroups have counted, by their files' names, for signatures."""

from __future__ import annotations

from collections.abc import Mapping

from testbed import counters
from testbed.guest import Guest

_ROOT = "/sys/fs/cgroup"
# Each cgroup's small counters. By the shell itself: a program more takes longer than all of it.
_COUNTERS = f"""\
cd {_ROOT}
for file in memory.events pids.events cgroup.stat memory.current memory.swap.current; do
    for path in $file */$file */*/$file */*/*/$file; do
        [ ! -e "$path" ] || while read -r line; do echo "/$path:$line"; done <"$path"
    done
done
"""


async def every(guest: Guest) -> dict[str, str]:
    """The small counters of all cgroups: text by path from the root.

    :raise GuestError: the guest does not answer.
    """
    said = await guest.script(_COUNTERS, timeout_s=10)
    return {path.removeprefix("/"): text for path, text in counters.by_file(said.stdout).items()}


async def one(guest: Guest, texts: Mapping[str, str], cgroup: str, counter: str) -> int | None:
    """A counter, written `FILE` or `FILE NAME`; of `every`, or read now. One of a cgroup that is not there has counted nothing.

    :raise GuestError: the guest does not answer.
    """
    name, _, key = counter.partition(" ")
    path = name if cgroup == "/" else f"{cgroup}/{name}"
    text = texts.get(path)
    if text is None:
        read = '[ ! -e "$1" ] || while read -r line; do echo "$line"; done <"$1"'
        text = (await guest.script(read, f"{_ROOT}/{path}", timeout_s=10)).stdout
    if key:
        return counters.parse_flat(text).get(key)
    return int(text) if text.strip().isdigit() else None
