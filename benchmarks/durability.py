"""Checks that a filesystem keeps across a power cut what `fsync` acknowledged: a load reports each synced record, a
check looks for them.

async with loading(guest, "data") as load:     # a mounted filesystem of the topology
    await load.reaches(20)
    await guest.cut_power(folder, share=0.5, seed=1)
lost = await missing(again, "data", load)      # on a guest that booted on the surviving disks

"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass

from testbed.guest.guest import Guest
from testbed.guest.setup.block_stack import MOUNTS
from testbed.regex import LONGEST_LINE, compile_linear
from testbed.units import parse_whole

_SYNCED = compile_linear(r"synced ([0-9]{1,18})")
_POLL_S = 0.02
# Record N is a file named N, with N repeated over 16 KiB. The load prints it on the console, which this machine reads,
# after both the file and its folder were synced.
_LOAD = """\
use strict; use IO::Handle;
my $folder = shift;
sub synced {
    open(my $names, '<', $_[0]) or die "$_[0]: $!";
    IO::Handle::sync($names) or die "$_[0]: $!";
    close($names);
}
unless (-d $folder) { mkdir($folder) or die "$folder: $!"; synced($folder =~ s{/[^/]+$}{}r); }
open(my $console, '>', '/dev/console') or die "console: $!"; $console->autoflush(1);
for (my $number = 1; ; $number++) {
    open(my $file, '>', "$folder/$number") or die "$number: $!";
    print $file pack('N*', ($number) x 4096) or die "$number: $!";
    $file->flush or die "$number: $!";
    $file->sync or die "$number: $!";
    close($file) or die "$number: $!";
    synced($folder);
    print $console "\\nsynced $number\\n";
}
"""
# Prints the numbers up to $2 whose files are missing or incomplete.
_CHECK = """\
use strict;
my ($folder, $last) = @ARGV;
for my $number (1 .. $last) {
    my $data = '';
    if (open(my $file, '<', "$folder/$number")) { local $/; $data = <$file> // ''; close($file); }
    print "$number\\n" unless $data eq pack('N*', ($number) x 4096);
}
"""


@dataclass(slots=True)
class Load:
    """A load in a guest. `acknowledged`: the last record whose fsync returned, if the guest could still report it."""

    acknowledged: int = 0

    async def reaches(self, records: int) -> None:
        """Wait until that many records are acknowledged (the caller owns the deadline)."""
        while self.acknowledged < records:
            await asyncio.sleep(_POLL_S)


@contextlib.asynccontextmanager
async def loading(guest: Guest, folder: str) -> AsyncIterator[Load]:
    """Write and sync records in a folder, FILESYSTEM or FILESYSTEM/NEW, until the guest or the block ends."""
    load, pending = Load(), b""

    def on_data(data: bytes) -> None:
        nonlocal pending
        *lines, pending = (pending + data).split(b"\n")
        pending = pending[:LONGEST_LINE]
        for line in lines:
            if found := _SYNCED.fullmatch(line[:LONGEST_LINE].decode(errors="replace").strip()):
                load.acknowledged = int(found[1])

    with guest.console.listening(on_data):
        writing = asyncio.create_task(guest.script(_script(_LOAD), f"{MOUNTS}/{folder}", timeout_s=3600))
        try:
            yield load
        finally:
            writing.cancel()
            await asyncio.gather(writing, return_exceptions=True)


async def missing(guest: Guest, folder: str, load: Load) -> tuple[int, ...]:
    """Return the acknowledged records that are missing or incomplete.

    :raise GuestError: the guest does not answer.
    """
    done = await guest.script(_script(_CHECK), f"{MOUNTS}/{folder}", str(load.acknowledged), timeout_s=600)
    return tuple(parse_whole(line, f"guest {guest.name}: the records that are missing") for line in done.stdout.split())


def _script(perl: str) -> str:
    return f"exec perl - \"$@\" <<'END_OF_PERL'\n{perl}END_OF_PERL\n"
