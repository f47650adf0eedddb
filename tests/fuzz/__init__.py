"""Fuzzes every parser of untrusted input: `./tb fuzz`, and a few hundred inputs of each in `tests/unit/test_fuzz.py`.

`targets.py` is the table of parsers: a row, a function in `readers/` and a folder of samples in `corpus/` make a new
target. atheris guides the inputs by the code that they reach; mutators of our own know structures (`mutate.py`).
Findings that were fixed stay in `findings/`, as tests.
"""
