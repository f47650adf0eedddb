"""Runs fio in a guest, and parses its figures."""

from __future__ import annotations

import math
from dataclasses import dataclass

from testbed.errors import GuestError
from testbed.guest.guest import Guest
from testbed.text import parse_json


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """The figures of one job: requests and bytes a second, the median latency in microseconds, and fio's error (an
    errno, or 0).
    """

    iops: float
    bytes_per_s: float
    median_us: float
    error: int


async def run(
    guest: Guest, file: str, *options: str, rw: str = "randread", seconds: float = 5, warm_s: float = 0
) -> Load:
    """Run one job with direct I/O on a device or a file for `seconds`, after `warm_s` that do not count.

    :raise GuestError: fio does not run, or prints no figures. Errors of the disk are in the result.
    """
    words = [
        f"--filename={file}",
        f"--rw={rw}",
        f"--runtime={seconds}",
        *([f"--ramp_time={warm_s}"] if warm_s else []),
        *options,
    ]
    fixed = (
        "--name=load",
        "--direct=1",
        "--time_based",
        "--thread",
        "--group_reporting",
        "--randrepeat=0",
        "--output-format=json",
    )
    done = await guest.run("fio", *fixed, *words, check=False, timeout_s=seconds + warm_s + 120)
    try:
        return parse_load(done.stdout, rw)
    except ValueError as error:
        output = (done.stderr or done.stdout).strip()[-500:]
        raise GuestError(
            f"guest {guest.name}: fio on {file}: expected its figures as JSON, got status {done.status}: {output}"
        ) from error


def parse_load(printed: str, rw: str) -> Load:
    """Parse the figures of the only job in fio's JSON, before which fio may have printed other lines.

    :raise ValueError: there are no figures, or they are no numbers.
    """
    try:
        (job,) = parse_json(printed[max(0, printed.find("{")) :])["jobs"]
        side = job["write" if "write" in rw else "read"]
        # A job without a request has no percentiles.
        median_ns = side["clat_ns"]["percentile"]["50.000000"] if "percentile" in side["clat_ns"] else 0
        figures = (side["iops"], side["bw_bytes"], median_ns, job["error"])
        if not all(isinstance(figure, int | float) and math.isfinite(figure) and figure >= 0 for figure in figures):
            raise ValueError(f"expected numbers, got {figures}")
        return Load(
            iops=side["iops"], bytes_per_s=side["bw_bytes"], median_us=median_ns / 1000, error=int(job["error"])
        )
    except (KeyError, TypeError, OverflowError) as error:
        raise ValueError(f"expected the figures of one job, got none: {error!r}") from error
