"""A child of `./tb fuzz`: gives a number of inputs to one parser, guided by the code that they reach (atheris,
libFuzzer).

Reports lines of JSON in a file. Inputs are recorded before they are parsed, for the parent: a parser may hang or end
the process.
"""

from __future__ import annotations

import dataclasses
import json
import os
import random
import resource
import signal
import time
from pathlib import Path
from typing import NoReturn

import atheris

from tests.fuzz import mutate, watch
from tests.fuzz.state import State
from tests.fuzz.targets import TARGETS, samples

_MOST_BYTES = 4 << 30  # of address space: beyond it, an allocation is a MemoryError
_SWOLLEN = 200  # one in this many inputs is
_WARM = 10  # the first of this many parts of the inputs


class Fuzzer:
    """Counts and measures the inputs of one target."""

    def __init__(self, name: str, inputs: int, seed: int, folder: Path) -> None:
        self.target = TARGETS[name]
        self._inputs, self._folder = inputs, folder
        self._random = random.Random(seed)
        self._state = State.of(folder)
        self._done = 0
        self._began_s = time.process_time()
        self._slowest = (0.0, b"")
        self._warm_bytes = 0
        self._found: dict[tuple[str, str], int] = {}

    def say(self, **words: object) -> None:
        with (self._folder / "said.jsonl").open("a") as file:
            file.write(json.dumps(words) + "\n")

    def change(self, data: bytes, most_bytes: int, seed: int) -> bytes:
        """Apply libFuzzer's own mutation, or one of ours, in turn."""
        rng = random.Random(seed)
        if rng.random() < 0.5:
            return bytes(atheris.Mutate(data, most_bytes))
        return mutate.mutated(data, rng, self.target.words, self.target.mutators)[:most_bytes]

    def one(self, data: bytes) -> None:
        """Parse one input; end the process after the last one."""
        self._done += 1
        # Not as a mutation, or the corpus would fill with such inputs.
        if self._done % _SWOLLEN == 0:
            data = mutate.swollen(data, self._random)
        self._state.begin(self._done, data)
        seen = watch.look(self.target, data)
        if seen.cpu_s > self._slowest[0]:
            self._slowest = (seen.cpu_s, data)
        if seen.finding is not None:
            self._note(seen.finding)
        if self._done == max(1, self._inputs // _WARM):
            self._warm_bytes = watch.resident_bytes()
        if self._done == self._inputs:
            self._end()

    def _note(self, finding: watch.Finding) -> None:
        key = finding.kind, finding.place
        self._found[key] = self._found.get(key, 0) + 1
        if self._found[key] == 1:
            small = watch.smallest(finding, self.target)
            self.say(finding={**dataclasses.asdict(small), "data": small.data.hex()})

    def _end(self) -> None:
        self.say(
            inputs=self._done,
            cpu_s=time.process_time() - self._began_s,
            slowest_s=self._slowest[0],
            slowest_bytes=len(self._slowest[1]),
            warm_bytes=self._warm_bytes,
            end_bytes=watch.resident_bytes(),
        )
        os.kill(os.getpid(), signal.SIGKILL)  # libFuzzer reports any other end as a finding


def run(name: str, inputs: int, seed: int, place: Path) -> NoReturn:
    """Fuzz a target in this process. `place`: a folder of its own, for inputs and reports."""
    resource.setrlimit(resource.RLIMIT_AS, (_MOST_BYTES, _MOST_BYTES))
    fuzzer = Fuzzer(name, inputs, seed, place)
    for folder_name in ("seeds", "grown"):
        (place / folder_name).mkdir(exist_ok=True)
    for path in samples(name):
        (place / "seeds" / path.name).write_bytes(path.read_bytes()[: fuzzer.target.most_bytes])
    words = "".join('"' + "".join(f"\\x{byte:02x}" for byte in word) + '"\n' for word in fuzzer.target.words)
    (place / "words").write_text(words)
    options = {
        "seed": seed + 1,
        "max_len": fuzzer.target.most_bytes,
        "len_control": 0,
        "rss_limit_mb": 0,
        "verbosity": 0,
        "timeout": 86400,
    }
    argv = [f"-{key}={value}" for key, value in options.items()] + [f"-artifact_prefix={place}/"]
    dictionary = [f"-dict={place / 'words'}"] if words else []
    atheris.Setup(
        ["fuzz", *argv, *dictionary, str(place / "grown"), str(place / "seeds")],
        fuzzer.one,
        custom_mutator=fuzzer.change,
    )
    atheris.Fuzz()

    raise AssertionError("libFuzzer does not return")
