"""The public API as users write it. Nothing here runs: type checkers read it (``test_typing.py``).

A comment ``type: ignore[...]`` marks what a type checker has to refuse. It is an error itself where it does not.
"""
