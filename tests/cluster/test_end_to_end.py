"""docs/kubernetes.md is true: its commands, in its order, from `helm install` to a champion, and to nothing left.

Real are the API server with its scheduler and controllers, Helm, kubectl, and the processes that pods are; a node of
the tests' own starts those. Only the image is none: containers see this machine's file system, read-only.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import yaml
from kubernetes import client

from limbeck_operator import api
from tests.charts.rendering import CHART, tool
from tests.cluster import binaries
from tests.cluster.control_plane import ControlPlane
from tests.cluster.kubelet import until
from tests.cluster.node import Node, missing
from tests.cluster.operating import Objects

ROOT = Path(__file__).parents[2]
NAMESPACE = "limbeck"
FORWARD = re.compile(r"^kubectl port-forward .*service/([a-z-]+) (\d+) &$", re.MULTILINE)
RESULTS = "/var/lib/limbeck"


class Story:
    """Tells what happens, with the time, past pytest's capture: whoever reads the log of a run can follow it."""

    def __init__(self, capture: pytest.CaptureFixture[str]) -> None:
        self._capture, self._began = capture, time.monotonic()
        self._lock = threading.Lock()

    def __call__(self, line: str) -> None:
        with self._lock, self._capture.disabled():
            sys.stderr.write(f"{time.monotonic() - self._began:6.1f} s  {line}\n")
            sys.stderr.flush()


class Page:
    """The commands of a page, taken from it in order."""

    def __init__(self, path: Path, environment: dict[str, str], folder: Path, story: Story) -> None:
        self._blocks = iter(re.findall(r"^```sh\n(.*?)^```", path.read_text(), flags=re.MULTILINE | re.DOTALL))
        self._environment, self._folder, self._story = environment, folder, story

    def run(self, beginning: str, forward: Callable[[str, int], None] | None = None) -> str:
        """Run the next block, which begins so; what it says.

        Args:
            beginning: of the block, so that whoever reads the test sees where it is.
            forward: plays `kubectl port-forward`, which a node without a kubelet's server does not have.
        """
        block = next(self._blocks)
        assert block.startswith(beginning), block
        for line in block.replace("\\\n", "").splitlines():
            self._story(f"$ {' '.join(line.split())}")
        match = FORWARD.search(block)
        if match is not None and forward is not None:
            forward(match[1], int(match[2]))
            block = FORWARD.sub("", block)
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", block],
            cwd=self._folder,
            env=self._environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=960,  # the page itself waits for up to 15 minutes
        )
        for line in done.stdout.splitlines():
            self._story(f"    {line}")
        assert done.returncode == 0, done.stderr
        return done.stdout

    def is_done(self) -> bool:
        """Whether all of it was run."""
        return next(self._blocks, None) is None


@pytest.fixture
def story(capsys) -> Story:
    return Story(capsys)


@pytest.fixture
def plane(tmp_path) -> Iterator[ControlPlane]:
    folder, why = binaries.find()
    why = why if folder is None else missing(folder)
    if folder is None or why:
        pytest.skip(why)
    found = ControlPlane(folder, tmp_path / "plane", nodes=True)
    try:
        found.start()
        yield found
    finally:
        found.stop()


@pytest.fixture
def node(plane, tmp_path, story) -> Iterator[Node]:
    with Node(plane, tmp_path / "node", say=lambda line: story(f"  {line}")) as found:
        yield found


@pytest.fixture
def workplace(tmp_path) -> Path:
    """The repository as a user has it, with a chart of the version before, and one of this one."""
    folder = tmp_path / "workplace"
    (folder / "charts").mkdir(parents=True)
    (folder / "examples").symlink_to(ROOT / "examples")
    _copy_chart(folder / "charts" / "limbeck")
    earlier = folder / "charts" / "limbeck"
    described = yaml.safe_load((earlier / "Chart.yaml").read_text())
    (earlier / "Chart.yaml").write_text(yaml.safe_dump({**described, "version": "0.0.9"}))
    definition = yaml.safe_load((earlier / "files" / "crds" / "distillations.yaml").read_text())
    definition["spec"]["versions"][0]["additionalPrinterColumns"].pop()  # it had no age
    (earlier / "files" / "crds" / "distillations.yaml").write_text(yaml.safe_dump(definition))
    return folder


def _copy_chart(to: Path) -> None:
    """The chart, but for what it asks of Kubernetes' version: an API server that is built here says none."""
    shutil.rmtree(to, ignore_errors=True)
    shutil.copytree(CHART, to)
    described = to / "Chart.yaml"
    described.write_text("".join(line for line in described.open() if not line.startswith("kubeVersion")))


@pytest.fixture
def page(plane, workplace, tmp_path, story) -> Page:
    tools = tmp_path / "bin"
    tools.mkdir()
    (tools / "helm").symlink_to(tool("helm4"))
    (tools / "kubectl").symlink_to(tool("kubectl"))
    homes = {f"HELM_{name}_HOME": str(tmp_path / name) for name in ("CACHE", "CONFIG", "DATA")}
    path = f"{tools}:{sys.prefix}/bin:{os.environ['PATH']}"
    environment = {**os.environ, **homes, "PATH": path, "KUBECONFIG": str(plane.admin), "HOME": str(tmp_path)}
    return Page(ROOT / "docs" / "kubernetes.md", environment, workplace, story)


def forwarded(node: Node) -> Callable[[str, int], None]:
    """Plays `kubectl port-forward`: a port of this machine is a service's."""

    def forward(service: str, port: int) -> None:
        server = socket.create_server(("127.0.0.1", port))

        def pass_on(a: socket.socket, b: socket.socket) -> None:
            while data := a.recv(65536):
                b.sendall(data)
            b.shutdown(socket.SHUT_WR)

        def serve() -> None:
            while True:
                near, _ = server.accept()
                far = socket.create_connection((node.addresses(NAMESPACE, service)[0], port))
                for pair in ((near, far), (far, near)):
                    threading.Thread(target=pass_on, args=pair, daemon=True).start()

        threading.Thread(target=serve, daemon=True).start()

    return forward


@pytest.mark.timeout(1500)
def test_the_page_on_kubernetes_is_true(plane, node, page, workplace, story):
    objects = Objects(plane.client(), NAMESPACE)
    try:
        it_is_installed_and_tests_itself(page)
        digits_run_through_an_upgrade(page, objects, workplace)
        the_set_is_the_champion(page, objects, node)
        a_schedule_distils_what_has_changed(page, objects)
        nothing_is_left(page, objects)
        assert page.is_done()
    except BaseException:
        _tell(objects, node, story)
        raise


def it_is_installed_and_tests_itself(page: Page) -> None:
    said = page.run("kubectl create namespace")
    assert "kubectl rollout status" in said  # what to do next
    said = page.run("kubectl rollout status")
    assert "successfully rolled out" in said
    assert re.search(r"Phase: +Succeeded", said)


def digits_run_through_an_upgrade(page: Page, objects: Objects, workplace: Path) -> None:
    page.run("kubectl apply -n limbeck -f examples/digits.yaml")
    until(lambda: _progress(objects, "digits").get("stage"), "progress", 180)
    assert "Running" in page.run("kubectl get dist")
    pod, uid = objects.pod("digits"), objects.get("digits")["metadata"]["uid"]
    operators = _pods(objects, "operator")
    assert len(operators) == 2
    columns = len(_columns(objects))
    _copy_chart(workplace / "charts" / "limbeck")
    page.run("helm upgrade")
    assert len(_columns(objects)) == columns + 1
    assert objects.pod("digits") == pod
    page.run("kubectl wait -n limbeck dist/digits")
    found = objects.get("digits")
    assert found["metadata"]["uid"] == uid
    assert (found["status"].get("retries") or 0) == 0
    assert found["status"]["result"]["recoveredGap"] > 0.2
    assert (found["status"]["result"]["model"], found["status"]["result"]["version"]) == ("digits-distilled", 1)
    assert {stage["state"] for stage in found["status"]["stages"]} == {"Complete"}


def the_set_is_the_champion(page: Page, objects: Objects, node: Node) -> None:
    said = page.run("kubectl port-forward", forwarded(node))
    assert re.search(r"\b1\b.*champion", said), said
    assert objects.get("digits")["status"]["links"]["mlflow"].startswith("http://limbeck-mlflow.limbeck.svc:5000/")


def a_schedule_distils_what_has_changed(page: Page, objects: Objects) -> None:
    page.run("kubectl apply -n limbeck -f examples/kubernetes/pictures.yaml")
    first = _made(objects, 1)
    assert "warmStart" not in first["spec"]["distill"]
    assert first["status"]["result"] | {"digest": ""} == {
        "digest": "",
        "images": 6,
        "model": "pictures",
        "version": 1,
        "champion": True,
        "sourceFingerprint": first["status"]["result"]["sourceFingerprint"],
    }
    page.run("kubectl get sdist,dist")
    until(lambda: (_schedule(objects).get("lastSkip") or {}).get("reason") == "Unchanged", "a skip", 180)
    assert "unchanged, skipped" in page.run("kubectl get sdist -n limbeck pictures")
    assert len(_of_schedule(objects)) == 1
    page.run("kubectl apply -n limbeck -f examples/kubernetes/another-picture.yaml")
    second = _made(objects, 2)
    assert second["spec"]["distill"]["warmStart"] == "models:/pictures/1"
    assert (second["status"]["result"]["version"], second["status"]["result"]["champion"]) == (2, True)


def nothing_is_left(page: Page, objects: Objects) -> None:
    said = page.run("kubectl delete").splitlines()
    assert said[-2:] == ["configmap/kube-root-ca.crt", "serviceaccount/default"]
    assert 'pod "limbeck-test" deleted' in said[-3] or "condition met" in said[-3]
    custom = client.ApiextensionsV1Api(objects.admin).list_custom_resource_definition().items
    assert [entry.metadata.name for entry in custom if entry.spec.group == api.GROUP] == []
    rights = client.RbacAuthorizationV1Api(objects.admin)
    assert [r.metadata.name for r in rights.list_cluster_role().items if "limbeck" in r.metadata.name] == []
    assert [b.metadata.name for b in rights.list_cluster_role_binding().items if "limbeck" in b.metadata.name] == []


def _progress(objects: Objects, name: str) -> dict[str, Any]:
    return (objects.get(name).get("status") or {}).get("progress") or {}


def _pods(objects: Objects, component: str) -> list[str]:
    selector = f"app.kubernetes.io/component={component}"
    found = client.CoreV1Api(objects.admin).list_namespaced_pod(NAMESPACE, label_selector=selector).items
    return [pod.metadata.name for pod in found]


def _columns(objects: Objects) -> list[Any]:
    name = f"{api.DISTILLATIONS}.{api.GROUP}"
    definition = client.ApiextensionsV1Api(objects.admin).read_custom_resource_definition(name)
    return list(definition.spec.versions[0].additional_printer_columns)


def _schedule(objects: Objects) -> dict[str, Any]:
    return objects.get("pictures", api.SCHEDULES).get("status") or {}


def _of_schedule(objects: Objects) -> list[dict[str, Any]]:
    found = [entry for entry in objects.all() if entry["metadata"]["name"].startswith("pictures-")]
    return sorted(found, key=lambda entry: entry["metadata"]["creationTimestamp"])


def _made(objects: Objects, number: int) -> dict[str, Any]:
    """The Distillation that a schedule has made as its so-manieth, complete."""

    def complete() -> Any:
        made = _of_schedule(objects)
        assert not [entry for entry in made if objects.condition(entry["metadata"]["name"], "Failed")]
        return len(made) == number and "result" in (made[-1].get("status") or {}) and made[-1]

    return until(complete, f"Distillation {number} of the schedule", 300)


def _tell(objects: Objects, node: Node, story: Story) -> None:
    """What there was to see when it went wrong."""
    with suppress(client.ApiException):  # there may be no Distillations any more
        for entry in objects.all():
            story(json.dumps({"name": entry["metadata"]["name"], **(entry.get("status") or {})}))
    for pod in client.CoreV1Api(objects.admin).list_namespaced_pod(NAMESPACE).items:
        for container in pod.spec.containers:
            log = node.logs(NAMESPACE, pod.metadata.name, container.name)
            story(f"--- {pod.metadata.name}: {pod.status.phase}\n{log.read_text(errors='replace')[-3000:]}")
