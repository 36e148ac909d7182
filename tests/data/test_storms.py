"""A store that is busy, or loses connections, costs time and no image; one that is gone is told in a line."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from types import SimpleNamespace

import pytest

from limbeck.data.sources import open_source
from limbeck.errors import WorkError
from limbeck.patience import Retries
from tests.data.making import encoded, noise, write_zip
from tests.store.places import Emulators, Storm, emulators

FILES = {f"cat/{index:02d}.png": encoded(noise(index)) for index in range(40)}


@pytest.fixture(scope="module")
def servers() -> Iterator[Emulators]:
    with emulators() as found:
        yield found


@pytest.fixture(autouse=True)
def quick(monkeypatch) -> None:
    monkeypatch.setattr("limbeck.patience.patiently.__defaults__", (Retries(attempts=12, first=0.05, longest=0.5),))


@pytest.mark.parametrize("kind", ["gs", "s3"])
@pytest.mark.parametrize("form", ["folders", "zip"])
def test_every_image_arrives_through_a_storm(servers, tmp_path, kind, form):
    calm = servers.place(kind, tmp_path)
    files, root = calm.access.open(calm.url)
    if form == "zip":
        files.pipe_file(f"{root}/pictures.zip", write_zip(tmp_path / "x.zip", FILES).read_bytes())
    else:
        for name, content in FILES.items():
            files.pipe_file(f"{root}/pictures/{name}", content)
    name = "pictures.zip" if form == "zip" else "pictures"
    storm = Storm(servers.google if kind == "gs" else servers.amazon, share=0.15 if form == "folders" else 0.5)
    try:
        stormy = servers.place(kind, tmp_path, lambda _: storm.address)
        source = open_source(f"{calm.url}/{name}", "auto", stormy.access)
        assert list(source.listing().names) == sorted(FILES)
        names = source.listing().names
        assert {names[index]: content for index, content in source.read(range(len(FILES)))} == FILES
        assert source.fingerprint() == open_source(f"{calm.url}/{name}", "auto", calm.access).fingerprint()
        assert storm.refused > 0
    finally:
        storm.close()


@pytest.mark.parametrize("kind", ["gs", "s3"])
def test_a_store_that_is_gone_is_the_work_s_failure_and_a_line(servers, tmp_path, monkeypatch, kind):
    storm = Storm(servers.google if kind == "gs" else servers.amazon, share=1.0)
    monkeypatch.setattr("limbeck.patience.patiently.__defaults__", (Retries(attempts=2, first=0.01, longest=0.01),))
    # gcsfs tries six times by itself, and waits half a minute between them
    monkeypatch.setattr("gcsfs.retry.asyncio", SimpleNamespace(sleep=lambda seconds: asyncio.sleep(seconds / 20)))
    try:
        gone = servers.place(kind, tmp_path, lambda _: storm.address)
        with pytest.raises(WorkError) as refusal:
            open_source(f"{gone.url}/pictures", "auto", gone.access)
        assert "looking at it (tried 2 times)" in str(refusal.value)
        assert "\n" not in str(refusal.value)
    finally:
        storm.close()
