# ruff: noqa: F811 -- a fixture that is imported is an argument too
"""The components' functions, called as Kubeflow calls them: artifacts, metadata, and what goes wrong."""

from __future__ import annotations

import inspect
import json
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from kfp import dsl

from limbeck.errors import WorkError
from limbeck.store import Store
from limbeck_components import work
from limbeck_components.encoders.component import encoders
from limbeck_components.evaluate.component import evaluate
from limbeck_components.fingerprint.component import fingerprint
from limbeck_components.ingest.component import ingest
from limbeck_components.readme import COMPONENTS
from limbeck_components.targets.component import targets
from tests.stages.tiny import distillation, finished, one_thread, write_tiny  # noqa: F401 - fixtures

ROOT = Path(work.__file__).parent


@pytest.fixture
def output(tmp_path: Path, finished: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(work, "_TERMINATION_LOG", tmp_path / "termination-log")
    (tmp_path / "termination-log").touch()
    return Path(shutil.copytree(finished, tmp_path / "out"))


def spec(output: Path, changes: dict[str, Any] | None = None) -> str:
    return distillation(output, changes).model_dump_json(by_alias=True)


def artifact(kind: type, tmp_path: Path, name: str) -> Any:
    return kind(name=name, uri=str(tmp_path / "artifacts" / name), metadata={})


def test_a_stage_names_its_result_and_describes_it(tmp_path, output):
    sources = fingerprint.python_func(spec(output))
    dataset, metrics = artifact(dsl.Dataset, tmp_path, "dataset"), artifact(dsl.Metrics, tmp_path, "metrics")
    ingest.python_func(spec(output), sources, dataset, metrics)
    record = json.loads(Path(dataset.path).read_text())
    assert record["location"] == str(output / "ingest" / record["key"])
    assert dataset.metadata["digest"] == record["digest"]
    assert json.loads(dataset.metadata["settings"])["limit"] == 200
    assert dataset.metadata["files"] >= 1
    assert metrics.metadata["seconds"] >= 0


def test_the_sources_are_looked_at_by_the_first_two_tasks_alone(tmp_path, output, monkeypatch):
    sources = fingerprint.python_func(spec(output))
    dataset, metrics = artifact(dsl.Dataset, tmp_path, "dataset"), artifact(dsl.Metrics, tmp_path, "metrics")
    ingest.python_func(spec(output), sources, dataset, metrics)
    monkeypatch.setattr("limbeck.runner.open_sources", lambda settings: pytest.fail("the sources were opened"))
    (store,) = (output / "teacher").glob("*/manifest.json")
    digest = Store(str(output)).find("teacher", store.parent.name).digest
    teacher = artifact(dsl.Model, tmp_path, "teacher")
    Path(teacher.path).write_text(json.dumps({"digest": digest}))
    made = artifact(dsl.Dataset, tmp_path, "made")
    targets.python_func(spec(output), sources, dataset, teacher, made, metrics)
    assert json.loads(Path(made.path).read_text())["stage"] == "targets"


def test_a_source_that_changes_under_a_run_fails_it(tmp_path, output, capsys):
    sources = json.loads(fingerprint.python_func(spec(output)))
    sources["fingerprints"]["test:digits"] = "another"
    given = artifact(dsl.Dataset, tmp_path, "dataset"), artifact(dsl.Metrics, tmp_path, "metrics")
    with pytest.raises(SystemExit) as end:
        ingest.python_func(spec(output), json.dumps(sources), *given)
    assert end.value.code == 1
    line = capsys.readouterr().err.strip().splitlines()[-1].removeprefix("limbeck failed: ")
    assert line == (
        "ingest: spec.evaluate.tasks[0].test.uri: sklearn:digits#test has changed since this run began; start a new run"
    )
    assert (tmp_path / "termination-log").read_text() == line  # what Kubernetes shows of the container
    for said, told in (("", line), ("Evicted", "Evicted")):  # what Kubeflow says of it, if it does
        work.record_outcome(spec(output), "FAILED", said, "a-run")
        record = json.loads((output / "runs/tiny/outcome.json").read_text())
        assert (record["state"], record["error"]) == ("FAILED", told)
    fingerprint.python_func(spec(output))  # another run begins
    work.record_outcome(spec(output), "FAILED", "", "another-run")
    assert json.loads((output / "runs/tiny/outcome.json").read_text())["error"] == ""


def test_what_is_no_error_of_ours_is_told_too(tmp_path, output, capsys, monkeypatch):
    monkeypatch.setattr("limbeck.runner.Run.fingerprints", lambda run: {}["nothing"])
    with pytest.raises(SystemExit) as end:
        fingerprint.python_func(spec(output))
    assert end.value.code == 1
    said = capsys.readouterr().err
    assert "Traceback" in said
    assert said.endswith("limbeck failed: fingerprint: KeyError: 'nothing'\n")


def test_an_older_kubeflow_calls_success_complete(output):
    work.record_outcome(spec(output), "COMPLETE", "", "a-run")
    assert json.loads((output / "runs/tiny/outcome.json").read_text())["state"] == "SUCCEEDED"


def test_an_outcome_is_recorded_where_ray_clusters_may_not_be_looked_for(output, capsys, monkeypatch):
    def refused(asked: Any) -> None:
        raise WorkError("the pod's service account may not list rayclusters in team")

    monkeypatch.setattr(work, "remove_clusters", refused)
    work.record_outcome(spec(output), "SUCCEEDED", "", "a-run")
    assert "may not list rayclusters" in capsys.readouterr().err
    assert json.loads((output / "runs/tiny/outcome.json").read_text())["state"] == "SUCCEEDED"


def test_a_cluster_is_made_only_where_something_is_to_be_done(tmp_path, output, monkeypatch):
    settings = {"execution": {"image": "limbeck", "ray": {"cluster": {"workerGroups": [{"name": "w", "replicas": 1}]}}}}
    text = spec(output, settings)
    sources = fingerprint.python_func(text)
    monkeypatch.setattr(work, "with_cluster", lambda *arguments: pytest.fail("a cluster was made"))
    with work._opened("trajectories", text, sources) as (_, shop):
        assert shop.fanout is None
    shutil.rmtree(output / "trajectories")
    asked = []

    @contextmanager
    def cluster(distillation: Any, stage: str, stop: Any) -> Iterator[Any]:
        asked.append(stage)
        yield distillation

    monkeypatch.setattr(work, "with_cluster", cluster)
    with work._opened("trajectories", text, sources) as (_, shop):
        assert shop.fanout is not None
    assert asked == ["trajectories"]


def test_a_summary_tells_what_this_run_made_and_how_long_all_of_it_took(tmp_path, output):
    text = spec(output)
    sources = fingerprint.python_func(text)
    (evaluated,) = output.glob("evaluate/*/manifest.json")
    os.utime(evaluated)  # as if it had been made since
    time.sleep(1.0)
    kinds = (dsl.Dataset, dsl.Metrics, dsl.HTML, dsl.Markdown)
    made = [artifact(kind, tmp_path, kind.__name__) for kind in kinds]
    work.conclude(text, sources, {}, *made)
    summary = json.loads((output / "runs/tiny/summary.json").read_text())
    assert [stage["name"] for stage in summary["stages"] if not stage["reused"]] == ["evaluate"]
    assert summary["seconds"] >= 1.0


def test_results_that_another_pod_cannot_see_are_told_from_missing_ones(tmp_path, output, capsys):
    sources = fingerprint.python_func(spec(output))
    synthetic = artifact(dsl.Dataset, tmp_path, "synthetic")
    Path(synthetic.path).parent.mkdir()
    Path(synthetic.path).write_text(json.dumps({"digest": "of another store"}))
    outputs = [artifact(kind, tmp_path, kind.__name__) for kind in (dsl.Dataset, dsl.Markdown, dsl.Metrics)]
    with pytest.raises(SystemExit):
        evaluate.python_func(spec(output), sources, synthetic, *outputs)
    assert "spec.output.uri is not shared" in capsys.readouterr().err
    with pytest.raises(SystemExit) as end:
        evaluate.python_func(spec(tmp_path / "elsewhere"), sources, synthetic, *outputs)
    assert end.value.code == 2
    assert "ingest source is not done in" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "phrase"),
    [
        ("", "the parameter spec:1: empty"),
        ("{]", "the parameter spec:1: not YAML"),
        ('{"apiVersion": "limbeck.dev/v1alpha1"}', "the parameter spec"),
    ],
)
def test_a_spec_that_is_pasted_wrongly_is_one_line(text, phrase, capsys):
    with pytest.raises(SystemExit) as end:
        fingerprint.python_func(text)
    assert end.value.code == 2
    assert phrase in capsys.readouterr().err


def test_a_spec_may_be_pasted_as_yaml(tmp_path, output):
    text = write_tiny(tmp_path / "spec.yaml", output).read_text()
    found, same = (json.loads(fingerprint.python_func(given)) for given in (text, spec(output)))
    assert found["fingerprints"] == same["fingerprints"]


def test_encoders_of_a_method_that_is_not_evaluated_are_not_trained(tmp_path, output):
    settings = spec(output, {"evaluate.baselines": ["random"]})
    before = sorted(output.glob("encoder/*"))
    encoders.python_func(settings, fingerprint.python_func(settings), "full", artifact(dsl.Dataset, tmp_path, "none"))
    assert sorted(output.glob("encoder/*")) == before


@pytest.mark.usefixtures("one_thread")
def test_encoders_that_were_trained_apart_are_the_ones_that_evaluate_wants(tmp_path, output):
    keys = {path.name for path in output.glob("encoder/*")}
    shutil.rmtree(output / "encoder")
    shutil.rmtree(output / "evaluate")
    sources = fingerprint.python_func(spec(output))
    for method, stage in (("distilled", "distill"), ("full", "select")):
        (manifest,) = output.glob(f"{stage}/*/manifest.json")
        made = artifact(dsl.Dataset, tmp_path, method)
        Path(made.path).parent.mkdir(exist_ok=True)
        digest = Store(str(output)).find(stage, manifest.parent.name).digest
        Path(made.path).write_text(json.dumps({"digest": digest}))
        encoders.python_func(spec(output), sources, method, made)
    found = {path.name for path in output.glob("encoder/*")}
    assert len(found) == 6  # two methods, of two reporting seeds and one selection seed each
    assert found <= keys


@pytest.mark.parametrize("name", COMPONENTS)
def test_every_component_is_laid_out_and_read_as_the_others(name):
    folder = ROOT / name
    assert {path.name for path in folder.iterdir()} - {"__pycache__"} == {
        "__init__.py",
        "component.py",
        "metadata.yaml",
        "README.md",
    }
    text = (folder / "component.py").read_text()
    assert "from __future__" not in text  # Kubeflow reads the annotations themselves
    component = getattr(__import__(f"limbeck_components.{name}.component", fromlist=[name]), name)
    assert len(inspect.getsource(component.python_func).splitlines()) < 45
