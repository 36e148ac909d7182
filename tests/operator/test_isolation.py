"""A spec cannot make the operator read, or act with, what the run's own account may not."""

from __future__ import annotations

import base64
import json
import subprocess
import sys
from pathlib import Path

import pytest

from limbeck.errors import InputError
from limbeck_operator.distillation import read
from limbeck_operator.inherit import Defaults
from limbeck_operator.kube import own_account
from limbeck_operator.schedule import read as read_schedule
from tests.operator.specs import SOURCE, Case, distillation_of, schedule_of

OWN = Defaults(own_account="team/limbeck")


def distillation(account: str | None, namespace: str = "team", **execution: object) -> dict:
    if account is not None:
        execution["serviceAccount"] = account
    spec = distillation_of(Case({"output": {"uri": "gs://bucket/out"}, "execution": execution}))
    fields = {"apiVersion": "limbeck.dev/v1alpha1", "kind": "Distillation", "spec": spec}
    return {**fields, "metadata": {"name": "a", "namespace": namespace}}


@pytest.mark.parametrize("backend", ["job", "kubeflow"])
def test_no_run_is_given_the_operators_own_account(backend):
    with pytest.raises(InputError, match=r"serviceAccount: limbeck is the operator's own"):
        read(distillation("limbeck", backend=backend), OWN)


@pytest.mark.parametrize(("account", "namespace"), [("trainer", "team"), (None, "team"), ("limbeck", "another")])
def test_every_other_account_is(account, namespace):
    assert read(distillation(account, namespace), OWN).spec.execution.service_account == account


def test_no_schedule_is_either():
    document = schedule_of(Case({"template": {"spec": {"source": SOURCE, "output": {"uri": "gs://bucket/out"}}}}))
    document["template"]["spec"]["execution"] = {"serviceAccount": "limbeck"}
    fields = {"apiVersion": "limbeck.dev/v1alpha1", "kind": "ScheduledDistillation", "spec": document}
    with pytest.raises(InputError, match="the operator's own"):
        read_schedule({**fields, "metadata": {"name": "a", "namespace": "team"}}, OWN)


def token(subject: str) -> str:
    payload = base64.urlsafe_b64encode(json.dumps({"sub": subject}).encode()).decode().rstrip("=")
    return f"e30.{payload}.signature"


@pytest.mark.parametrize(
    ("content", "account"),
    [
        (token("system:serviceaccount:team:limbeck"), "team/limbeck"),
        (token("system:node:one"), None),
        (token("ana"), None),
        ("", None),
        ("e30.?.x", None),
        ("e30.W10.x", None),
    ],
)
def test_the_operator_knows_its_own_account_by_its_token(tmp_path, content, account):
    (tmp_path / "token").write_text(content)
    assert own_account(tmp_path / "token") == account
    assert own_account(tmp_path / "nowhere") is None


_WATCHED = """
import sys
seen = []
sys.addaudithook(lambda event, args: seen.append(str(args[0])) if event in ("open", "socket.connect") else None)
import fsspec
fsspec.core.url_to_fs = lambda *a, **k: seen.append(f"storage {a}")
import json
from limbeck.storage import Access
Access.open = lambda self, url: seen.append(f"storage {url}")
Access.options = lambda self, url: seen.append(f"options {url}")
from datetime import UTC, datetime
from limbeck_operator.distillation import reconcile
from limbeck_operator.inherit import Defaults
from limbeck_operator.observed import Observed
document, defaults = json.load(sys.stdin), Defaults()
now = datetime(2026, 1, 1, tzinfo=UTC)
reconcile(Observed(document, defaults=defaults), now)
del seen[:]
plan = reconcile(Observed(document, defaults=defaults), now)
print(json.dumps([seen, repr(plan)]))
"""


def test_the_operator_opens_nothing_that_a_spec_names(tmp_path: Path):
    """It plans the Job of a spec full of places and references without opening a file or a connection."""
    secret = tmp_path / "secret"
    secret.write_text("hush-hush")
    document = distillation(
        "trainer",
        storageOptions=[
            {
                "prefix": "s3://bucket/",
                "options": [{"name": "secret", "file": str(secret)}, {"name": "key", "environment": "HOME"}],
            }
        ],
        volumes=[{"claim": "c", "mountPath": "/data"}],
    )
    document["metadata"] |= {"uid": "u", "generation": 1, "creationTimestamp": "2026-01-01T00:00:00Z"}
    document["spec"] |= {
        "source": {"uri": "s3://bucket/pictures"},
        "teacher": {"algorithm": "pretrained", "checkpoint": "file:///data/teacher.pt"},
        "distill": {"size": 10, "warmStart": "s3://bucket/set"},
    }
    found = subprocess.run(
        [sys.executable, "-c", _WATCHED], input=json.dumps(document), capture_output=True, text=True, check=True
    )
    seen, plan = json.loads(found.stdout)
    assert seen == []
    assert "s3://bucket/pictures" in plan
    assert "hush-hush" not in plan
