"""The recipe study: its specs are good, and a study that is stopped goes on and ends with the same table."""

from __future__ import annotations

import io
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import yaml
from PIL import Image

from tests.stages.tiny import tiny

EXPERIMENTS = Path(__file__).parents[1] / "experiments"
STUDIES = [path.stem for path in EXPERIMENTS.glob("*.yaml") if "variants" in yaml.safe_load(path.read_text())]
CHECK = """
import sys
from study import Study, run_name
study = Study.read(sys.argv[1])
names = [run_name(variant.name) for variant in study.variants]
assert len(set(names)) == len(names), names
results = {study.result(variant) for variant in study.variants}
assert len(results) == len(names)
for variant in study.variants:
    print(variant.name, study.distillation(variant).spec.wire() != study.distillation(study.variants[0]).spec.wire())
"""


@pytest.mark.parametrize("name", STUDIES)
def test_every_variant_of_a_study_is_a_good_spec_of_its_own(name):
    done = subprocess.run([sys.executable, "-c", CHECK, name], cwd=EXPERIMENTS, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    first, *others = done.stdout.splitlines()
    assert first.endswith("False")
    assert all(line.endswith("True") for line in others)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A study of two variants of the tiny spec, and archives of a few pictures."""
    shutil.copy(EXPERIMENTS / "study.py", tmp_path)
    (tmp_path / "base.yaml").write_text(yaml.safe_dump(tiny("results", {"evaluate.baselines": []})))
    variants = [
        {"name": "base", "axis": "", "set": {}, "baselines": True},
        {"name": "k-centre", "axis": "initialisation", "set": {"distill.initialization": "kCenter"}},
    ]
    (tmp_path / "few.yaml").write_text(yaml.safe_dump({"base": "base.yaml", "variants": variants}))
    picture = io.BytesIO()
    Image.new("RGB", (8, 8)).save(picture, "png")
    (tmp_path / "data").mkdir()
    for part in ("train", "test"):
        with zipfile.ZipFile(tmp_path / "data" / f"cifar10-{part}.zip", "w") as archive:
            for k in range(40):
                archive.writestr(f"{k % 2}/{k}.png", picture.getvalue())
    return tmp_path


def study(folder: Path, *arguments: str) -> str:
    command = [sys.executable, "study.py", *arguments]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_a_study_that_is_stopped_goes_on_and_does_nothing_twice(folder):
    run = ("run", "few", "--data", "data", "--work", "work")
    assert "stopped" in study(folder, *run, "--minutes", "0")
    assert not (folder / "few.md").exists()
    study(folder, *run, "--only", "base")
    assert "not run" in (folder / "few.md").read_text()
    assert "1 of 2 variants" in study(folder, *run)
    shutil.rmtree(folder / "work" / "results")
    assert "0 of 2 variants" in study(folder, *run)  # the figures are enough
    table = (folder / "few.md").read_text().splitlines()
    assert [line.split("|")[2].strip() for line in table[2:]] == ["base", "*random*", "*full*", "k-centre"]
    assert table[0].count("|") == table[2].count("|") == table[3].count("|")
    for part, others in (("development", "validation"), ("validation", "development")):
        names = set(zipfile.ZipFile(folder / "work" / "data" / f"{part}.zip").namelist())
        assert names
        assert not names & set(zipfile.ZipFile(folder / "work" / "data" / f"{others}.zip").namelist())
