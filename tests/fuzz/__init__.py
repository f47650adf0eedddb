"""Fuzzes every reader of what a stranger writes: `./tb fuzz`, and a few hundred inputs of each in `tests/unit/test_fuzz.py`.

`targets.py` is the table of readers: a row, a function in `readers/` and a folder of samples in `corpus/` are a new target. atheris guides
the inputs by what they reach of the testbed's code; mutators of our own know structures (`mutate.py`). What was found and mended stays in
`findings/`, as tests.
"""
