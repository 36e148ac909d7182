"""What the README says is so."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from limbeck.data.distilled import DistilledSet
from limbeck.nn.pretraining import Recipe
from limbeck.stages.graph import STAGES

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


@pytest.fixture
def distilled_set(tmp_path):
    generator = torch.Generator().manual_seed(0)
    folder = tmp_path / "set"
    folder.mkdir()
    DistilledSet(
        images=torch.randn(6, 3, 32, 32, generator=generator),
        targets=torch.randn(6, 5, generator=generator),
        mean=torch.tensor([0.5, 0.4, 0.3]),
        std=torch.tensor([0.2, 0.2, 0.2]),
        recipe=Recipe(rate=0.01, steps=1, batch=256, momentum=0.9, weight_decay=0.0),
        spec={},
        lineage={},
        evaluation={},
    ).save(folder)
    return folder


def test_the_python_example_runs(distilled_set):
    (example,) = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    names: dict = {}
    exec(example.replace("limbeck-output/register/KEY", str(distilled_set)), names)
    assert names["features"].shape == (8, 64)
    assert not names["encoder"].training
    assert len(names["distilled"]) == 6


def test_it_opens_with_the_two_commands():
    commands = re.findall(r"^make (\w+)", README, flags=re.MULTILINE)
    assert commands[:2] == ["demo", "test"]
    makefile = (ROOT / "Makefile").read_text()
    assert all(re.search(rf"^{command}:", makefile, flags=re.MULTILINE) for command in commands)


def test_every_file_that_it_names_is_there():
    for link in re.findall(r"\]\((?!https?:)([^)#]+)\)", README):
        assert (ROOT / link).exists(), link
    (tree,) = re.findall(r"```\n(src/limbeck/.*?)```", README, flags=re.DOTALL)
    for name in re.findall(r"[\w-]+\.py", tree):
        folders = (ROOT / folder for folder in ("src", "components", "pipelines", "operator", "experiments"))
        assert any(list(folder.rglob(name)) for folder in folders), name


def test_the_commands_that_it_shows_exist():
    from typer.testing import CliRunner

    from limbeck.cli import app

    listed = CliRunner().invoke(app, ["--help"]).output
    for command in set(re.findall(r"^limbeck (\w+)", README, flags=re.MULTILINE)):
        assert re.search(rf"^\s+{command}\s", listed, flags=re.MULTILINE), command


def test_imports_run_one_way():
    """As the README has it: one way from `cli` down to `store`; no stage imports another."""
    source = ROOT / "src/limbeck"
    floors = [
        ["cli"],
        ["runner", "fanout", "tracking"],
        ["stages", "evaluation"],
        ["matching", "ssl", "data", "nn"],
        ["store", "spec", "checkpoint"],
    ]
    floor_of = {name: level for level, names in enumerate(floors) for name in names}
    stages = {"ingest", *(stage.name for stage in STAGES)}
    for path in source.rglob("*.py"):
        parts = path.relative_to(source).with_suffix("").parts
        own = floor_of.get(parts[0])
        for module in re.findall(r"^\s*(?:from|import) limbeck\.([\w.]+)", path.read_text(), flags=re.MULTILINE):
            names = module.split(".")
            if own is not None and names[0] in floor_of:
                assert floor_of[names[0]] >= own, f"{'/'.join(parts)} imports limbeck.{module}"
            if parts[0] == "stages" and names[0] == "stages":
                assert names[1] not in stages, f"{'/'.join(parts)} imports the stage {names[1]}"


def test_packages_import_one_way():
    """operator -> pipelines -> components -> limbeck; but for the commands that look the first two up when asked."""
    packages = {
        "limbeck": "src",
        "limbeck_components": "components",
        "limbeck_pipelines": "pipelines",
        "limbeck_operator": "operator",
    }
    order = list(packages)
    for name, folder in packages.items():
        for path in (ROOT / folder / name).rglob("*.py"):
            above = order[order.index(name) + 1 :]
            found = re.findall(r"^(\s*)(?:from|import) (limbeck\w*)", path.read_text(), flags=re.MULTILINE)
            wrong = [
                module
                for indent, module in found
                if module in above and not (indent and path.stem in ("cli_pipeline", "cli_operator"))
            ]
            assert not wrong, f"{path} imports {wrong[0]}"
