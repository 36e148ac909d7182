"""The Ray cluster of a task: made with its pod as owner, waited for, connected to, and deleted."""

from __future__ import annotations

import base64
import json
import os
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs

import pytest
from kubernetes import client, config

from limbeck.errors import WorkError
from limbeck.interrupt import Stopped, StopRequest
from limbeck_components import raycluster
from limbeck_components.raycluster import remove_clusters, with_cluster
from tests.pipelines.specs import spec

_CLUSTERS = "/apis/ray.io/v1/namespaces/team/rayclusters"


class Kubernetes:
    """A stand-in for an API server with one pod and KubeRay: real requests of the official client, and nothing else."""

    def __init__(self) -> None:
        self.clusters: dict[str, Any] = {}
        self.refuses: dict[str, int] = {}  # statuses, by what is asked
        self.phases = {"the-pod": "Running"}
        self.ready_after = 2  # looks
        self.asked: list[str] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def _answer(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                outer.asked.append(f"{self.command} {self.path}")
                status, answer = outer.answer(self.command, self.path, json.loads(body) if body else None)
                text = json.dumps(answer).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(text)))
                self.end_headers()
                self.wfile.write(text)

            do_GET = do_POST = do_DELETE = _answer  # noqa: N815

            def log_message(self, *arguments: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def answer(self, method: str, path: str, body: Any) -> tuple[int, Any]:
        path, _, query = path.partition("?")
        kind = (
            f"{method} {path.removeprefix('/api/v1/namespaces/team/').split('/')[0]}" if "/api/v1/" in path else method
        )
        if kind in self.refuses:
            return self.refuses[kind], {"message": "no"}
        if path.startswith("/api/v1/namespaces/team/pods/") and path.rpartition("/")[2] in self.phases:
            pod = path.rpartition("/")[2]
            status = {"phase": self.phases[pod]}
            return 200, {"metadata": {"name": pod, "uid": "the-uid"}, "spec": {"containers": []}, "status": status}
        if (method, path) == ("GET", _CLUSTERS):
            run = parse_qs(query)["labelSelector"][0].removeprefix("limbeck.dev/distillation=")
            labelled = [c for c in self.clusters.values() if c["metadata"]["labels"]["limbeck.dev/distillation"] == run]
            return 200, {"items": labelled}
        if (method, path) == ("POST", _CLUSTERS):
            self.clusters[body["metadata"]["name"]] = body
            return 201, body
        name = path.rpartition("/")[2]
        if path == f"{_CLUSTERS}/{name}" and name in self.clusters:
            if method == "DELETE":
                return 200, self.clusters.pop(name)
            self.ready_after -= 1
            ready = {"conditions": [{"type": "RayClusterProvisioned", "status": "True"}]}
            return 200, {**self.clusters[name], "status": ready if self.ready_after < 0 else {"reason": "no nodes"}}
        if (method, path) == ("GET", f"/api/v1/namespaces/team/secrets/{name}") and name in self.clusters:
            return 200, {"data": {"auth_token": base64.b64encode(b"the-token").decode()}}
        return 404, {"message": f"no {method} {path}"}


@pytest.fixture
def kubernetes(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> Iterator[Kubernetes]:
    found = Kubernetes()
    settings = client.Configuration(host=f"http://127.0.0.1:{found.server.server_port}")
    monkeypatch.setattr(config, "load_incluster_config", lambda: client.Configuration.set_default(settings))
    (tmp_path / "namespace").write_text("team")
    monkeypatch.setattr(raycluster, "_NAMESPACE", tmp_path / "namespace")
    monkeypatch.setattr(raycluster, "_LOOK", 0.01)
    monkeypatch.setenv("LIMBECK_POD_NAME", "the-pod")
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN"):
        monkeypatch.setenv(name, "")
    yield found
    found.server.shutdown()
    client.Configuration.set_default(None)


def test_the_cluster_lives_as_long_as_the_task(kubernetes):
    with with_cluster(spec("ray-cluster"), "trajectories", StopRequest()) as connected:
        ((name, manifest),) = kubernetes.clusters.items()
        assert manifest["metadata"]["ownerReferences"] == [
            {"apiVersion": "v1", "kind": "Pod", "name": "the-pod", "uid": "the-uid"}
        ]
        assert manifest["spec"]["workerGroupSpecs"][0]["replicas"] == 8
        ray = connected.spec.execution.ray
        assert (ray.address, ray.cluster, ray.workers) == (f"http://{name}-head-svc.team.svc:8265", None, 8)
        assert os.environ["RAY_AUTH_TOKEN"] == "the-token"
        assert connected.spec.content() == spec("ray-cluster").spec.content()
    assert kubernetes.clusters == {}


def test_it_goes_when_the_task_fails_too(kubernetes):
    with pytest.raises(WorkError, match="the work"), with_cluster(spec("ray-cluster"), "trajectories", StopRequest()):
        raise WorkError("the work")
    assert kubernetes.clusters == {}


def test_a_cluster_that_is_gone_already_is_no_trouble(kubernetes):
    with with_cluster(spec("ray-cluster"), "trajectories", StopRequest()):
        kubernetes.clusters.clear()


@pytest.mark.parametrize(
    ("asked", "status", "phrase"),
    [
        ("POST", 404, "this Kubernetes has no RayCluster; install KubeRay"),
        ("POST", 403, "may not create rayclusters in team"),
        ("POST", 500, "Kubernetes did not create rayclusters: Internal Server Error"),
        ("GET", 403, "may not list rayclusters in team"),
        ("GET pods", 403, "may not get pods in team"),
        ("GET secrets", 403, "may not get secrets in team"),
        ("GET secrets", 404, "has no secret with its token"),
    ],
)
def test_what_kubernetes_refuses_is_said(kubernetes, asked, status, phrase):
    kubernetes.refuses = {asked: status}
    with (
        pytest.raises(WorkError, match=phrase),
        with_cluster(spec("ray-cluster"), "trajectories", StopRequest()),
    ):
        raise AssertionError
    assert kubernetes.clusters == {}


def test_a_stop_while_the_cluster_is_waited_for_ends_the_wait_and_the_cluster(kubernetes):
    kubernetes.ready_after = 10**6
    stop = StopRequest()
    threading.Timer(0.3, lambda: setattr(stop, "requested", True)).start()
    with pytest.raises(Stopped), with_cluster(spec("ray-cluster"), "trajectories", stop):
        raise AssertionError
    assert kubernetes.clusters == {}


def test_clusters_whose_pods_were_killed_go_with_the_next_task_or_the_last(kubernetes):
    def left(name: str, run: str, pod: str) -> None:
        owner = {"kind": "Pod", "name": pod}
        labels = {"limbeck.dev/distillation": run}
        kubernetes.clusters[name] = {"metadata": {"name": name, "labels": labels, "ownerReferences": [owner]}}

    run = spec("ray-cluster").metadata.name
    kubernetes.phases |= {"killed": "Failed", "at-work": "Running"}
    for name, pod in (("a", "killed"), ("b", "gone"), ("c", "at-work")):
        left(name, run, pod)
    left("other", "another-run", "killed")
    with with_cluster(spec("ray-cluster"), "trajectories", StopRequest()):
        assert {"a", "b"}.isdisjoint(kubernetes.clusters)
    assert sorted(kubernetes.clusters) == ["c", "other"]
    kubernetes.phases["at-work"] = "Failed"
    remove_clusters(spec("ray-cluster"))
    assert sorted(kubernetes.clusters) == ["other"]
    kubernetes.asked.clear()
    remove_clusters(spec("cpu"))  # asks for none
    assert kubernetes.asked == []


def test_a_cluster_that_does_not_get_ready_is_given_up_and_deleted(kubernetes, monkeypatch):
    kubernetes.ready_after = 10**6
    monkeypatch.setattr(raycluster, "_READY_SECONDS", 0.2)
    with pytest.raises(WorkError, match=r"was not ready after 0\.2 s: no nodes"):
        with_cluster(spec("ray-cluster"), "trajectories", StopRequest()).__enter__()
    assert kubernetes.clusters == {}


def test_every_pod_has_a_cluster_of_its_own_within_kuberay_s_limit():
    names = {raycluster._name("a" * 60, "trajectories", pod) for pod in ("one", "two")}
    assert len(names) == 2
    assert {len(name) for name in names} == {53}
