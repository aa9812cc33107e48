"""Fuzzing: whatever the bytes, what the package promises holds.

``python -m tests.fuzz --minutes 10`` is guided by coverage; the tests of this package run the same targets on what
Hypothesis makes up.
"""
