"""The places that the store's contract holds in."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.store.places import Emulators, Place, emulators


@pytest.fixture(scope="session")
def servers() -> Iterator[Emulators]:
    with emulators() as found:
        yield found


@pytest.fixture(params=["file", "memory", "gs", "s3"])
def place(request, servers, tmp_path) -> Place:
    return servers.place(request.param, tmp_path)


@pytest.fixture(params=["gs", "s3"])
def bucket(request, servers, tmp_path) -> Place:
    return servers.place(request.param, tmp_path)
