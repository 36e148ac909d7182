"""What a loop or an ingest needs of the store, so that another machine can go on where this one was."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol


class Copies(Protocol):
    """Where copies of files that lie here are kept for other machines: the store, when it is remote."""

    def keep(self, file: Path) -> None:
        """Copy a file there."""

    def fetch(self, file: Path) -> None:
        """Bring it here, where there is such a copy."""
