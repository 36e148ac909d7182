"""How storage is reached: options by the prefix of a URL, looked up when it is opened, and never shown."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from limbeck.errors import InputError
from limbeck.redact import REDACTED, redact_url
from limbeck.spec import StorageOption, StorageOptions
from limbeck.storage import PLAIN, Access, checksum_of
from tests.buckets import KEY, SECRET, amazon, google


def access(**options: StorageOption) -> Access:
    named = [option.model_copy(update={"name": name}) for name, option in options.items()]
    return Access((StorageOptions(prefix="s3://bucket/", options=named),))


def value(text: str) -> StorageOption:
    return StorageOption(name="x", value=text)


def environment(name: str) -> StorageOption:
    return StorageOption(name="x", environment=name)


def file(path: Path) -> StorageOption:
    return StorageOption(name="x", file=str(path))


def test_the_longest_prefix_that_fits_gives_the_options():
    entries = [
        StorageOptions(prefix=prefix, options=[StorageOption(name="endpoint_url", value=prefix)])
        for prefix in ("s3://", "s3://bucket/a", "s3://bucket/")
    ]
    several = Access(tuple(entries))
    found = {
        url: several.options(url).get("endpoint_url")
        for url in ("s3://bucket/a/b", "s3://bucket/b", "s3://c", "gs://c")
    }
    assert list(found.values()) == ["s3://bucket/a", "s3://bucket/", "s3://", None]


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("true", True),
        ("30", 30),
        ('"30"', "30"),
        ('{"a": {"b": 1}}', {"a": {"b": 1}}),
        ("http://h:9000", "http://h:9000"),
    ],
)
def test_a_value_is_json_where_it_is_json(text, meant):
    assert access(anything=value(text)).options("s3://bucket/a") == {"anything": meant}


def test_references_are_looked_up_when_a_place_is_opened_and_not_before(tmp_path, monkeypatch):
    given = access(key=environment("LIMBECK_TEST_REFERENCE"), secret=file(tmp_path / "secret"))
    with pytest.raises(InputError, match=r"options\[0\]: the variable LIMBECK_TEST_REFERENCE is not set"):
        given.options("s3://bucket/a")
    monkeypatch.setenv("LIMBECK_TEST_REFERENCE", "one")
    with pytest.raises(InputError, match=r"options\[1\]: .*secret: No such file or directory"):
        given.options("s3://bucket/a")
    (tmp_path / "secret").write_text("s3cr3t-value\n")
    assert given.options("s3://bucket/a") == {"key": "one", "secret": "s3cr3t-value"}
    assert given.options("s3://elsewhere/a") == {}


def test_a_key_of_several_fields_is_given_as_what_it_holds(tmp_path):
    key = {"type": "service_account", "project_id": "p", "private_key": "-----BEGIN PRIVATE KEY-----" + "k" * 80}
    (tmp_path / "key.json").write_text(json.dumps(key))
    assert access(token=file(tmp_path / "key.json")).options("s3://bucket/a") == {"token": key}
    assert key["private_key"] not in redact_url(f"cannot be parsed: {key['private_key']} of p")
    assert redact_url("project p of type service_account") == "project p of type service_account"


def test_what_was_looked_up_is_said_nowhere(monkeypatch):
    monkeypatch.setenv("LIMBECK_TEST_REFERENCE", "hush-hush")
    access(secret=environment("LIMBECK_TEST_REFERENCE")).options("s3://bucket/a")
    assert redact_url("403 for key=a secret hush-hush of s3://b") == f"403 for key=a secret {REDACTED} of s3://b"


def test_what_is_written_of_it_names_references_alone(monkeypatch):
    monkeypatch.setenv("LIMBECK_TEST_REFERENCE", "hush-hush")
    given = access(secret=environment("LIMBECK_TEST_REFERENCE"))
    given.options("s3://bucket/a")
    assert "hush-hush" not in repr(given) + given.entries[0].model_dump_json()


@pytest.fixture(scope="module")
def s3() -> Iterator[tuple[str, Access]]:
    with amazon() as found:
        yield found


def test_a_bucket_is_reached_by_credentials_of_the_environment(s3):
    url, given = s3
    files, path = given.open(f"{url}/a")
    files.pipe_file(path, b"content")
    assert given.open(f"{url}/a")[0].cat_file(path) == b"content"
    assert given.options(url)["secret"] == SECRET
    assert redact_url(f"{KEY} {SECRET}") == f"{REDACTED} {REDACTED}"


def test_stores_tell_checksums_of_what_they_hold(s3):
    url, given = s3
    md5 = "md5:9a0364b9e99bb480dd25e1f0284c8555"
    files, path = given.open(f"{url}/b")
    files.pipe_file(path, b"content")
    assert checksum_of(files.info(path)) == md5
    with google() as there:
        files, path = PLAIN.open(f"{there}/b")
        files.pipe_file(path, b"content")
        assert checksum_of(files.info(path)) == md5
    files, path = PLAIN.open("memory://limbeck-checksum")
    files.pipe_file(path, b"content")
    assert checksum_of(files.info(path)) is None


@pytest.mark.parametrize(
    ("info", "checksum"),
    [
        ({"md5Hash": "ICy5YqxZB1uWSwcVLSNLcA=="}, "md5:202cb962ac59075b964b07152d234b70"),
        ({"crc32c": "EHsvsg=="}, "crc32c:107b2fb2"),
        ({"ETag": '"202cb962ac59075b964b07152d234b70"'}, "md5:202cb962ac59075b964b07152d234b70"),
        ({"ETag": '"202cb962ac59075b964b07152d234b70-3"'}, "etag:202cb962ac59075b964b07152d234b70-3"),
        ({"etag": "0x8D4BCC2E4835CD0"}, "etag:0x8D4BCC2E4835CD0"),
        ({"size": 3}, None),
    ],
)
def test_a_checksum_says_its_kind(info, checksum):
    assert checksum_of(info) == checksum


def test_a_package_that_is_missing_is_named_with_its_extra(monkeypatch):
    def missing(url: str, **options: object) -> None:
        raise ImportError("Please install gcsfs")

    monkeypatch.setattr("fsspec.core.url_to_fs", missing)
    with pytest.raises(
        InputError, match=r"gs://b/a: gs:// needs a package that is not installed; pip install 'limbeck\[gcs\]'"
    ):
        PLAIN.open("gs://b/a")
