"""A node runs pods on a control plane of its own, and leaves nothing behind."""

from __future__ import annotations

import json
import subprocess
import sys
import time
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from kubernetes import client

from tests.cluster import binaries
from tests.cluster.control_plane import ControlPlane
from tests.cluster.kubelet import pods_of, until
from tests.cluster.network import service_addresses
from tests.cluster.node import Node, missing

RESTRICTED = {
    "allowPrivilegeEscalation": False,
    "capabilities": {"drop": ["ALL"]},
    "readOnlyRootFilesystem": True,
    "runAsNonRoot": True,
}
SERVE = ["python", "-m", "http.server", "8080"]


@pytest.fixture(scope="module")
def plane(tmp_path_factory) -> Iterator[ControlPlane]:
    folder, why = binaries.find()
    why = why or missing(folder)
    if why:
        pytest.skip(why)
    control_plane = ControlPlane(folder, tmp_path_factory.mktemp("control-plane"), nodes=True)
    try:
        control_plane.start()
        yield control_plane
    finally:
        control_plane.stop()


@pytest.fixture(scope="module")
def node(plane, tmp_path_factory) -> Iterator[Node]:
    with Node(plane, tmp_path_factory.mktemp("node"), environment={"OF_THE_IMAGE": "yes"}, say=say) as running:
        yield running


def say(line: str) -> None:
    sys.stderr.write(f"{line}\n")


@pytest.fixture(scope="module")
def core(plane) -> Any:
    return client.CoreV1Api(plane.client())


@pytest.fixture
def space(core, node) -> Iterator[str]:
    name = f"test-{uuid.uuid4().hex[:8]}"
    core.create_namespace({"metadata": {"name": name}})
    until(lambda: core.list_namespaced_service_account(name).items, "its account")
    yield name
    core.delete_namespace(name)


@pytest.fixture
def run(core, space) -> Callable[..., None]:
    """Makes a pod of one container."""

    def make(name: str, *command: str, pod: dict[str, Any] | None = None, labels: Any = None, **more: Any) -> None:
        container = {"name": "main", "image": "any", "command": list(command), **more}
        spec = {"restartPolicy": "Never", "terminationGracePeriodSeconds": 5, "containers": [container], **(pod or {})}
        core.create_namespaced_pod(space, {"metadata": {"name": name, "labels": labels}, "spec": spec})

    return make


@pytest.fixture
def ended(core, space, node) -> Callable[[str], tuple[int, str, str]]:
    """Waits for the end of a pod: exit code, message, and what it wrote."""

    def wait(name: str) -> tuple[int, str, str]:
        def end() -> Any:
            status = core.read_namespaced_pod(name, space).status
            return status.phase in ("Succeeded", "Failed") and status.container_statuses[0].state.terminated

        state = until(end, f"the end of {name}")
        return state.exit_code, state.message or "", node.logs(space, name, "main").read_text()

    return wait


@pytest.fixture
def container(core, space) -> Callable[[str], Any]:
    """The status of a pod's container; an empty one before there is any."""

    def read(name: str) -> Any:
        statuses = core.read_namespaced_pod(name, space).status.container_statuses
        nothing = client.V1ContainerState()
        return statuses[0] if statuses else SimpleNamespace(state=nothing, last_state=nothing, restart_count=0)

    return read


def test_a_job_ends_with_the_words_of_its_pod(plane, core, space):
    batch = client.BatchV1Api(plane.client())

    def job(name: str, script: str) -> None:
        container = {
            "name": "main",
            "image": "any",
            "command": ["sh", "-c", script],
            "terminationMessagePolicy": "FallbackToLogsOnError",
        }
        template = {"spec": {"restartPolicy": "Never", "containers": [container]}}
        spec = {"backoffLimit": 0, "template": template}
        batch.create_namespaced_job(space, {"metadata": {"name": name}, "spec": spec})

    def condition(name: str) -> str:
        entries = batch.read_namespaced_job(name, space).status.conditions or []
        return next((entry.type for entry in entries if entry.type in ("Complete", "Failed")), "")

    job("good", "echo all is well > /dev/termination-log")
    job("bad", "echo the disk is full >&2; exit 3")
    assert until(lambda: condition("good"), "the good one's end") == "Complete"
    assert until(lambda: condition("bad"), "the bad one's end") == "Failed"
    good, bad = (pods_of(plane.client(), space, name)[0].status for name in ("good", "bad"))
    state = good.container_statuses[0].state.terminated
    assert (good.phase, state.exit_code, state.reason, state.message) == ("Succeeded", 0, "Completed", "all is well\n")
    state = bad.container_statuses[0].state.terminated
    assert (bad.phase, state.exit_code, state.reason, state.message) == ("Failed", 3, "Error", "the disk is full\n")


def test_two_replicas_of_a_deployment_serve_under_its_name(plane, core, space, node, run, ended):
    container = {
        "name": "main",
        "image": "any",
        "command": SERVE,
        "ports": [{"name": "http", "containerPort": 8080}],
        "readinessProbe": {"httpGet": {"path": "/", "port": "http"}, "periodSeconds": 1},
        "securityContext": RESTRICTED,
    }
    template = {"metadata": {"labels": {"app": "web"}}, "spec": {"containers": [container]}}
    template["spec"]["terminationGracePeriodSeconds"] = 1
    spec = {"replicas": 2, "selector": {"matchLabels": {"app": "web"}}, "template": template}
    apps = client.AppsV1Api(plane.client())
    apps.create_namespaced_deployment(space, {"metadata": {"name": "web"}, "spec": spec})
    ports = [{"port": 8080, "targetPort": "http"}]
    core.create_namespaced_service(
        space, {"metadata": {"name": "web"}, "spec": {"selector": {"app": "web"}, "ports": ports}}
    )

    def available() -> bool:
        entries = apps.read_namespaced_deployment("web", space).status
        return entries.available_replicas == 2

    until(available, "two replicas")
    addresses = until(lambda: len(found := node.addresses(space, "web")) == 2 and found, "two addresses")
    for address in addresses:
        assert urllib.request.urlopen(f"http://{address}:8080/", timeout=5).status == 200
    names = ["web", f"web.{space}", f"web.{space}.svc", f"web.{space}.svc.cluster.local"]
    script = f"from urllib.request import urlopen as u\nfor n in {names}: print(u(f'http://{{n}}:8080/').status)"
    run("asks", "python", "-c", script)
    assert ended("asks") == (0, "", "200\n" * 4)
    apps.patch_namespaced_deployment("web", space, {"spec": {"replicas": 1}})
    until(lambda: len(node.addresses(space, "web")) == 1, "one address")


def test_a_service_whose_port_a_proxy_would_translate_leads_nowhere_and_says_so():
    container = {"name": "main", "ports": [{"name": "http", "containerPort": 8080}]}
    labels = {"app": "web", "more": "yes"}
    pod = {"metadata": {"namespace": "a", "labels": labels}, "spec": {"containers": [container]}}
    pods = [(pod, "198.19.0.2", True), (pod, "198.19.0.3", False)]

    def found(**port: Any) -> tuple[list[str], str]:
        spec = {"selector": {"app": "web"}, "ports": [port]}
        return service_addresses({"metadata": {"namespace": "a", "name": "web"}, "spec": spec}, pods)

    assert found(port=8080, targetPort="http") == found(port=8080) == (["198.19.0.2"], "")
    addresses, why = found(port=80, targetPort="http")
    assert addresses == []
    assert why.startswith("its port 80 is 8080 of its pods")


def test_a_pod_gets_itself_with_its_service_account(plane, core, space, run, ended):
    rights = client.RbacAuthorizationV1Api(plane.client())
    rules = [{"apiGroups": [""], "resources": ["pods"], "verbs": ["get"]}]
    rights.create_namespaced_role(space, {"metadata": {"name": "reads"}, "rules": rules})
    reference = {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "reads"}
    subjects = [{"kind": "ServiceAccount", "name": "default", "namespace": space}]
    rights.create_namespaced_role_binding(
        space, {"metadata": {"name": "reads"}, "roleRef": reference, "subjects": subjects}
    )
    script = """
import os
from kubernetes import client, config
config.load_incluster_config()
core = client.CoreV1Api()
print(core.read_namespaced_pod(os.environ["POD"], os.environ["SPACE"]).metadata.name)
try:
    core.list_namespaced_secret(os.environ["SPACE"])
except client.ApiException as error:
    print(error.status)
"""
    fields = [("POD", "metadata.name"), ("SPACE", "metadata.namespace")]
    env = [{"name": name, "valueFrom": {"fieldRef": {"fieldPath": path}}} for name, path in fields]
    run("self", "python", "-c", script, env=env, securityContext=RESTRICTED)
    assert ended("self") == (0, "", "self\n403\n")


def test_a_container_sees_what_its_manifest_says(core, space, run, ended):
    core.create_namespaced_config_map(space, {"metadata": {"name": "settings"}, "data": {"a.txt": "one", "KEY": "two"}})
    core.create_namespaced_secret(space, {"metadata": {"name": "hidden"}, "stringData": {"word": "sesame"}})
    annotation = {"fieldPath": "metadata.labels['kind']"}
    pod = {
        "securityContext": {"runAsUser": 1234, "runAsGroup": 2345, "fsGroup": 3456},
        "volumes": [
            {"name": "settings", "configMap": {"name": "settings", "items": [{"key": "a.txt", "path": "b/c.txt"}]}},
            {"name": "hidden", "secret": {"secretName": "hidden", "defaultMode": 0o400}},
            {"name": "about", "downwardAPI": {"items": [{"path": "kind", "fieldRef": annotation}]}},
            {"name": "quick", "emptyDir": {"medium": "Memory", "sizeLimit": "1Mi"}},
            {"name": "room", "emptyDir": {}},
        ],
        "initContainers": [
            {
                "name": "first",
                "image": "any",
                "command": ["sh", "-c", "echo first > /quick/file"],
                "volumeMounts": [{"name": "quick", "mountPath": "/quick"}],
            }
        ],
    }
    env = [
        {"name": "PLAIN", "value": "plain"},
        {"name": "WORD", "valueFrom": {"secretKeyRef": {"name": "hidden", "key": "word"}}},
        {"name": "BOTH", "value": "$(PLAIN)-$(WORD)-$$(PLAIN)-$(NONE)"},
        {"name": "LIMIT", "valueFrom": {"resourceFieldRef": {"resource": "limits.memory", "divisor": "1Mi"}}},
    ]
    script = """
set -e
echo $BOTH $KEY $LIMIT $OF_THE_IMAGE $1 $PWD ${SECRET_OF_THE_TEST-none}
cat /etc/x/b/c.txt /hidden/word /about/kind /quick/file
echo; id
df /quick | tail -1 | awk '{print $2}'
echo mine > /room/part/file; stat -c '%u %g' /room/part/file
"""
    mounts = [
        {"name": "settings", "mountPath": "/etc/x"},
        {"name": "hidden", "mountPath": "/hidden"},
        {"name": "about", "mountPath": "/about"},
        {"name": "quick", "mountPath": "/quick"},
        {"name": "room", "mountPath": "/room/part", "subPath": "a/b"},
    ]
    run(
        "sees",
        *("sh", "-c", script),
        args=["sh", "$(PLAIN)"],
        pod=pod,
        labels={"kind": "test"},
        env=env,
        envFrom=[{"configMapRef": {"name": "settings"}}],
        resources={"limits": {"memory": "64Mi"}},
        volumeMounts=mounts,
        workingDir="/room",
    )
    code, _, said = ended("sees")
    assert said.splitlines() == [
        "plain-sesame-$(PLAIN)-$(NONE) two 64 yes plain /room none",
        "onesesametestfirst",
        "",
        "uid=1234 gid=2345 groups=2345,3456",
        "1024",
        "1234 3456",
    ]
    assert code == 0


def test_a_read_only_root_is_so_and_an_empty_folder_is_not(run, ended):
    script = "touch /room/file && echo room; touch /opt/file; touch /tmp/file; grep NoNew /proc/1/status"
    pod = {"volumes": [{"name": "room", "emptyDir": {}}]}
    mounts = [{"name": "room", "mountPath": "/room"}]
    as_root = {"runAsUser": 0, "readOnlyRootFilesystem": True}
    run("root", "sh", "-c", script, pod=pod, volumeMounts=mounts, securityContext=as_root)
    run("user", "sh", "-c", script, pod=pod, volumeMounts=mounts, securityContext=RESTRICTED)
    assert ended("root")[2].count("Read-only file system") == 2
    _, _, said = ended("user")
    assert said.startswith("room\n")
    assert "touch: cannot touch '/tmp/file': Read-only file system" in said
    assert said.endswith("NoNewPrivs:\t1\n")
    run("loose", "sh", "-c", "touch /opt/file /etc/file /tmp/file", securityContext={"runAsUser": 0})
    assert ended("loose") == (0, "", "")
    assert not Path("/opt/file").exists()


def test_what_cannot_start_says_why(core, space, run, ended, container):
    run("root", "true", securityContext={"runAsUser": 0, "runAsNonRoot": True})
    run("absent", "true", image="missing/image:1")
    run("keyless", "true", env=[{"name": "A", "valueFrom": {"configMapKeyRef": {"name": "none", "key": "a"}}}])
    run("wrong", "no-such-command")

    def waits(name: str, reason: str) -> str:
        state = lambda: container(name).state.waiting  # noqa: E731
        return until(lambda: (found := state()) and found.reason == reason and found, f"{name}: {reason}").message

    assert "breaks non-root policy" in waits("root", "CreateContainerConfigError")
    assert "missing/image:1" in waits("absent", "ImagePullBackOff")
    assert waits("keyless", "CreateContainerConfigError") == 'configmap "none" not found'
    code, message, _ = ended("wrong")
    assert (code, message) == (128, 'exec: "no-such-command": executable file not found in $PATH')
    core.create_namespaced_config_map(space, {"metadata": {"name": "none"}, "data": {"a": "1"}})
    assert ended("keyless")[0] == 0


def test_the_data_of_a_claim_outlive_a_pod(core, space, run, ended):
    claim = {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}}
    core.create_namespaced_persistent_volume_claim(space, {"metadata": {"name": "data"}, "spec": claim})
    volume = {"name": "data", "persistentVolumeClaim": {"claimName": "data"}}
    mounts = [{"name": "data", "mountPath": "/data"}]
    pod = {"volumes": [volume], "securityContext": {"fsGroup": 65532}}
    run("writes", "sh", "-c", "echo kept > /data/file", pod=pod, volumeMounts=mounts, securityContext=RESTRICTED)
    assert ended("writes")[0] == 0
    core.delete_namespaced_pod("writes", space)
    run("reads", "cat", "/data/file", pod=pod, volumeMounts=mounts, securityContext=RESTRICTED)
    assert ended("reads") == (0, "", "kept\n")
    bound = core.read_namespaced_persistent_volume_claim("data", space)
    assert bound.status.phase == "Bound"
    core.delete_namespaced_pod("reads", space)
    core.delete_namespaced_persistent_volume_claim("data", space)
    until(
        lambda: all(v.metadata.name != bound.spec.volume_name for v in core.list_persistent_volume().items), "its end"
    )


def test_a_pod_is_asked_to_end_and_then_ended(core, space, node, run):
    script = "import signal, time\nsignal.signal(signal.SIGTERM, lambda *_: print('asked', flush=True))\n"
    script += "print('up', flush=True)\nwhile True: time.sleep(9)"
    pod = {"terminationGracePeriodSeconds": 2}
    run("deaf", "python", "-c", script, pod=pod)
    run("polite", "sh", "-c", "trap 'echo bye; exit 0' TERM; echo up; while true; do sleep 0.1; done", pod=pod)

    def written(name: str) -> str:
        try:
            return node.logs(space, name, "main").read_text()
        except LookupError:
            return ""

    for name in ("deaf", "polite"):
        until(lambda name=name: written(name) == "up\n", f"the start of {name}")
        core.delete_namespaced_pod(name, space)
    began = time.monotonic()
    left = lambda: {pod.metadata.name for pod in core.list_namespaced_pod(space).items}  # noqa: E731
    until(lambda: "polite" not in left(), "the polite one's end", 2)
    assert written("polite") == "up\nbye\n"
    assert left() == {"deaf"}
    until(lambda: not left(), "the deaf one's end")
    assert 1 < time.monotonic() - began < 6
    assert written("deaf") == "up\nasked\n"


def test_a_container_is_started_again(core, space, run, container):
    probe = {"exec": {"command": ["sh", "-c", "test ! -e /tmp/sick"]}, "periodSeconds": 1, "failureThreshold": 1}
    always = {"restartPolicy": "Always", "terminationGracePeriodSeconds": 1}
    script = "trap exit TERM; touch /tmp/sick; while :; do sleep 0.1; done"
    run("sick", "sh", "-c", script, pod=always, livenessProbe=probe)
    run("fails", "sh", "-c", "exit 7", pod=always)
    until(lambda: container("sick").restart_count >= 1, "a restart")
    until(lambda: container("fails").restart_count >= 2, "restarts")
    assert container("fails").last_state.terminated.exit_code == 7
    assert core.read_namespaced_pod("fails", space).status.phase == "Running"


def test_it_goes_on_when_the_api_server_was_away(plane, core, space, run, ended, container):
    run("stays", "sleep", "1000")
    until(lambda: container("stays").state.running, "a pod")
    run("ends", "sleep", "1")
    until(lambda: container("ends").state.running, "another")
    plane.restart_apiserver()
    assert ended("ends")[0] == 0
    assert (container("stays").state.running is not None, container("stays").restart_count) == (True, 0)


def left(folder: Path, process: int) -> dict[str, list[str]]:
    """What of a node's process is on this machine. Its namespaces live as long as a process or a mount has them."""
    running = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            known = (entry / "cmdline").read_bytes() + (entry / "mounts").read_bytes()
        except OSError:  # it has ended since
            continue
        if str(folder).encode() in known:
            running.append(entry.name)
    links = json.loads(subprocess.run(["ip", "-json", "link"], capture_output=True, check=True).stdout)
    bridge = f"lbk{process}-0"
    return {
        "processes": running,
        "links": [link["ifname"] for link in links if bridge in (link["ifname"], link.get("master"))],
        "mounts": [line for line in Path("/proc/self/mounts").read_text().splitlines() if str(folder) in line],
    }


@pytest.mark.parametrize("end", ["stopped", "killed"])
def test_nothing_is_left_of_a_node(plane, core, tmp_path, end):
    name = f"node-{end}"
    script = f"""
import sys
from pathlib import Path
from types import SimpleNamespace
from tests.cluster.node import Node
from kubernetes import client, config
settings = client.Configuration()
config.load_kube_config({str(plane.admin)!r}, client_configuration=settings)
plane = SimpleNamespace(
    client=lambda: client.ApiClient(settings), service_address={plane.service_address!r}, port={plane.port}
)
with Node(plane, Path({str(tmp_path)!r}) / "node", name={name!r}):
    sys.stdin.read()
"""
    process = subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE)
    container = {"name": "main", "image": "any", "command": ["sh", "-c", "sleep 1000 & sleep 1000"]}
    volume = {"name": "quick", "emptyDir": {"medium": "Memory"}}
    spec = {"nodeName": name, "containers": [container], "volumes": [volume]}
    core.create_namespaced_pod("default", {"metadata": {"name": name}, "spec": spec})
    until(lambda: core.read_namespaced_pod(name, "default").status.phase == "Running", "a pod")
    # The node, the sandbox, the container's watcher, a shell and two that sleep; the bridge and the pod's end on it.
    until(lambda: [len(found) for found in left(tmp_path, process.pid).values()] == [6, 2, 0], "all of it")
    if end == "stopped":
        process.communicate(timeout=30)
        assert [entry.name for entry in (tmp_path / "node").iterdir()] == ["logs"]
    else:
        process.kill()
        process.wait()
        until(lambda: left(tmp_path, process.pid)["processes"] == [], "the end of its processes")
        with Node(plane, tmp_path / "another", name="another"):  # it takes away what the kernel does not
            pass
    assert left(tmp_path, process.pid) == {"processes": [], "links": [], "mounts": []}
    core.delete_namespaced_pod(name, "default", grace_period_seconds=0)
