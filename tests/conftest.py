"""What holds for all tests."""

import os
from collections.abc import Iterator

import pytest

from limbeck import redact

# gcsfs looks at it when it is imported, and asks emulators for what they lack unless it says no
os.environ.setdefault("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")


@pytest.fixture(autouse=True)
def nothing_stays_concealed() -> Iterator[None]:
    """A credential of one test is none in the next: it may be the address of a server whose port comes again."""
    before = redact._concealed
    redact._concealed = set(before)
    yield
    redact._concealed = before
