"""A head that has no server for its client: the driver connects again, and gives up in one line."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import ray

from limbeck.fanout import connection
from limbeck.fanout.connection import connect
from tests.fanout.heads import TOKEN, head

# Python runs this file when it starts. It ends the first server that the head starts for a client.
DIES = """
import os, sys
lives = os.path.join(os.path.dirname(__file__), "lives")
if "--mode=specific-server" in sys.orig_argv and not os.path.exists(lives):
    open(lives, "w").close()
    os._exit(1)
"""
# What Ray 2 answered in a test on a busy machine.
ANSWER = """Initialization failure from server:
Traceback (most recent call last):
  File "/site-packages/ray/util/client/server/proxier.py", line 772, in Datapath
    raise RuntimeError(
RuntimeError: Starting Ray client server failed. See ray_client_server_23000.err for detailed logs.
"""


def test_a_real_head_whose_server_died_is_connected_again(tmp_path):
    (tmp_path / "sitecustomize.py").write_text(DIES)
    with head({"PYTHONPATH": str(tmp_path)}) as cluster:
        script = (
            "import ray\nfrom limbeck.fanout.connection import connect\n"
            f"connect({cluster.client!r}, lambda reason: print('again:', reason))\n"
            "print('CPUs:', ray.cluster_resources()['CPU'])"
        )
        done = subprocess.run(
            [sys.executable, "-c", script], env={**os.environ, **TOKEN}, capture_output=True, text=True, timeout=300
        )
    assert done.returncode == 0, done.stderr
    again, cpus = done.stdout.splitlines()
    assert again.startswith("again: ")
    assert cpus == "CPUs: 2.0"


@pytest.fixture
def attempts(monkeypatch) -> list[str]:
    """The addresses that the stand-in for `ray.init` was called with."""
    monkeypatch.setattr(connection, "_PAUSE_SECONDS", 0.0)
    return []


def failing(monkeypatch, attempts: list[str], error: Exception) -> None:
    """Put a function that raises `error` in the place of `ray.init`."""

    def init(address: str, log_to_driver: bool) -> None:
        assert not log_to_driver
        attempts.append(address)
        raise error

    monkeypatch.setattr(ray, "init", init)


def test_a_head_without_a_server_is_given_up_after_three_attempts_in_one_line(monkeypatch, attempts):
    failing(monkeypatch, attempts, ConnectionAbortedError(ANSWER))
    reasons: list[str] = []
    with pytest.raises(ConnectionError) as raised:
        connect("ray://head:10001", reasons.append)
    text = "RuntimeError: Starting Ray client server failed. See ray_client_server_23000.err for detailed logs."
    assert str(raised.value) == text
    assert reasons == [text, text]
    assert attempts == ["ray://head:10001"] * 3


def test_what_will_not_change_is_not_tried_again(monkeypatch, attempts):
    failing(monkeypatch, attempts, RuntimeError("Version mismatch:\n  The cluster was started with:\n  Ray: 1.0"))
    with pytest.raises(ConnectionError, match=r"^Version mismatch: The cluster was started with: Ray: 1\.0$"):
        connect("ray://head:10001", pytest.fail)
    assert attempts == ["ray://head:10001"]
