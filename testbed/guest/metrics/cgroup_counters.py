"""What a guest's cgroups have counted, by their files' names, for signatures."""

from __future__ import annotations

from collections.abc import Mapping

from testbed import cgroupfs
from testbed.bugs.signature import Watch, render
from testbed.errors import TestbedError
from testbed.guest import shell_functions
from testbed.guest.guest import Guest

_ROOT = "/sys/fs/cgroup"
# Each cgroup's small counters; one may go meanwhile.
_COUNTERS = f"""\
for file in memory.events pids.events cgroup.stat memory.current memory.swap.current; do
    for path in {_ROOT}/$file {_ROOT}/*/$file {_ROOT}/*/*/$file {_ROOT}/*/*/*/$file; do
        [ ! -e "$path" ] || take "$path"
    done
done
finish
"""
_ONE = 'take "$1"; finish'


async def read_cgroup_counters(guest: Guest) -> dict[str, str]:
    """The small counters of all cgroups: text by path from the root.

    :raise GuestError: the guest does not answer. :raise ReadingError: what it answers is cut.
    """
    mark = shell_functions.new_separator()
    said = await guest.script(shell_functions.function_definitions(mark) + _COUNTERS, timeout_s=10)
    texts = shell_functions.sections(said.stdout, mark, guest.name)[""].texts
    return {path.removeprefix(f"{_ROOT}/"): text for path, text in texts.items()}


async def read_counter(guest: Guest, texts: Mapping[str, str], cgroup: str, counter: str) -> int | None:
    """A counter, written `FILE` or `FILE NAME`; of `every`, or read now. None: the cgroup, or its file, is not there.

    :raise GuestError: the guest does not answer. :raise ReadingError: the file has no such name, or it is no number.
    """
    name, _, key = counter.partition(" ")
    path = name if cgroup == "/" else f"{cgroup}/{name}"
    where = f"guest {guest.name}: {_ROOT}/{path}"
    text = texts.get(path)
    if text is None:
        mark = shell_functions.new_separator()
        said = await guest.script(shell_functions.function_definitions(mark) + _ONE, f"{_ROOT}/{path}", timeout_s=10)
        text = shell_functions.sections(said.stdout, mark, guest.name)[""].texts.get(f"{_ROOT}/{path}")
        if text is None:
            return None
    return cgroupfs.parse_value(text, key, where)


class CounterBaseline:
    """The counters that one try's signature looks at, as they are read while it runs and at its end."""

    def __init__(self, watch: Watch) -> None:
        self._watch = watch
        self._last: dict[tuple[str, str], int] = {}
        self._unread: dict[tuple[str, str], str] = dict.fromkeys(watch.counters, "nobody has looked at it")
        self._failed = ""

    @property
    def unknown(self) -> str:
        """What was not read when it was last looked at: then that the signature has not shown there means nothing. Else empty."""
        if self._failed:
            return f"its counters were not read at the end: {self._failed}"
        return "; ".join(
            f"{'/'.join(counter)}: {self._had(counter)}not read: {why}" for counter, why in self._unread.items()
        )

    def _had(self, counter: tuple[str, str]) -> str:
        return f"{self._last[counter]} at first, then " if counter in self._last else ""

    async def read(self, guest: Guest, *, everything: bool = False) -> tuple[str, ...]:
        """Read the counters that the signature names, or all there are, and show them to it. Returns all, a line each, for `everything`.

        What cannot be read is `unknown`, until it can.
        """
        texts: Mapping[str, str] = {}
        lines: tuple[str, ...] = ()
        try:
            texts = await read_cgroup_counters(guest)
            if everything:
                lines = render(texts)
                self._watch.counted(lines)
        except TestbedError as error:
            self._failed = str(error) if everything and self._watch.looks_at_counters else ""
        for cgroup, counter in self._watch.counters:
            try:
                value = await read_counter(guest, texts, cgroup, counter)
            except TestbedError as error:
                self._unread[cgroup, counter] = str(error)
                continue
            if value is None:
                self._unread[cgroup, counter] = "no such file; the cgroup must be there when the script ends"
                continue
            self._unread.pop((cgroup, counter), None)
            self._last[cgroup, counter] = value
            self._watch.count(cgroup, counter, value)
        return lines
