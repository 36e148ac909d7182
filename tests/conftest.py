"""What holds for all tests."""

import os
from collections.abc import Iterator
from typing import Any

import pytest

from limbeck import redact

# gcsfs looks at it when it is imported, and asks emulators for what they lack unless it says no
os.environ.setdefault("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Of pytest-xdist: with -n, one process has what belongs together."""
    from tests.sharing import Sharing

    return Sharing(config, log)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """In each of xdist's processes, the longest come first."""
    if hasattr(config, "workerinput"):
        from tests.sharing import place

        items.sort(key=lambda item: place(item.nodeid))


@pytest.fixture(autouse=True)
def nothing_stays_concealed() -> Iterator[None]:
    """A credential of one test is none in the next: it may be the address of a server whose port comes again."""
    before = redact._concealed
    redact._concealed = set(before)
    yield
    redact._concealed = before
