"""A reader that opens its source anew: for sources that hold nothing which is faster to hand on."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from limbeck.data.sources.listing import Content, Indices
from limbeck.storage import Access


@dataclass(frozen=True)
class Reopened:
    """Some images of the source at a URI; see `Reader`."""

    uri: str
    format: str
    access: Access
    wanted: Indices

    def __iter__(self) -> Iterator[tuple[int, Content]]:
        from limbeck.data.sources import open_source

        yield from open_source(self.uri, self.format, self.access).read(self.wanted)
