"""The objects that the chart makes of its values."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

import pytest
import typer.main
import yaml
from prometheus_client import generate_latest

from charts.generate import rules, values
from limbeck.cli import app
from limbeck.spec import Distillation
from limbeck.specfile import read_shared
from limbeck.summary import Summary
from limbeck_operator.cache import Cache
from limbeck_operator.crds import crds
from limbeck_operator.metrics import Metrics, condition_of
from limbeck_operator.queue import WorkQueue
from tests.charts.rendering import (
    CHART,
    COMBINATIONS,
    DIGEST,
    FURNISHED,
    HELMS,
    IN_EARNEST,
    NAMESPACE_MODE,
    ROOT,
    TRYING_OUT,
    Refused,
    defaults,
    documents,
    find,
    pods,
    render,
    text,
    tool,
)
from tests.stages.tiny import workshop

CLUSTER_SCOPED = {"ClusterRole", "ClusterRoleBinding", "CustomResourceDefinition"}


def container(pod):
    (only,) = pod["spec"]["containers"]
    return only


# every combination


@pytest.mark.parametrize("values", COMBINATIONS.values(), ids=COMBINATIONS)
def test_both_helms_make_the_same_of_it(values):
    first, second = (render(values, helm) for helm in HELMS)
    assert sorted(map(json.dumps, first)) == sorted(map(json.dumps, second))


@pytest.mark.parametrize("values", COMBINATIONS.values(), ids=COMBINATIONS)
def test_every_pod_keeps_to_the_restricted_standard_and_its_space_is_bounded(values):
    for name, pod in pods(render(values)).items():
        spec = pod["spec"]
        assert spec["securityContext"]["runAsNonRoot"] is True, name
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        for entry in [*spec["containers"], *spec.get("initContainers", [])]:
            context = entry["securityContext"]
            assert context["readOnlyRootFilesystem"] is True
            assert context["allowPrivilegeEscalation"] is False
            assert context["capabilities"] == {"drop": ["ALL"]}
            assert "/tmp" in {mount["mountPath"] for mount in entry["volumeMounts"]}
        assert all(volume["emptyDir"].get("sizeLimit") for volume in spec["volumes"] if "emptyDir" in volume)
        assert spec["enableServiceLinks"] is False


@pytest.mark.parametrize("values", COMBINATIONS.values(), ids=COMBINATIONS)
def test_the_operator_takes_its_options_and_its_file(values, tmp_path):
    manifests = render(values)
    command = typer.main.get_command(app).commands["operator"]
    (deployment,) = [m for m in manifests if m["kind"] == "Deployment" and "mlflow" not in m["metadata"]["name"]]
    taken = container(deployment["spec"]["template"])
    assert taken["command"] == ["limbeck", "operator"]
    command.make_context("operator", list(taken["args"]))  # raises what the command line would refuse
    file = tmp_path / "defaults.yaml"
    (map_,) = [m for m in manifests if m["kind"] == "ConfigMap" and m["metadata"]["name"].endswith("-defaults")]
    file.write_text(map_["data"]["defaults.yaml"])
    read_shared(file)


@pytest.mark.parametrize("values", COMBINATIONS.values(), ids=COMBINATIONS)
def test_a_selector_finds_the_pods_of_its_own_component_alone(values):
    manifests = render(values)
    labels = {name: pod["metadata"]["labels"] for name, pod in pods(manifests).items()}
    for manifest in manifests:
        spec = manifest.get("spec") or {}
        selector = spec.get("podSelector") or spec.get("selector")
        if manifest["kind"] in ("Service", "PodDisruptionBudget", "NetworkPolicy", "Deployment"):
            wanted = selector.get("matchLabels", selector)
            found = [name for name, given in labels.items() if wanted.items() <= given.items()]
            assert found == [manifest["metadata"]["name"]]


@pytest.mark.parametrize("helm", HELMS)
def test_helm_has_nothing_to_find_fault_with(helm):
    command = [tool(helm), "lint", "--strict", "--kube-version", "1.36", str(CHART)]
    said = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert said.returncode == 0, said.stdout


# names and images


@pytest.mark.parametrize(
    ("release", "given", "name"),
    [
        ("limbeck", {}, "limbeck-operator"),
        ("blue", {}, "blue-limbeck-operator"),
        ("blue", {"nameOverride": "still"}, "blue-still-operator"),
        ("blue", {"fullnameOverride": "still"}, "still-operator"),
        ("a" * 53, {}, "a" * 40 + "-operator"),
    ],
)
def test_names_are_of_the_release(release, given, name):
    assert find(render(given, release=release), "Deployment")["metadata"]["name"] == name


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        ({}, "limbeck:0.1.0"),
        ({"repository": "r.example.com/x", "tag": "v2"}, "r.example.com/x:v2"),
        ({"repository": "r.example.com/x", "tag": "v2", "digest": DIGEST}, f"r.example.com/x@{DIGEST}"),
    ],
)
def test_everything_runs_from_one_image_by_digest_where_there_is_one(image, expected):
    manifests = render({"image": image, "mlflow": {"enabled": True}})
    assert {container(pod)["image"] for pod in pods(manifests).values()} == {expected}
    assert f"--image={expected}" in container(pods(manifests)["limbeck-operator"])["args"]


def test_mlflow_may_have_an_image_of_its_own():
    (upgrade,) = pods(render(IN_EARNEST))["limbeck-mlflow"]["spec"]["initContainers"]
    assert upgrade["image"] == "registry.example.com/mlflow:3.17.2"
    assert upgrade["command"] == ["mlflow", "db", "upgrade", "$(MLFLOW_BACKEND_STORE_URI)"]


def test_pull_secrets_are_those_of_all_pods_and_of_runs():
    manifests = render(IN_EARNEST)
    assert all(pod["spec"]["imagePullSecrets"] == [{"name": "registry"}] for pod in pods(manifests).values())
    assert defaults(manifests)["execution"]["imagePullSecrets"] == ["registry"]


# rights


def test_in_cluster_mode_objects_are_a_cluster_role_s_and_the_lease_a_role_s():
    manifests = render()
    split = rules((ROOT / "operator" / "rbac" / "role.yaml").read_text())
    assert find(manifests, "ClusterRole", "limbeck-operator")["rules"] == split["objects"]
    assert find(manifests, "Role", "limbeck-operator-lease")["rules"] == split["lease"]
    for kind, name in (("ClusterRoleBinding", "limbeck-operator"), ("RoleBinding", "limbeck-operator-lease")):
        binding = find(manifests, kind, name)
        assert binding["subjects"] == [{"kind": "ServiceAccount", "name": "limbeck-operator", "namespace": "lab"}]
        assert binding["roleRef"]["name"] == name
    args = container(pods(manifests)["limbeck-operator"])["args"]
    assert "--lease-namespace=lab" in args
    assert not any(arg.startswith("--namespace") for arg in args)


@pytest.mark.parametrize("watched", ["", "team"])
def test_in_namespace_mode_nothing_is_of_the_cluster(watched):
    manifests = render({**NAMESPACE_MODE, **TRYING_OUT, "watchNamespace": watched})
    assert not {manifest["kind"] for manifest in manifests} & CLUSTER_SCOPED
    where = watched or "lab"
    role = find(manifests, "Role", "limbeck-operator")
    split = rules((ROOT / "operator" / "rbac" / "role.yaml").read_text())
    assert (role["metadata"]["namespace"], role["rules"]) == (where, split["objects"])
    assert find(manifests, "RoleBinding", "limbeck-operator")["metadata"]["namespace"] == where
    assert find(manifests, "Role", "limbeck-operator-lease")["metadata"]["namespace"] == "lab"
    assert find(manifests, "PersistentVolumeClaim", "limbeck-results")["metadata"]["namespace"] == where
    assert f"--namespace={where}" in container(pods(manifests)["limbeck-operator"])["args"]
    egress = find(manifests, "NetworkPolicy", "limbeck-operator")["spec"]["egress"]
    (runs,) = [rule["to"] for rule in egress if rule["ports"] == [{"port": 8081}]]
    assert runs[0]["namespaceSelector"] == {"matchLabels": {"kubernetes.io/metadata.name": where}}


def test_a_namespace_to_watch_takes_namespace_mode():
    with pytest.raises(Refused, match=r"it takes rbac\.scope namespace"):
        render({"watchNamespace": "team"})


def test_each_definition_has_its_roles_that_add_to_admin_edit_and_view():
    found = {}
    for manifest in render():
        for label in manifest["metadata"]["labels"]:
            if label.startswith("rbac.authorization.k8s.io/aggregate-to-"):
                rule = manifest["rules"][0]
                found[rule["resources"][0], label.rpartition("-")[2]] = rule["verbs"]
    look = ["get", "list", "watch"]
    change = [*look, "create", "update", "patch", "delete"]
    plurals = [definition["spec"]["names"]["plural"] for definition in crds().values()]
    roles = {"view": look, "edit": change, "admin": [*change, "deletecollection"]}
    assert found == {(plural, role): verbs for plural in plurals for role, verbs in roles.items()}
    without = render({"rbac": {"aggregateRoles": False}})
    assert [m["metadata"]["name"] for m in without if m["kind"] == "ClusterRole"] == ["limbeck-operator"]


def test_only_the_operator_and_the_test_are_given_a_token():
    manifests = render(IN_EARNEST)
    given = {name for name, pod in pods(manifests).items() if pod["spec"]["automountServiceAccountToken"]}
    assert given == {"limbeck-operator", "limbeck-test"}
    accounts = [manifest for manifest in manifests if manifest["kind"] == "ServiceAccount"]
    assert {a["metadata"]["name"] for a in accounts} == {f"limbeck-{n}" for n in ("operator", "mlflow", "run", "test")}
    assert not any(account["automountServiceAccountToken"] for account in accounts)


# definitions


@pytest.mark.parametrize("helm", HELMS)
def test_the_definitions_reach_the_cluster_unchanged_and_are_kept(helm):
    found = [m for m in render({}, helm) if m["kind"] == "CustomResourceDefinition"]
    assert {m["spec"]["names"]["kind"]: m["spec"] for m in found} == {k: d["spec"] for k, d in crds().items()}
    for manifest in found:
        assert manifest["metadata"]["annotations"] == {"helm.sh/resource-policy": "keep"}
        assert manifest["metadata"]["labels"]["app.kubernetes.io/part-of"] == "limbeck"


def test_the_definitions_go_with_the_release_if_so_wanted_or_are_not_there():
    found = [m for m in render({"crds": {"keep": False}}) if m["kind"] == "CustomResourceDefinition"]
    assert len(found) == 2
    assert not any("annotations" in m["metadata"] for m in found)
    annotated = find(render(FURNISHED), "CustomResourceDefinition", "distillations.limbeck.dev")["metadata"]
    assert set(annotated["annotations"]) == {"helm.sh/resource-policy", "argocd.argoproj.io/sync-options"}
    assert not [m for m in render({"crds": {"enabled": False}}) if m["kind"] == "CustomResourceDefinition"]


# what objects inherit


def test_by_default_objects_inherit_nothing():
    assert defaults(render()) == {}


@pytest.mark.parametrize("helm", HELMS)
def test_what_is_given_is_inherited_and_large_numbers_stay_whole(helm):
    given = IN_EARNEST["defaults"]
    found = defaults(render(IN_EARNEST, helm))
    assert found["output"] == given["output"]
    assert found["tracking"] == {"experiment": "nightly", "uri": "http://limbeck-mlflow.lab.svc:5000"}
    execution = found["execution"]
    assert {name: execution[name] for name in given["execution"]} == given["execution"]
    assert type(execution["activeDeadlineSeconds"]) is int


def test_storage_is_a_volume_of_every_run_and_where_results_go():
    found = defaults(render({**TRYING_OUT, "storage": {"enabled": True, "mountPath": "/results"}}))
    assert found["output"] == {"uri": "/results"}
    assert found["execution"]["volumes"] == [{"claim": "limbeck-results", "mountPath": "/results"}]
    own = {"output": {"uri": "gs://b"}, "execution": {"volumes": [{"claim": "data", "mountPath": "/data"}]}}
    found = defaults(render({**TRYING_OUT, "defaults": own}))
    assert found["output"] == {"uri": "gs://b"}
    assert [volume["claim"] for volume in found["execution"]["volumes"]] == ["data", "limbeck-results"]


def test_a_tracking_uri_that_is_given_comes_before_the_chart_s_mlflow():
    found = defaults(render({**TRYING_OUT, "defaults": {"tracking": {"uri": "https://mlflow.example.com"}}}))
    assert found["tracking"] == {"uri": "https://mlflow.example.com"}


def test_the_service_account_of_runs_is_inherited_where_it_is_in_their_namespace():
    account = {"runs": {"serviceAccount": {"create": True}}}
    assert defaults(render({**NAMESPACE_MODE, **account}))["execution"] == {"serviceAccount": "limbeck-run"}
    assert defaults(render(account)) == {}


def test_a_change_of_what_is_inherited_rolls_the_operator():
    def mark(values):
        return pods(render(values))["limbeck-operator"]["metadata"]["annotations"]["limbeck.dev/defaults"]

    assert mark({}) == mark({"operator": {"replicas": 5}})
    assert mark({}) != mark({"defaults": {"output": {"uri": "gs://b"}}})


# the operator


def test_it_has_two_replicas_that_are_spread_and_leave_one_at_evictions():
    manifests = render()
    deployment = find(manifests, "Deployment")
    assert deployment["spec"]["replicas"] == 2
    selector = deployment["spec"]["selector"]["matchLabels"]
    (spread,) = deployment["spec"]["template"]["spec"]["topologySpreadConstraints"]
    assert spread["labelSelector"] == {"matchLabels": selector}
    assert find(manifests, "PodDisruptionBudget")["spec"]["maxUnavailable"] == 1
    alone = render({"operator": {"replicas": 1}})
    assert not [m for m in alone if m["kind"] == "PodDisruptionBudget"]  # it would block every drain


def test_it_knows_its_pod_s_name_and_is_probed_where_it_answers():
    taken = container(pods(render())["limbeck-operator"])
    variables = {entry["name"]: entry for entry in taken["env"]}
    assert variables["LIMBECK_POD_NAME"]["valueFrom"] == {"fieldRef": {"fieldPath": "metadata.name"}}
    assert taken["ports"] == [{"name": "http", "containerPort": 8080}]
    assert taken["livenessProbe"]["httpGet"] == {"path": "/healthz", "port": "http"}
    assert taken["readinessProbe"]["httpGet"] == {"path": "/readyz", "port": "http"}


def test_everything_further_that_is_given_is_there():
    manifests = render(FURNISHED)
    pod = pods(manifests)["limbeck-operator"]
    given, taken = FURNISHED["operator"], container(pods(manifests)["limbeck-operator"])
    assert taken["args"][-1] == "--workers=16"
    assert taken["env"][-1] == given["extraEnv"][0]
    assert taken["envFrom"] == given["extraEnvFrom"]
    assert taken["volumeMounts"][-1] == given["extraVolumeMounts"][0]
    assert pod["spec"]["volumes"][-1] == given["extraVolumes"][0]
    assert pod["metadata"]["labels"]["mesh"] == "no"
    assert pod["metadata"]["annotations"]["example.com/note"] == "x"
    for field in ("nodeSelector", "tolerations", "affinity", "priorityClassName"):
        assert pod["spec"][field] == given[field]
    assert pod["spec"]["topologySpreadConstraints"][0]["topologyKey"] == "topology.kubernetes.io/zone"
    assert find(manifests, "ConfigMap", "limbeck-more")["data"] == {"a": "b"}
    assert find(manifests, "ConfigMap", "text")["data"] == {"release": "limbeck"}


def test_labels_of_all_are_on_all():
    assert all(m["metadata"]["labels"]["team"] == "vision" for m in render(IN_EARNEST))


def test_kubeflow_is_shown_a_token_of_its_own_and_checked_with_the_certificates_that_are_given():
    pod = pods(render(IN_EARNEST))["limbeck-operator"]
    args = container(pod)["args"]
    assert "--kubeflow-host=https://kubeflow.example.com/pipeline" in args
    assert "--kubeflow-token-file=/var/run/secrets/kubeflow/token" in args
    assert "--kubeflow-ca-file=/etc/kubeflow/ca.crt" in args
    volumes = {volume["name"]: volume for volume in pod["spec"]["volumes"]}
    (source,) = volumes["kubeflow-token"]["projected"]["sources"]
    assert source["serviceAccountToken"]["audience"] == "pipelines.kubeflow.org"
    assert volumes["kubeflow-ca"]["configMap"] == {"name": "kubeflow-ca"}
    plain = pods(render(COMBINATIONS["Kubeflow without a token"]))["limbeck-operator"]
    assert {volume["name"] for volume in plain["spec"]["volumes"]} == {"defaults", "tmp"}


# networks


@pytest.mark.parametrize(
    ("host", "port"),
    [
        ("https://kubeflow.example.com/pipeline", 443),
        ("http://ml-pipeline.kubeflow", 80),
        ("http://ml-pipeline.kubeflow:8888", 8888),
    ],
)
def test_the_operator_reaches_names_the_api_server_runs_and_kubeflow_and_no_more(host, port):
    manifests = render({"kubeflow": {"host": host}})
    policy = find(manifests, "NetworkPolicy")["spec"]
    assert policy["policyTypes"] == ["Ingress", "Egress"]
    assert policy["ingress"] == [{"ports": [{"port": 8080}]}]
    ports = [[entry["port"] for entry in rule["ports"]] for rule in policy["egress"]]
    assert ports == [[53, 53], [443, 6443, 8443, 16443], [8081], [port]]
    runs = policy["egress"][2]["to"]
    labels = [{"key": "limbeck.dev/distillation", "operator": "Exists"}]
    assert runs == [{"podSelector": {"matchExpressions": labels}, "namespaceSelector": {}}]


def test_networks_are_closed_further_as_given():
    manifests = render(IN_EARNEST)
    given, policy = IN_EARNEST["networkPolicy"], find(manifests, "NetworkPolicy", "limbeck-operator")["spec"]
    assert policy["ingress"] == [{"ports": [{"port": 8080}], "from": given["metricsFrom"]}]
    assert {"ports": [{"port": 443}], "to": [{"ipBlock": {"cidr": "10.0.0.1/32"}}]} in policy["egress"]
    assert policy["egress"][-1] == given["extraEgress"][0]
    mlflow = find(manifests, "NetworkPolicy", "limbeck-mlflow")["spec"]
    assert mlflow["ingress"] == [{"ports": [{"port": 5000}], "from": given["mlflowFrom"]}]
    assert mlflow["policyTypes"] == ["Ingress"]


def test_every_service_has_the_port_of_its_container():
    manifests = render({"mlflow": {"enabled": True, "service": {"port": 5001}}})
    for manifest in manifests:
        if manifest["kind"] == "Service":
            (port,) = manifest["spec"]["ports"]
            (there,) = container(pods(manifests)[manifest["metadata"]["name"]])["ports"]
            assert port["port"] == port["targetPort"] == there["containerPort"]


# MLflow


def test_it_keeps_its_data_on_a_volume_or_elsewhere():
    pod = pods(render(TRYING_OUT))["limbeck-mlflow"]
    variables = {entry["name"]: entry for entry in container(pod)["env"]}
    assert variables["MLFLOW_BACKEND_STORE_URI"]["value"] == "sqlite:////mlflow/mlflow.db"
    assert {"name": "data", "persistentVolumeClaim": {"claimName": "limbeck-mlflow"}} in pod["spec"]["volumes"]
    manifests = render(IN_EARNEST)
    pod = pods(manifests)["limbeck-mlflow"]
    variables = {entry["name"]: entry for entry in container(pod)["env"]}
    reference = {"secretKeyRef": {"name": "mlflow-database", "key": "uri"}}
    assert variables["MLFLOW_BACKEND_STORE_URI"] == {"name": "MLFLOW_BACKEND_STORE_URI", "valueFrom": reference}
    assert "--artifacts-destination=gs://bucket/mlflow" in container(pod)["args"]
    assert [volume["name"] for volume in pod["spec"]["volumes"]] == ["tmp"]
    assert not [m for m in manifests if m["kind"] == "PersistentVolumeClaim"]
    assert "strategy" not in find(manifests, "Deployment", "limbeck-mlflow")["spec"]


def test_two_servers_never_share_a_volume():
    assert find(render(TRYING_OUT), "Deployment", "limbeck-mlflow")["spec"]["strategy"] == {"type": "Recreate"}
    with pytest.raises(Refused, match=r"takes mlflow\.database\.existingSecret and"):
        render({"mlflow": {"enabled": True, "replicas": 2}})


def test_an_image_of_its_own_takes_a_tag():
    with pytest.raises(Refused, match=r"mlflow\.image\.tag or mlflow\.image\.digest is needed"):
        render({"mlflow": {"enabled": True, "image": {"repository": "x"}}})


def test_hosts_that_are_given_may_also_change_things_from_their_own_pages():
    args = container(pods(render(IN_EARNEST))["limbeck-mlflow"])["args"]
    options = dict(arg.split("=", 1) for arg in args if "=" in arg)
    hosts = options["--allowed-hosts"].split(",")
    assert {"limbeck-mlflow.lab.svc:5000", "limbeck-mlflow.lab.svc.cluster.local", "mlflow.example.com"} <= set(hosts)
    origins = options["--cors-allowed-origins"].split(",")
    assert {"https://mlflow.example.com", "https://*.lab.example.com", "https://notebooks.example.com"} <= set(origins)
    anyone = {"mlflow": {"enabled": True, "allowedHosts": ["*"]}}
    assert "://*" not in " ".join(container(pods(render(anyone))["limbeck-mlflow"])["args"])


# monitoring


def test_alerts_and_dashboard_ask_for_metrics_that_there_are():
    kube = type("Kube", (), {"requests": {("GET", "Job"): 1}})()
    metrics = Metrics(lambda: WorkQueue(), Cache(condition_of), kube, lambda: True)
    known = set(re.findall(r"^# TYPE (\S+)", generate_latest(metrics.registry).decode(), flags=re.MULTILINE))
    manifests = render(IN_EARNEST)
    rule = find(manifests, "PrometheusRule")["spec"]["groups"][0]["rules"]
    dashboard = json.loads(find(manifests, "ConfigMap", "limbeck-operator-dashboard")["data"]["limbeck.json"])
    queries = [entry["expr"] for entry in rule]
    queries += [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    asked = {name for query in queries for name in re.findall(r"limbeck_[a-z_]+", query)}
    assert {re.sub(r"_(bucket|count|sum)$", "", name) for name in asked} <= known
    assert known <= {re.sub(r"_(bucket|count|sum)$", "", name) for name in asked} | {
        name for name in known if name.endswith("_created")
    }


def test_alerts_are_of_this_release_alone_and_are_explained():
    rules_ = find(render(IN_EARNEST), "PrometheusRule")["spec"]["groups"][0]["rules"]
    assert rules_[-1] == {"alert": "Mine", "expr": "limbeck_leader > 3"}
    for rule in rules_[:-1]:
        assert 'namespace="lab",service="limbeck-operator"' in rule["expr"]
        assert rule["annotations"]["summary"]
    assert "{{ $labels.kind }}" in json.dumps(rules_)


def test_the_monitor_finds_the_service():
    manifests = render(IN_EARNEST)
    monitor, service = find(manifests, "ServiceMonitor"), find(manifests, "Service", "limbeck-operator")
    assert monitor["spec"]["selector"]["matchLabels"].items() <= service["metadata"]["labels"].items()
    assert monitor["spec"]["endpoints"][0]["port"] == service["spec"]["ports"][0]["name"]
    assert monitor["metadata"]["labels"]["release"] == "prometheus"


# helm test


def test_what_helm_test_runs_is_a_distillation_and_nothing_of_it_needs_more_rights():
    manifests = render({"tests": {"spec": {"registry": {"name": "helm-test"}, "seed": 3}}})
    document = yaml.safe_load(find(manifests, "ConfigMap", "limbeck-test")["data"]["distillation.yaml"])
    distillation = Distillation.model_validate(document)
    assert (distillation.metadata.name, distillation.spec.seed) == ("limbeck-test", 3)
    assert distillation.spec.registry.name == "helm-test"
    assert "output" not in document["spec"]
    role = find(manifests, "Role", "limbeck-test")["rules"]
    assert {verb for rule in role for verb in rule["verbs"]} == {"create", "get", "delete"}
    hooks = [m for m in manifests if m["metadata"].get("annotations", {}).get("helm.sh/hook") == "test"]
    assert {m["kind"] for m in hooks} == {"ServiceAccount", "Role", "RoleBinding", "ConfigMap", "Pod"}


def test_what_helm_test_runs_is_enough_to_recover_a_gap(tmp_path):
    from limbeck.runner import Run

    document = yaml.safe_load((CHART / "files" / "test.yaml").read_text())
    document["spec"] |= {"output": {"uri": str(tmp_path)}, "tracking": {"enabled": False}}
    summary: Summary = Run(Distillation.model_validate(document), workshop(str(tmp_path))).all()
    assert summary.distilled.images == 20
    assert all(gap.value is not None for gap in summary.recovered_gaps)


# refusals


def sections():
    return [value.path for value in values((CHART / "values.yaml").read_text()) if value.is_section]


@pytest.mark.parametrize("section", ["", *sections()])
def test_a_mistyped_key_is_refused_in_every_section(section):
    given: dict = {}
    place = given
    for name in filter(None, section.split(".")):
        place = place.setdefault(name, {})
    place["replicsa"] = 1
    with pytest.raises(Refused, match="replicsa"):
        render(given)


@pytest.mark.parametrize("helm", HELMS)
@pytest.mark.parametrize(
    ("given", "named"),
    [
        ({"operator": {"replicas": "two"}}, "replicas"),
        ({"operator": {"replicas": -1}}, "replicas"),
        ({"rbac": {"scope": "galaxy"}}, "scope"),
        ({"image": {"digest": "sha256:short"}}, "digest"),
        ({"imagePullSecrets": ["registry"]}, "imagePullSecrets"),
        ({"storage": {"size": "plenty"}}, "size"),
        ({"mlflow": {"service": {"port": 80}}}, "port"),
        ({"defaults": {"outptu": {}}}, "outptu"),
    ],
)
def test_what_is_wrong_is_refused_by_its_name(helm, given, named):
    with pytest.raises(Refused, match=named):
        render(given, helm)


@pytest.mark.parametrize("helm", HELMS)
def test_an_old_kubernetes_is_refused(helm):
    with pytest.raises(Refused, match=r"kubeVersion: >=1\.30"):
        render({}, helm, "--kube-version", "1.29")


# the notes


@pytest.mark.parametrize("helm", HELMS)
@pytest.mark.parametrize(
    ("given", "contains", "lacks"),
    [
        ({}, ["every object must say its output.uri", "of all namespaces."], ["MLflow is at"]),
        (
            {**NAMESPACE_MODE, "watchNamespace": "team"},
            ["namespace team", "apply -n team", "crds.enabled is false"],
            [],
        ),
        (TRYING_OUT, ["http://limbeck-mlflow.lab.svc:5000", "port-forward"], ["every object must say"]),
    ],
)
def test_the_notes_say_the_next_three_commands(helm, given, contains, lacks):
    said = notes(helm, given)
    for command in ("kubectl rollout status -n lab", "helm test limbeck -n lab --logs", "kubectl apply -n"):
        assert said.count(command) == 1
    assert all(part in said for part in contains)
    assert not any(part in said for part in lacks)


def notes(helm, given):
    """What NOTES.txt becomes: it is rendered as a template, which `helm template` leaves out."""
    import shutil
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "limbeck"
        shutil.copytree(CHART, copy)
        (copy / "templates" / "NOTES.txt").rename(copy / "templates" / "_notes.tpl")
        body = (copy / "templates" / "_notes.tpl").read_text()
        (copy / "templates" / "_notes.tpl").write_text('{{ define "notes" }}' + body + "{{ end }}")
        shown = '{"kind": "Notes", "metadata": {"name": "notes"}, "text": {{ include "notes" . | toJson }}}\n'
        (copy / "templates" / "notes.yaml").write_text(shown)
        return find(documents(text(given, helm, chart=copy)), "Notes")["text"]
