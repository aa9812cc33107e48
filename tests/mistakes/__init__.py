"""The commonest mistakes, what each of them gets, and the page of the documentation that is made by making them.

``python -m tests.mistakes`` makes them all and writes docs/pages/mistakes.md.
"""
