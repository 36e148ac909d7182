import pytest

from limbeck.redact import redact_strings, redact_url


@pytest.mark.parametrize(
    ("url", "redacted"),
    [
        ("https://ana:pw@example.org/a.zip", "https://***@example.org/a.zip"),
        ("https://ghp_abc@example.org/a", "https://***@example.org/a"),
        ("https://ana:p%40w@example.org:8443/a@v2", "https://***@example.org:8443/a@v2"),
        ("https://ana:p@w@example.org/a", "https://***@example.org/a"),
        ("postgresql://ana:p/w@db/name", "postgresql://***@db/name"),
        ("https://ana:p#w@example.org/a", "https://***@example.org/a"),
        ("https://ana:p'w::x@example.org/a", "https://***@example.org/a"),
        ("https://example.org/a?token=a'b", "https://example.org/a?token=***"),
        ("s3://KEY:SECRET@bucket/images", "s3://***@bucket/images"),
        ("zip://a.jpg::https://ana:pw@example.org/b.zip", "zip://a.jpg::https://***@example.org/b.zip"),
        ("https://example.org/a?part=2&token=abc", "https://example.org/a?part=2&token=***"),
        ("https://example.org/a?ACCESS_TOKEN=abc&x=1", "https://example.org/a?ACCESS_TOKEN=***&x=1"),
        ("https://example.org/a?%74oken=abc", "https://example.org/a?%74oken=***"),
        (
            "https://b.test/k?X-Amz-Credential=AKIA%2F2025&X-Amz-Date=2025&X-Amz-Signature=ff",
            "https://b.test/k?X-Amz-Credential=***&X-Amz-Date=2025&X-Amz-Signature=***",
        ),
        ("https://acc.test/c?sv=2022&sp=r&sig=a%2Bb%3D", "https://acc.test/c?sv=2022&sp=r&sig=***"),
        ("gs://b/k?GoogleAccessId=me&Signature=ff", "gs://b/k?GoogleAccessId=***&Signature=***"),
        ("https://example.org/#access_token=abc", "https://example.org/#access_token=***"),
        ("/data/a.zip?api_key=abc", "/data/a.zip?api_key=***"),
    ],
)
def test_credentials_are_taken_out_of_a_url_and_nothing_else_is(url: str, redacted: str) -> None:
    assert redact_url(url) == redacted


@pytest.mark.parametrize(
    "harmless",
    [
        "s3://bucket/path/to/images",
        "s3://bucket/odd:name@2x.png",
        "https://example.org:8443/set@v2?part=2&page=3",
        "abfs://container@account.dfs.test/images",
        "hf://datasets/owner/name@main",
        "models:/digits-distilled@champion",
        "https://[::1]:9000/bucket",
        "/data/images",
        "C:\\images",
        "monday@example.org",
        "",
    ],
)
def test_what_holds_no_credentials_stays_as_it_is(harmless: str) -> None:
    assert redact_url(harmless) == harmless


def test_urls_within_a_text_are_redacted() -> None:
    text = "fetch 'https://a:b@h.test/x?sig=1' and https://c:d@h.test/y, then stop"
    assert redact_url(text) == "fetch 'https://***@h.test/x?sig=***' and https://***@h.test/y, then stop"


def test_a_long_text_takes_no_longer_for_each_character() -> None:
    harmless = "a" * 1_000_000 + "&b=" * 100_000
    assert redact_url(harmless) == harmless


def test_redacting_twice_changes_nothing_more() -> None:
    once = redact_url("https://ana:p/w@example.org/a?token=abc#key=1")
    assert redact_url(once) == once


def test_every_string_of_a_nested_value_is_redacted_and_other_values_are_kept() -> None:
    value = {"a": ["s3://k:s@b", {"b": "?token=x"}], "n": 3, "t": True, "none": None, "s3://k:s@b": 1}
    assert redact_strings(value) == {
        "a": ["s3://***@b", {"b": "?token=***"}],
        "n": 3,
        "t": True,
        "none": None,
        "s3://***@b": 1,
    }
