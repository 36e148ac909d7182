"""What fails for a moment is asked again, and what does not change is not."""

from __future__ import annotations

import errno
import os
import subprocess
import sys

import aiohttp
import pytest
import requests
from botocore.exceptions import ClientError, EndpointConnectionError
from s3fs.errors import translate_boto_error

from limbeck.errors import WorkError
from limbeck.patience import Retries, is_transient, patiently

os.environ.setdefault("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")  # it is looked at when gcsfs is imported
from gcsfs.retry import HttpError

AT_ONCE = Retries(attempts=4, first=0.0)


def of_s3(code: str, status: int) -> Exception:
    answer = {"Error": {"Code": code, "Message": "as it says"}, "ResponseMetadata": {"HTTPStatusCode": status}}
    return translate_boto_error(ClientError(answer, "PutObject"))


@pytest.mark.parametrize(
    "error",
    [
        *(HttpError({"code": code, "message": "later"}) for code in (408, 429, 500, 502, 503, 504)),
        *(of_s3(*answer) for answer in (("SlowDown", 503), ("InternalError", 500), ("RequestTimeout", 400))),
        of_s3("ConditionalRequestConflict", 409),
        EndpointConnectionError(endpoint_url="http://nowhere"),
        aiohttp.ServerDisconnectedError(),
        aiohttp.ClientPayloadError(),
        requests.exceptions.ProxyError(),
        TimeoutError(),
        ConnectionResetError(),
        OSError(errno.EBUSY, "busy"),
        OSError(errno.EIO, "io"),
    ],
)
def test_a_busy_server_and_a_lost_connection_are_transient(error):
    assert is_transient(error)


@pytest.mark.parametrize(
    "error",
    [
        FileNotFoundError("gone"),
        FileExistsError("there"),
        PermissionError("no"),
        OSError("Forbidden: bucket/object"),  # gcsfs
        HttpError({"code": 401, "message": "who"}),
        HttpError({"code": 412, "message": "there"}),
        of_s3("NoSuchKey", 404),
        of_s3("AccessDenied", 403),
        of_s3("PreconditionFailed", 412),
        of_s3("InvalidRange", 416),
        ValueError("a fault of ours"),
        KeyError("a fault of ours"),
        OSError(errno.ENOSPC, "full"),
    ],
)
def test_what_will_not_change_is_not_asked_again(error):
    assert not is_transient(error)
    calls = []

    def work() -> None:
        calls.append(1)
        raise error

    with pytest.raises(type(error)):
        patiently("reading gs://b/o", work, AT_ONCE)
    assert len(calls) == 1


def test_what_fails_for_a_moment_succeeds_in_the_end():
    answers = iter([TimeoutError(), ConnectionResetError(), None])

    def work() -> str:
        error = next(answers)
        if error is not None:
            raise error
        return "done"

    assert patiently("reading", work, AT_ONCE) == "done"


def test_after_the_last_try_one_line_says_what_and_why_without_credentials():
    calls = []

    def work() -> None:
        calls.append(1)
        raise ConnectionResetError("https://ana:pw@example.org/x?token=abc\nreset")

    with pytest.raises(WorkError) as caught:
        patiently("reading https://ana:pw@example.org/x?token=abc", work, AT_ONCE)
    assert len(calls) == 4
    line = str(caught.value)
    assert "\n" not in line
    assert line.startswith("reading https://***@example.org/x?token=*** (tried 4 times): ConnectionResetError")
    assert "pw" not in line
    assert "abc" not in line


def test_nothing_of_it_is_imported_before_it_is_needed():
    program = (
        "import sys, limbeck.store, limbeck.patience; "
        "print([m for m in ('tenacity', 'gcsfs', 's3fs', 'adlfs', 'torch') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True, env=os.environ)
    assert done.stdout.strip() == "[]"
