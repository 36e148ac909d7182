"""A real cluster, started as an administrator starts one: reached by each kind of address, or refused in a line."""

from __future__ import annotations

import re
import shutil
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import limbeck
from limbeck.runner import Run
from limbeck.version import __version__
from tests.fanout.heads import TOKEN, Head, free_port, head
from tests.fanout.processes import LimbeckProcess
from tests.stages.tiny import distillation, result_files, run_tiny, workshop, write_tiny

FEW = {"trajectories.experts": 3, "evaluate.tasks": []}


@pytest.fixture(scope="module")
def cluster() -> Iterator[Head]:
    with head({}) as started:
        yield started


def prepared(folder: Path, address: str, **changes: object) -> Path:
    """A spec whose stages before trajectories are done."""
    settings = {**FEW, "execution.ray": {"address": address, "workers": 2, **changes}}
    for name in ("ingest", "teacher", "targets"):
        Run(distillation(folder / "out", settings), workshop(folder / "out")).stage(name)
    return write_tiny(folder / "spec.yaml", folder / "out", settings)


def refused(folder: Path, address: str, environment: dict[str, str] = TOKEN, **changes: object) -> str:
    """What the stage says, in one line and within 30 seconds, instead of doing anything."""
    spec = prepared(folder, address, **changes)
    started = time.monotonic()
    stage = LimbeckProcess("stage", "trajectories", spec, cwd=folder, environment=environment)
    assert stage.ends() == 2, stage.err
    assert time.monotonic() - started < 30
    assert "Traceback" not in stage.err
    assert not list((folder / "out").glob("expert/*"))
    return stage.problems[-1]


@pytest.mark.parametrize("kind", ["gcs", "client", "dashboard"])
def test_experts_of_a_cluster_are_those_of_this_machine(tmp_path, cluster, kind):
    address = getattr(cluster, kind)
    spec, output = prepared(tmp_path, address), tmp_path / "out"
    stage = LimbeckProcess("stage", "trajectories", spec, cwd=tmp_path, environment=TOKEN)
    assert stage.ends() == 0, stage.err
    assert re.search(r"trajectories: 2 workers on .*, CPU 1 each", stage.err)
    run_tiny(tmp_path / "alone", FEW)
    made = {name: digest for name, digest in result_files(output).items() if not name.startswith("logs/")}
    assert len([name for name in made if name.startswith("expert/")]) == 3
    assert made.items() <= result_files(tmp_path / "alone").items()
    assert (output / "logs/trajectories/worker-1.log").read_text().count("is done") == 1


def test_an_address_where_nothing_listens(tmp_path):
    address = f"127.0.0.1:{free_port()}"
    assert refused(tmp_path, address).endswith(
        f"spec.execution.ray.address: {address}: Connection refused; a running Ray cluster"
    )


@pytest.mark.parametrize("scheme", ["", "ray://", "http://"])
def test_an_address_that_listens_and_never_answers(tmp_path, scheme):
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        address = f"{scheme}127.0.0.1:{listener.getsockname()[1]}"
        problem = refused(tmp_path, address)
    assert f"spec.execution.ray.address: {address} gave no answer; a running Ray cluster" in problem


@pytest.mark.parametrize("address", ["somewhere", "host:", "ftp://host:1", "host:port", "http://host"])
def test_an_address_that_is_none(tmp_path, limbeck, address):
    spec = write_tiny(tmp_path / "spec.yaml", tmp_path / "out", {"execution.ray": {"address": address}})
    outcome = limbeck("run", spec)
    assert outcome.code == 2
    expected = f"spec.execution.ray.address: {address!r}; ray://HOST:PORT, HOST:PORT, http://HOST:PORT or auto"
    assert outcome.problems[-1].endswith(expected)
    assert not (tmp_path / "out").exists()


def test_a_cluster_without_enough_gpus(tmp_path, cluster):
    problem = refused(tmp_path, cluster.gcs, gpusPerWorker=1)
    assert re.search(
        r"spec\.execution\.ray: 2 workers of CPU 1, GPU 1 each found no room in 127.0.0.1:\d+ within 10 s, which has "
        r"CPU 2 \(\d free\), GPU 0 \(0 free\); ask for less, or raise startTimeoutSeconds",
        problem,
    )


def test_a_cluster_that_asks_for_a_token(tmp_path, cluster):
    problem = refused(tmp_path, cluster.gcs, environment={"RAY_AUTH_MODE": "disabled", "HOME": str(tmp_path)})
    assert problem.endswith("it asks for a token; set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN to the cluster's")


def test_a_cluster_with_another_version_of_limbeck(tmp_path):
    package = Path(limbeck.__file__).parent
    image = tmp_path / "image"
    shutil.copytree(package, image / "limbeck")
    (image / "limbeck" / "version.py").write_text('"""Another."""\n\n__version__ = "9.9.9"\n')
    with head({"PYTHONPATH": str(image)}) as other:
        problem = refused(tmp_path / "worker", other.gcs)
        assert re.search(
            rf"spec\.execution\.ray\.address: {other.gcs} has limbeck 9\.9\.9 on \S+, and this is limbeck "
            rf"{re.escape(__version__)}; all must be the same version",
            problem,
        )
        problem = refused(tmp_path / "job", other.dashboard)
        assert f"the head has limbeck 9.9.9, and this is limbeck {__version__}" in problem
