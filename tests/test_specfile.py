# ruff: noqa: F811 -- a fixture that is imported is an argument too
"""Whatever is wrong with a spec, `limbeck run` says file, line, field, what was found and what is allowed."""

from __future__ import annotations

import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from limbeck.cli import app
from limbeck.errors import InputError
from limbeck.specfile import SpecError, read_spec
from tests.data.making import six_images, write_tree
from tests.stages.command import limbeck  # noqa: F401 - a fixture

EXAMPLES = sorted((Path(__file__).parents[1] / "examples").glob("*.yaml"))

HEAD = """\
apiVersion: limbeck.dev/v1alpha1
kind: Distillation
metadata:
  name: mine
spec:
  source:
    uri: sklearn:digits#train
    imageSize: 8
"""  # its last line is 8
TASKS = """\
  evaluate:
    tasks:
      - name: digits
        train: {uri: "sklearn:digits#train"}
        test: {uri: "sklearn:digits#test"}
"""  # lines 9 to 13
WHOLE_SEED = "a whole number at least 0 and at most 2,147,483,647"


def spec(more: str = "", **replaced: str) -> str:
    text = HEAD + more
    for old, new in replaced.items():
        assert old in text
        text = text.replace(old, new)
    return text


def set_(*overrides: str, more: str = "") -> tuple[str, tuple[str, ...]]:
    return HEAD + more, tuple(part for override in overrides for part in ("--set", override))


# name: (text, or text and arguments), then for each problem the place, as it follows the file's name, and a phrase
BAD: dict[str, tuple[Any, ...]] = {
    # the file
    "empty": ("", (":1", "empty; a mapping with apiVersion, kind, metadata and spec is needed")),
    "only a comment": ("# nothing\n", (":1", "empty")),
    "binary": (b"\x89PNG\r\n\x1a\n\xff\xfe", ("", "not a text file in UTF-8")),
    "a null byte": ("a: \0", ("", "not YAML: unacceptable character")),
    "a list": ("- a\n- b\n", (":1", "a list; a mapping with apiVersion")),
    "a word": ("hello\n", (":1", "a text; a mapping")),
    "cut": ("spec: {source: [\n", (":2", "not YAML: expected the node content")),
    "tabs": (HEAD + "\tseed: 1\n", (":9", "not YAML: found character '\\t' that cannot start any token")),
    "two documents": (HEAD + "---\na: 1\n", (":9", "not YAML: but found another document")),
    "a key twice": (HEAD + "  seed: 1\n  seed: 2\n", (":10", "spec.seed stands twice, first on line 9")),
    "a section twice": (HEAD + "  source: {uri: x}\n", (":9", "spec.source stands twice, first on line 6")),
    "a Python object": (HEAD + "  seed: !!python/object/apply:os.getpid []\n", (":9", "not YAML: could not determine")),
    "an impossible date": (HEAD + "  seed: 2001-13-01\n", ("", "not YAML: month must be in 1..12")),
    "an alias of nothing": (HEAD + "  seed: *a\n", (":9", "not YAML: found undefined alias")),
    "an alias of itself": (HEAD + "  student: &a {norm: *a}\n", ("", "aliases expand to too much")),
    "a list as a key": (HEAD + "  ? [a]\n  : 1\n", (":9", "is not text; put it in quotes")),
    "a merge of a number": (HEAD + "  <<: 3\n", (":9", "not")),
    "deep": (HEAD + "  seed: " + "[" * 2000 + "]" * 2000, ("", "not YAML: maximum recursion depth")),
    # its head
    "no apiVersion": (spec(**{"apiVersion: limbeck.dev/v1alpha1": "# none"}), (":2", "apiVersion: missing")),
    "another apiVersion": (
        spec(v1alpha1="v2"),
        (":1", 'apiVersion: found "limbeck.dev/v2"; allowed: limbeck.dev/v1alpha1'),
    ),
    "another kind": (spec(**{"kind: Distillation": "kind: Job"}), (":2", 'kind: found "Job"; allowed: Distillation')),
    "no metadata": (
        "apiVersion: limbeck.dev/v1alpha1\nkind: Distillation\nspec: {source: {uri: x}}\n",
        (":1", "metadata: missing; allowed: a section with name"),
    ),
    "no name": (
        spec(**{"name: mine": "labels: {a: b}"}),
        (":3", "metadata.name: missing; allowed: text of at most 63"),
    ),
    "a name with capitals": (spec(mine="Mine"), (":4", 'metadata.name: found "Mine"; allowed: text of at most 63')),
    "a name with dots": (spec(mine="my.own"), (":4", 'metadata.name: found "my.own"; allowed: text of')),
    "a name that climbs": (spec(mine="../../up"), (":4", 'metadata.name: found "../../up"; allowed: text of')),
    "a name of 64 letters": (spec(mine="a" * 64), (":4", "allowed: text of at most 63 small letters")),
    "a name that is a number": (spec(mine="7"), (":4", "metadata.name: found 7; allowed: text of at most 63")),
    "no spec": ("\n".join(HEAD.splitlines()[:4]), (":1", "spec: missing; allowed: a section with source")),
    "nothing in spec": ("\n".join(HEAD.splitlines()[:5]), (":5", "spec: found null; allowed: a section with source")),
    # unknown fields
    "unknown at the top": (spec("spce: {}\n"), (":9", "spce: no such field; did you mean spec?")),
    "unknown in spec": (spec("  teachr: {}\n"), (":9", "spec.teachr: no such field; did you mean teacher?")),
    "unknown and far": (spec("  zzz: 1\n"), (":9", "spec.zzz: no such field; allowed: distill, evaluate, execution")),
    "unknown in source": (
        spec("    imagesize: 8\n"),
        (":9", "spec.source.imagesize: no such field; did you mean imageSi"),
    ),
    "a registered name that MLflow would refuse": (
        spec("  registry: {name: team/digits}\n"),
        (":9", 'spec.registry.name: found "team/digits"; allowed: text of at most 200 letters, digits'),
    ),
    "tracking that is a word": (
        spec("  tracking: {enabled: perhaps}\n"),
        (":9", 'spec.tracking.enabled: found "perhaps"; allowed: true or false'),
    ),
    "unknown in an optimizer": (
        spec("  teacher:\n    optimizer:\n      lr: 1\n      rat: 1\n"),
        (":11", "spec.teacher.optimizer.lr: no such field; allowed: rate, warmupEpochs, weightDecay"),
        (":12", "spec.teacher.optimizer.rat: no such field; did you mean rate?"),
    ),
    "unknown in a task": (
        spec(TASKS, **{"test: {": "test: {limt: 3, "}),
        (":13", "spec.evaluate.tasks[0].test.limt: no such field; did you mean limit?"),
    ),
    "unknown in resources": (
        spec("  execution:\n    resources:\n      distill: {gpu: 1}\n"),
        (":11", "spec.execution.resources.distill.gpu: no such field; did you mean gpus?"),
    ),
    "Python's spelling": (spec("  distill: {inner_step: 3}\n"), (":9", "inner_step: no such field; did you mean inne")),
    "a number as a field": (spec("  1: 2\n"), (":9", "the key '1' is not text; put it in quotes")),
    "a number as a field of a section": (spec("  student: {1: 2}\n"), (":9", "spec.student: the key '1' is not text")),
    "a truth value as a field": (spec("  student: {yes: 2}\n"), (":9", "spec.student: the key 'yes' is not text")),
    "nothing as a field": (spec("  student: {null: 2}\n"), (":9", "spec.student: the key 'null' is not text")),
    # types
    "text for a whole number": (spec('  seed: "3"\n'), (":9", f'spec.seed: found "3"; allowed: {WHOLE_SEED}')),
    "a truth value for a whole number": (
        spec("  seed: true\n"),
        (":9", f"spec.seed: found true; allowed: {WHOLE_SEED}"),
    ),
    "a fraction for a whole number": (spec("  seed: 1.5\n"), (":9", f"spec.seed: found 1.5; allowed: {WHOLE_SEED}")),
    "1e-4 for a whole number": (spec("  seed: 1e-4\n"), (":9", f"spec.seed: found 0.0001; allowed: {WHOLE_SEED}")),
    "nothing for a whole number": (spec("  seed:\n"), (":9", f"spec.seed: found null; allowed: {WHOLE_SEED}")),
    "a date for a whole number": (spec("  seed: 2001-01-01\n"), (":9", 'spec.seed: found "2001-01-01"; allowed')),
    "text for a number": (
        spec("  distill: {pixelStep: fast}\n"),
        (":9", 'spec.distill.pixelStep: found "fast"; allowed: a number at least 0.0 and at most 1,000,000,000.0'),
    ),
    "a truth value for a number": (
        spec("  distill: {pixelStep: true}\n"),
        (":9", "pixelStep: found true; allowed: a nu"),
    ),
    "a number for text": (spec("  output: {uri: 3}\n"), (":9", "spec.output.uri: found 3; allowed: text, not empty")),
    "a number for a truth value": (
        spec("  targets: {standardize: 1}\n"),
        (":9", "spec.targets.standardize: found 1; allowed: true or false"),
    ),
    "a list for a section": (spec("  teacher: [a]\n"), (":9", 'spec.teacher: found ["a"]; allowed: a section')),
    "text for a section": (spec("  teacher: resnet18\n"), (":9", 'spec.teacher: found "resnet18"; allowed: a section')),
    "a section for a list": (
        spec("  evaluate: {seeds: {a: 1}}\n"),
        (":9", 'spec.evaluate.seeds: found {"a": 1}; allowed: a list, each item a whole number at least 0'),
    ),
    "a section for a number": (spec("  seed: {a: 1}\n"), (":9", 'spec.seed: found {"a": 1}; allowed: a whole number')),
    # bounds
    "too low": (spec("  seed: -1\n"), (":9", f"spec.seed: found -1; allowed: {WHOLE_SEED}")),
    "too high": (spec("  seed: 2147483648\n"), (":9", f"spec.seed: found 2147483648; allowed: {WHOLE_SEED}")),
    "an image too small": (
        spec(**{"imageSize: 8": "imageSize: 3"}),
        (":8", "found 3; allowed: a whole number at least 4"),
    ),
    "no steps": (
        spec("  distill: {innerSteps: 0}\n"),
        (":9", "innerSteps: found 0; allowed: a whole number at least 1"),
    ),
    "a momentum of one": (
        spec("  distill: {momentum: 1}\n"),
        (":9", "found 1; allowed: a number at least 0.0 and below 1"),
    ),
    "a rate of zero": (
        spec("  trajectories:\n    optimizer:\n      rate: 0\n"),
        (":11", "spec.trajectories.optimizer.rate: found 0; allowed: a number above 0.0 and at most 100.0"),
    ),
    "no number": (spec("  distill: {rateStep: .nan}\n"), (":9", "spec.distill.rateStep: found NaN; allowed: a number")),
    "infinite": (spec("  distill: {rateStep: .inf}\n"), (":9", "rateStep: found Infinity; allowed: a number at least")),
    "beyond float": (
        spec("  distill: {rateStep: 1e999}\n"),
        (":9", "rateStep: found Infinity; allowed: a number at le"),
    ),
    "an empty uri": (
        spec(**{"sklearn:digits#train": "''"}),
        (":7", 'spec.source.uri: found ""; allowed: text, not empt'),
    ),
    "a label fraction above one": (
        spec("  evaluate:\n    labelFractions: [0.5,\n      2]\n"),
        (":11", "spec.evaluate.labelFractions[1]: found 2; allowed: a number above 0.0 and at most 1.0"),
    ),
    "no seeds": (spec("  evaluate: {seeds: []}\n"), (":9", "spec.evaluate.seeds: found []; allowed: a list")),
    # choices
    "another algorithm": (
        spec("  teacher: {algorithm: byol}\n"),
        (":9", 'spec.teacher.algorithm: found "byol"; allowed: barlowTwins or simclr or pretrained'),
    ),
    "another architecture": (
        spec("  evaluate: {architectures: [vgg]}\n"),
        (":9", 'spec.evaluate.architectures[0]: found "vgg"; allowed: convnet or resnet10 or resnet18'),
    ),
    "another format": (
        spec("    format: rar\n"),
        (":9", 'spec.source.format: found "rar"; allowed: auto or images or zip'),
    ),
    "resources of no stage": (
        spec("  execution:\n    resources:\n      distil: {gpus: 1}\n"),
        (":11", "spec.execution.resources.distil: no such key; allowed: ingest or teacher or targets or"),
    ),
    "a bad quantity": (
        spec("  execution:\n    resources:\n      distill: {memory: 4GB}\n"),
        (":11", 'distill.memory: found "4GB"; allowed: text, a Kubernetes quantity such as 500m or 4Gi'),
    ),
    "a quantity as a number": (
        spec("  execution:\n    resources:\n      distill: {cpu: 2}\n"),
        (":11", "distill.cpu: found 2; allowed: text, a Kubernetes quantity such as 500m or 4Gi"),
    ),
    # fields that do not go together
    "size and fraction": (
        spec("  distill:\n    size: 10\n    fraction: 0.1\n"),
        (":11", "spec.distill.fraction: found 0.1; allowed: either size or fraction, not both"),
    ),
    "larger than the limit": (
        spec("    limit: 100\n  distill:\n    size: 101\n"),
        (":11", "spec.distill.size: found 101; allowed: at most source.limit, which is 100"),
    ),
    "a limit of one": (spec("    limit: 1\n"), (":9", "spec.source.limit: found 1; allowed: at least 2 images")),
    "too few epochs": (
        spec("  trajectories:\n    epochs: 2\n  distill: {expertGap: 2, maxStartEpoch: 3}\n"),
        (":10", "trajectories.epochs: found 2; allowed: at least 4: distill.maxStartEpoch - 1 + distill.expertGap"),
    ),
    "a student that halves too often": (
        spec("  student: {depth: 4}\n"),
        (":9", "spec.student.depth: found 4 blocks, each halving 8x8 pixels; allowed: source.imageSize must be a mult"),
    ),
    "a student that cannot halve": (
        spec(**{"imageSize: 8": "imageSize: 30"}),
        (":5", "student.depth: found 2 blocks, each halving 30x30 pixels; allowed: source.imageSize must be"),
    ),
    "a teacher that halves too often": (
        spec("  teacher:\n    architecture: convnet\n    depth: 5\n"),
        (":11", "spec.teacher.depth: found 5 blocks, each halving 8x8 pixels"),
    ),
    "an imported teacher that halves too often": (
        spec("  teacher: {algorithm: pretrained, checkpoint: x.safetensors, architecture: convnet, depth: 5}\n"),
        (":9", "spec.teacher.depth: found 5 blocks, each halving 8x8 pixels"),
    ),
    "an evaluated convnet that cannot halve": (
        spec(
            "  student: {architecture: resnet10}\n  evaluate:\n    architectures: [resnet10, convnet]\n",
            **{"imageSize: 8": "imageSize: 30"},
        ),
        (":11", "spec.evaluate.architectures"),
    ),
    "a resnet whose instance norm sees one pixel": (
        spec("  student: {architecture: resnet10}\n"),
        (":9", "spec.student.norm"),
    ),
    "a checkpoint and no import": (
        spec("  teacher:\n    checkpoint: x.pt\n"),
        (":10", "spec.teacher.checkpoint: found 'x.pt'; allowed: checkpoint is given exactly when algorithm is pretr"),
    ),
    "an import and no checkpoint": (
        spec("  teacher:\n    algorithm: pretrained\n"),
        (":9", "spec.teacher.checkpoint: found nothing; allowed: checkpoint is given exactly when algorithm is pre"),
    ),
    "a checkpoint with a bar in its name": (
        spec("  teacher:\n    checkpoint: a|b.pt\n"),
        (":10", "spec.teacher.checkpoint: found 'a|b.pt'; allowed: checkpoint is given exactly when"),
    ),
    "seeds twice": (
        spec("  evaluate:\n    seeds: [1, 2, 1]\n"),
        (":10", "spec.evaluate.seeds: found 1 more than once; allowed: each value once"),
    ),
    "fractions twice": (
        spec("  evaluate:\n    labelFractions: [0.5, 0.50]\n"),
        (":10", "spec.evaluate.labelFractions: found 0.5 more than once; allowed: each value once"),
    ),
    "architectures twice": (
        spec("  evaluate: {architectures: [convnet, convnet]}\n"),
        (":9", "convnet more than once"),
    ),
    "tasks twice": (
        spec(TASKS + TASKS.partition("tasks:\n")[2]),
        (":10", "spec.evaluate.tasks: found digits more than once; allowed: each value once"),
    ),
    "a task without its test": (
        spec("  evaluate:\n    tasks:\n      - name: a\n        train: {uri: x}\n"),
        (":11", "spec.evaluate.tasks[0].test: missing; allowed: a section with uri"),
    ),
    "no source": (
        spec("  seed: 1\n", **{"  source:\n    uri: sklearn:digits#train\n    imageSize: 8\n": ""}),
        (":5", "spec.source: missing; allowed: a section with uri"),
    ),
    "no uri": (
        spec(**{"    uri: sklearn:digits#train\n": ""}),
        (":6", "spec.source.uri: missing; allowed: text, not em"),
    ),
    # all that is wrong is said at once, in the order of the file
    "four things": (
        spec("  seed: x\n  student: {depth: 9}\n  targts: {}\n", mine="Mine"),
        (":4", "metadata.name"),
        (":9", "spec.seed"),
        (":10", "spec.student.depth: found 9; allowed: a whole number at least 1 and at most 7"),
        (":11", "spec.targts: no such field; did you mean targets?"),
    ),
    # on the command line
    "no equals sign": (set_("seed"), ("--set seed", "not of the form field.path=value")),
    "no field": (set_("=3"), ("--set =3", "not of the form field.path=value")),
    "an empty part": (set_("source..limit=3"), ("--set source..limit=3", "not of the form field.path=value")),
    "no YAML": (set_("seed=[1"), ("--set seed=[1", "'[1' is not a YAML value")),
    "an impossible date there": (set_("seed=2001-13-01"), ("--set seed=2001-13-01", "is not a YAML value")),
    "an alias of itself there": (set_("seed=&a [*a]"), ("--set seed=&a [*a]", "aliases expand to too much")),
    "a part of a value": (set_("source.uri.x=3"), ("--set source.uri.x=3", "spec.source.uri is not a section")),
    "an unknown field there": (
        set_("source.limt=3"),
        (" (--set)", "spec.source.limt: no such field; did you mean limit?"),
    ),
    "an unknown section there": (
        set_("sorce.limit=3"),
        (" (--set)", "spec.sorce: no such field; did you mean source?"),
    ),
    "a bad value there": (set_("seed=x"), (" (--set)", f'spec.seed: found "x"; allowed: {WHOLE_SEED}')),
    "a bad item there": (
        set_("evaluate.seeds=[1, x]"),
        (" (--set)", 'spec.evaluate.seeds[1]: found "x"; allowed: a whole'),
    ),
    "a number as a field there": (set_("student={1: 2}"), ("--set student={1: 2}", "is not text; put it in quotes")),
    "a good value that disagrees": (
        set_("source.limit=5", more="  distill:\n    size: 6\n"),
        (":10", "spec.distill.size: found 6; allowed: at most source.limit, which is 5"),
    ),
}


@pytest.mark.parametrize(("text", "problems"), [(e[0], e[1:]) for e in BAD.values()], ids=BAD.keys())
def test_a_bad_spec_is_refused_line_by_line_and_nothing_is_written(limbeck, tmp_path, monkeypatch, text, problems):
    monkeypatch.chdir(tmp_path)
    text, arguments = text if isinstance(text, tuple) else (text, ())
    path = tmp_path / "bad.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    outcome = limbeck("validate", path, "--offline", *arguments)
    assert outcome.code == 2
    assert outcome == limbeck("run", path, *arguments)
    assert outcome.out == ""
    assert len(outcome.problems) == len(problems), outcome.err
    for line, (place, phrase) in zip(outcome.problems, problems, strict=True):
        where = place if place.startswith("--set") else f"{path}{place}"
        assert line.startswith(f"{where}: ")
        assert phrase in line
    assert [entry.name for entry in tmp_path.iterdir()] == ["bad.yaml"]


def test_a_missing_file_a_folder_and_a_large_file_are_no_specs(limbeck, tmp_path):
    large = tmp_path / "large.yaml"
    large.write_bytes(b"a" * (2**20 + 1))
    for path, phrase in ((tmp_path / "no", "no such file"), (tmp_path, "a folder"), (large, "larger than 1 MiB")):
        outcome = limbeck("run", path)
        assert outcome.code == 2
        assert outcome.problems[0].startswith(f"{path}: {phrase}")
        assert len(outcome.problems) == 1


def test_aliases_of_aliases_are_refused_before_they_grow(tmp_path):
    """Ten lines that stand for three thousand million values; in a process that may use 10 s and 2 GiB."""
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 10)]
    path = tmp_path / "bad.yaml"
    path.write_text("\n".join(lines) + "\n")

    def limits() -> None:
        resource.setrlimit(resource.RLIMIT_CPU, (10, 10))
        resource.setrlimit(resource.RLIMIT_AS, (2**31, 2**31))

    command = [sys.executable, "-m", "limbeck.cli", "validate", str(path), "--offline"]
    done = subprocess.run(command, capture_output=True, text=True, preexec_fn=limits)
    assert done.returncode == 2, done.returncode
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith(f"{path}:")


def gray(root: Path) -> str:
    return str(write_tree(root / "gray", {name.rpartition("/")[2]: data for name, data in six_images().items()}))


def one_image(root: Path) -> str:
    return str(write_tree(root / "one", {"a.png": six_images()["cat/0.png"]}))


def animals(root: Path, *classes: str) -> str:
    images = list(six_images().values())
    files = {f"{name}/{number}.png": images[number] for name in classes for number in range(3)}
    return str(write_tree(root / "-".join(classes), files))


def task(train: str, test: str, more: str = "") -> str:
    data = f"        train: {{uri: '{train}'}}\n        test: {{uri: '{test}'}}\n"
    return f"  evaluate:\n    tasks:\n      - name: t\n{data}{more}"


# name: text by the test's folder, the place, a phrase
DISAGREE = {
    "a set larger than the source": (
        lambda root: spec("  distill:\n    size: 1439\n"),
        ":10: spec.distill.size: 1439; at most the source's 1437 images",
    ),
    "labels fewer than classes": (
        lambda root: spec(TASKS + "    labelFractions:\n      - 0.5\n      - 0.002\n"),
        ":16: spec.evaluate.labelFractions[1]: 0.002 of task digits's 1437 labels is 3; at least one a class: 0.00696",
    ),
    "labels fewer than classes by a limit": (
        lambda root: spec(TASKS + "    labelFractions: [0.1]\n", **{'train"}': 'train", limit: 50}'}),
        ":14: spec.evaluate.labelFractions[0]: 0.1 of task digits's 50 labels is 5; at least one a class: 0.2",
    ),
    "a task without labels": (
        lambda root: spec(task(gray(root), "sklearn:digits#test")),
        ":12: spec.evaluate.tasks[0].train: task t has no labels here; class folders or a label column",
    ),
    "a test without labels": (
        lambda root: spec(task("sklearn:digits#train", gray(root))),
        ":13: spec.evaluate.tasks[0].test: task t has no labels here; class folders or a label column",
    ),
    "other classes in the test": (
        lambda root: spec(task(animals(root, "cat", "dog"), animals(root, "cat", "fox"))),
        ":13: spec.evaluate.tasks[0].test: class 'dog' is in train or test alone; the same classes in both",
    ),
    "one class": (
        lambda root: spec(task(animals(root / "train", "cat"), animals(root / "test", "cat"))),
        ":12: spec.evaluate.tasks[0].train: 1 class; at least 2 classes",
    ),
    "a source of one image": (
        lambda root: spec(**{"sklearn:digits#train": one_image(root)}),
        ":7: spec.source.uri: {root}/one gives 1 image; at least 2",
    ),
}


@pytest.mark.parametrize(("text", "line"), DISAGREE.values(), ids=DISAGREE.keys())
@pytest.mark.parametrize("command", ["run", "validate"])
def test_a_spec_that_does_not_fit_its_data_is_refused_before_any_work(
    limbeck, tmp_path, monkeypatch, command, text, line
):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "bad.yaml"
    path.write_text(text(tmp_path))
    outcome = limbeck(command, path)
    assert outcome.code == 2
    assert len(outcome.problems) == 1
    assert outcome.problems[0].startswith(f"{path}{line.format(root=tmp_path)}")
    assert not (tmp_path / "limbeck-output").exists()


def test_a_source_s_uri_alone_is_a_complete_spec(tmp_path):
    path = tmp_path / "spec.yaml"
    path.write_text(
        "apiVersion: limbeck.dev/v1alpha1\nkind: Distillation\nmetadata: {name: a}\nspec: {source: {uri: x}}\n"
    )
    spec = read_spec(path).distillation.spec
    assert spec.source.uri == "x"
    assert spec.expert_epochs == spec.distill.reachable_epochs == 4


def test_numbers_are_read_as_people_write_them(tmp_path):
    path = tmp_path / "spec.yaml"
    path.write_text(spec("  distill:\n    rateStep: 1e-4\n    pixelStep: 1e3\n    targetStep: 1\n    momentum: .5\n"))
    distill = read_spec(path).distillation.spec.distill
    assert (distill.rate_step, distill.pixel_step, distill.target_step, distill.momentum) == (1e-4, 1000.0, 1.0, 0.5)


def test_overrides_reach_any_field_and_the_last_one_counts(tmp_path):
    path = tmp_path / "spec.yaml"
    path.write_text(HEAD)
    overrides = ["source.limit=7", "spec.seed=3", "seed=4", "teacher.optimizer.rate=1e-2", "evaluate.seeds=[5, 6]"]
    read = read_spec(path, overrides).distillation.spec
    assert (read.source.limit, read.seed, read.teacher.optimizer.rate, read.evaluate.seeds) == (7, 4, 0.01, [5, 6])
    assert read_spec(path).distillation.spec.source.limit is None


def test_a_section_can_be_merged_into_another(tmp_path):
    path = tmp_path / "spec.yaml"
    path.write_text(spec("  student: &small {depth: 1, width: 8}\n  teacher:\n    <<: *small\n    width: 16\n"))
    read = read_spec(path).distillation.spec
    assert (read.student.depth, read.student.width) == (1, 8)
    assert (read.teacher.depth, read.teacher.width) == (1, 16)


def test_json_is_yaml_and_a_cluster_s_own_fields_are_no_mistakes(tmp_path):
    path = tmp_path / "spec.json"
    path.write_text(
        '{"apiVersion": "limbeck.dev/v1alpha1", "kind": "Distillation", "status": {"conditions": []},'
        '"metadata": {"name": "a", "uid": "1", "resourceVersion": "2"}, "spec": {"source": {"uri": "x"}}}'
    )
    assert read_spec(path).distillation.metadata.name == "a"


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.name)
def test_an_example_is_valid(limbeck, example):
    outcome = limbeck("validate", example, "--offline")
    assert (outcome.code, outcome.err) == (0, "")


def test_there_are_examples():
    assert EXAMPLES


SCHEDULE = """\
apiVersion: limbeck.dev/v1alpha1
kind: ScheduledDistillation
metadata:
  name: nightly
spec:
  schedule: 0 3 * * *
  timeZone: Europe/Berlin
  template:
    spec:
      source:
        uri: sklearn:digits#train
        imageSize: 8
"""


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("0 3 * * *", "0 0 31 2 *", "6: spec.schedule: '0 0 31 2 *' never comes; a date that some year has"),
        ("0 3 * * *", "often", '6: spec.schedule: found "often"; allowed: text: minute hour day month weekday, or'),
        ("Europe/Berlin", "Mars", "7: spec.timeZone: 'Mars' is no time zone; a name such as Europe/Berlin"),
        ("uri", "url", "11: spec.template.spec.source.url: no such field; did you mean uri?"),
        ("sklearn:digits#train", "nowhere", "11: spec.template.spec.source.uri: nowhere: no such file or directory"),
        ("nightly", "a" * 53, "4: metadata.name: found"),
    ],
)
def test_validate_knows_schedules(tmp_path, old, new, said):
    file = tmp_path / "schedule.yaml"
    file.write_text(SCHEDULE)
    done = CliRunner().invoke(app, ["validate", str(file)])
    assert done.output == f"{file}: valid\n"
    file.write_text(SCHEDULE.replace(old, new, 1))
    done = CliRunner().invoke(app, ["validate", str(file)])
    assert isinstance(done.exception, InputError)
    assert f"{file}:{said}" in str(done.exception)


def test_a_schedule_is_not_run(tmp_path):
    file = tmp_path / "schedule.yaml"
    file.write_text(SCHEDULE)
    with pytest.raises(SpecError, match=":2: kind: found ScheduledDistillation, which a cluster runs"):
        read_spec(file)
