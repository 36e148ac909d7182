"""What sources ask of an object store: few requests, no byte twice, and one clear line when it refuses."""

import json
import pickle
import threading
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest

from limbeck.data.sources import open_source
from limbeck.errors import InputError
from limbeck.spec import StorageOption, StorageOptions
from limbeck.storage import Access
from tests.data.making import write_parquet, write_tar, write_tree, write_zip
from tests.data.storing import Shelf, amazon, google

IMAGES = {f"{i:03d}.png": np.random.default_rng(i).bytes(100_000) for i in range(60)}  # 6 MB


@pytest.fixture(scope="module")
def bucket():
    with google() as url:
        yield Shelf(url)


@pytest.fixture
def requests(monkeypatch):
    """How many requests gcsfs makes, and the bytes that it receives.

    Without its question whether a path is a folder, too: gcsfs asks it beside the one for the object and drops the
    slower, so that chance decides how many are answered.
    """
    import gcsfs

    made, request = Counter(), gcsfs.GCSFileSystem._request

    async def counted(self, method, path, *args, **options):
        answer = await request(self, method, path, *args, **options)
        made["requests"] += options.get("maxResults") != 1
        made["bytes"] += len(answer[3])
        return answer

    monkeypatch.setattr(gcsfs.GCSFileSystem, "_request", counted)
    return made


def parquet(path):
    return write_parquet(path, list(IMAGES.values()), [0] * 60, row_group_size=20, compression="none")


def shards(root):
    names = list(IMAGES)
    for shard in range(3):
        root.mkdir(exist_ok=True)
        write_tar(root / f"{shard}.tar", {name: IMAGES[name] for name in names[20 * shard : 20 * shard + 20]})
    return root


FORMS = {  # and the most requests of listing and of reading
    "zip": (lambda root: write_zip(root / "x.zip", IMAGES, 0), 10, 4),
    "tar": (lambda root: write_tar(root / "x.tar", IMAGES), 36, 4),
    "webdataset": (lambda root: shards(root / "w"), 42, 4),
    "parquet": (lambda root: parquet(root / "x.parquet"), 10, 6),
    "images": (lambda root: write_tree(root / "t", IMAGES), 3, 60),
}


@pytest.mark.parametrize("form", FORMS)
def test_images_are_read_by_few_requests_and_once(tmp_path, bucket, requests, form):
    make, listing, reading = FORMS[form]
    uri = bucket.put(make(tmp_path))
    requests.clear()
    source = open_source(uri)
    assert source.listing().count == 60
    assert source.fingerprint()
    asked = dict(requests)
    requests.clear()
    found = dict(pickle.loads(pickle.dumps(source.reader(range(60)))))
    assert list(dict(sorted(found.items())).values()) == list(IMAGES.values())
    assert asked["requests"] <= listing
    assert requests["requests"] <= reading
    assert requests["bytes"] < 6_600_000


@pytest.mark.parametrize("form", ["zip", "parquet", "images"])
def test_nothing_is_downloaded_to_list_or_to_fingerprint(tmp_path, bucket, requests, form):
    uri = bucket.put(FORMS[form][0](tmp_path), f"still.{form}")
    requests.clear()
    source = open_source(uri, form)
    source.listing()
    source.fingerprint()
    assert requests["bytes"] < 1_500_000


def test_a_tar_of_large_images_is_listed_without_them(tmp_path, bucket, requests):
    uri = bucket.put(write_tar(tmp_path / "large.tar", {f"{i}.png": bytes(4 * 2**20) for i in range(6)}))
    requests.clear()
    assert open_source(uri).listing().count == 6
    assert requests["bytes"] < 3 * 2**20


def test_a_file_that_vanishes_after_the_listing_is_a_bad_image_on_a_store_too(tmp_path, bucket):
    source = open_source(bucket.put(write_tree(tmp_path / "vanishing", {"a.png": b"1", "b.png": b"2"})))
    source.listing()
    files = bucket.filesystem()
    files.rm_file(f"{bucket.url.removeprefix('gs://')}/vanishing/a.png")
    found = dict(source.read([0, 1]))
    assert found[0].reason.startswith("cannot be read")
    assert found[1] == b"2"


@pytest.mark.parametrize("uri", ["gs://limbeck-nowhere/x", "gs://limbeck-nowhere", "gs://bucket/nowhere.zip"])
def test_a_bucket_or_object_that_is_not_there_is_said_in_one_line(bucket, uri):
    with pytest.raises(InputError) as caught:
        open_source(uri).listing()
    assert str(caught.value) == f"{uri}: no such bucket or object"


def test_what_s3_refuses_is_said_in_one_line(tmp_path, monkeypatch):
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    with amazon() as (url, access):
        shelf = Shelf(url, access)
        uri = shelf.put(write_tree(tmp_path / "t", {"a.png": b"x"}))
        endpoint = access.entries[0].options[0]
        with pytest.raises(InputError, match="s3://limbeck-nowhere/x: no such bucket or object"):
            open_source("s3://limbeck-nowhere/x", access=access).listing()
        nobody = Access((StorageOptions(prefix="s3://", options=[endpoint]),))
        with pytest.raises(InputError, match="Unable to locate credentials") as caught:
            open_source(uri, access=nobody).listing()
        assert "\n" not in str(caught.value)
        monkeypatch.delenv("LIMBECK_TEST_S3_SECRET")
        with pytest.raises(InputError, match=r"spec.execution.storageOptions\[0\].options\[2\]"):
            open_source(uri, access=access).listing()


class Forbidden(BaseHTTPRequestHandler):
    """Google's storage for somebody without rights."""

    def do_GET(self):
        message = "nobody@example.com does not have storage.objects.list access to the Google Cloud Storage bucket."
        body = json.dumps({"error": {"code": 403, "message": message}}).encode()
        self.send_response(403)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


def test_who_may_not_read_a_bucket_is_told_so_in_one_line():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Forbidden)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        values = {"endpoint_url": f"http://127.0.0.1:{server.server_port}", "token": "anon"}
        options = [StorageOption(name=name, value=value) for name, value in values.items()]
        access = Access((StorageOptions(prefix="gs://somebody-elses", options=options),))
        with pytest.raises(InputError) as caught:
            open_source("gs://somebody-elses/pictures", access=access).listing()
        assert "does not have storage.objects.list access" in str(caught.value)
        assert "\n" not in str(caught.value)
    finally:
        server.shutdown()
