"""What the processes share of the tests, where there are several (`pytest -n 2`)."""

from __future__ import annotations

from xdist.scheduler import LoadScopeScheduling

# Each is the work of one process, so that there is one API server, one MLflow and one Ray. They take longest, and come
# first; then any process takes any file.
TOGETHER = ("tests/cluster/", "tests/tracking/", "tests/test_demo.py", "tests/fanout/")


def place(nodeid: str) -> int:
    """A test's place among those that come first; those that do not come after."""
    return next((n for n, name in enumerate(TOGETHER) if nodeid.startswith(name)), len(TOGETHER))


class Sharing(LoadScopeScheduling):
    """Gives whole files to processes, and what belongs together to one."""

    def _split_scope(self, nodeid: str) -> str:
        file = nodeid.partition("::")[0]
        return next((name for name in TOGETHER if file.startswith(name)), file)
