"""Guarded apps of other frameworks, under real clients.

What is missing is skipped, and ``pip install '.[compat]'`` brings all of it.
"""

import pytest

pytest.register_assert_rewrite("tests.compat.promises")
