"""What holds for all tests."""

import os
from collections.abc import Iterator

import pytest

from limbeck import redact

# In `make test` two processes share the tests: one has all that needs the API server first, the other all that needs
# MLflow. So there is one of each, and the longest work begins at once. Other files go to whichever is free.
_TOGETHER = ("tests/cluster/", "tests/tracking/", "tests/test_demo.py", "tests/fanout/")

# gcsfs looks at it when it is imported, and asks emulators for what they lack unless it says no
os.environ.setdefault("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Says which tests stay in one process, and which come first, where there are several."""
    if config.getoption("dist", "no") == "no":
        return
    for item in items:
        file = item.nodeid.partition("::")[0]
        item.add_marker(pytest.mark.xdist_group(next((name for name in _TOGETHER if file.startswith(name)), file)))
    items.sort(key=lambda item: next((n for n, name in enumerate(_TOGETHER) if item.nodeid.startswith(name)), 99))


@pytest.fixture(autouse=True)
def nothing_stays_concealed() -> Iterator[None]:
    """A credential of one test is none in the next: it may be the address of a server whose port comes again."""
    before = redact._concealed
    redact._concealed = set(before)
    yield
    redact._concealed = before
