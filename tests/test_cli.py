# ruff: noqa: F811 -- a fixture that is imported is an argument too
"""The command: exit codes, one line for a mistake, and no waiting for what it does not need."""

from __future__ import annotations

import json
import os
import pickle
import re
import shutil
import signal
import struct
import subprocess
import sys
import time
import zlib
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from limbeck.reference import json_schema
from limbeck.summary import Summary
from limbeck.version import __version__
from tests.data.making import encoded, noise, png_chunk, six_images, write_tree, write_zip
from tests.data.test_bad_sources import BAD, Hostile, cifar
from tests.stages.command import limbeck  # noqa: F401 - a fixture
from tests.stages.tiny import (
    finished,  # noqa: F401 - a fixture
    one_thread,  # noqa: F401 - a fixture
    write_tiny,
)

COMMAND = [sys.executable, "-m", "limbeck.cli"]


def started(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*COMMAND, *arguments], capture_output=True, text=True)


def test_help_takes_less_than_four_tenths_of_a_second():
    command = Path(sys.executable).with_name("limbeck")
    times = []
    for _ in range(5):
        before = time.perf_counter()
        done = subprocess.run([command, "--help"], capture_output=True)
        times.append(time.perf_counter() - before)
        assert done.returncode == 0
        assert b"Distil" in done.stdout
    assert min(times) < 0.4


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["validate", "SPEC", "--offline"], ["schema"]])
def test_what_needs_no_torch_does_not_import_it(tmp_path, arguments):
    spec = write_tiny(tmp_path / "tiny.yaml", tmp_path / "out")
    arguments = [str(spec) if argument == "SPEC" else argument for argument in arguments]
    program = (
        "import sys; from limbeck import cli\n"
        f"sys.argv = {['limbeck', *arguments]!r}\n"
        "try:\n    cli.main()\n"
        "except SystemExit as stop:\n    assert not stop.code, stop.code\n"
        "found = {'torch', 'pandas', 'sklearn', 'matplotlib', 'pyarrow'} & set(sys.modules)\n"
        "assert not found, found\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True, capture_output=True)


@pytest.mark.parametrize("arguments", [["fingerprint", "SPEC"], ["validate", "SPEC"]])
def test_a_look_at_the_sources_takes_a_small_pod(tmp_path, arguments):
    """Every schedule looks before every run: torch and MLflow alone would take half a gigabyte."""
    pictures = write_tree(tmp_path / "pictures", six_images())
    changes = {"source": {"uri": str(pictures)}, "distill": {"size": 4}, "evaluate": {"tasks": []}}
    spec = write_tiny(tmp_path / "tiny.yaml", tmp_path / "out", changes)
    arguments = [str(spec) if argument == "SPEC" else argument for argument in arguments]
    program = (
        "import re, sys; from limbeck import cli\n"
        f"sys.argv = {['limbeck', *arguments]!r}\n"
        "try:\n    cli.main()\n"
        "except SystemExit as stop:\n    assert not stop.code, stop.code\n"
        "found = {'torch', 'mlflow', 'sklearn', 'matplotlib', 'tenacity', 'gcsfs'} & set(sys.modules)\n"
        "assert not found, found\n"
        "peak = int(re.search(r'VmHWM:\\s*(\\d+) kB', open('/proc/self/status').read())[1])\n"
        "assert peak < 300 * 1024, f'{peak} KiB'\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True, capture_output=True)


@pytest.mark.parametrize(
    ("raised", "lines"),
    [
        ("RuntimeError('no: https://ana:hunter22@example.org/a?sig=s3cr3t')", None),
        ("OSError('Forbidden: https://example.org/a?sig=s3cr3t')", 1),
        ("ConnectionError('https://ana:hunter22@example.org')", 1),
    ],
)
def test_what_nobody_has_thought_of_is_said_without_credentials(tmp_path, raised, lines):
    program = (
        "import sys; from limbeck import cli, specfile\n"
        f"def read(*arguments): raise {raised}\n"
        "specfile.read_spec = read; sys.argv = ['limbeck', 'run', 'x.yaml']; cli.main()\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 1
    assert "example.org" in done.stderr
    said = [line for line in done.stderr.splitlines() if "def read" not in line]
    assert not {"hunter22", "s3cr3t"} & set(re.findall(r"\w+", "\n".join(said)))
    assert lines is None or len(said) == lines


def test_the_version_and_the_schema_are_printed(limbeck):
    assert limbeck("--version").out == f"limbeck {__version__}\n"
    assert limbeck("schema").out == json_schema()
    assert [entry["kind"] for entry in yaml.safe_load_all(limbeck("schema", "--crd").out)] == [
        "CustomResourceDefinition"
    ] * 2


@pytest.mark.parametrize(
    ("arguments", "phrase"),
    [
        (["nonsense"], "nonsense"),
        (["run"], "SPEC"),
        (["run", "a", "b"], "b"),
        (["run", "a", "--sett", "x=1"], "--sett"),
        (["stage", "distil", "SPEC"], "there is no stage 'distil'; ingest, teacher, targets"),
        (["report", "nowhere"], "nowhere: no finished run; the output of limbeck run"),
        (["report", "nowhere", "--name", "x"], "nowhere: no run 'x'"),
        (["report", "nonsense://x"], "nonsense://x"),
    ],
    ids=" ".join,
)
def test_a_wrong_command_is_answered_in_one_line(limbeck, tmp_path, monkeypatch, arguments, phrase):
    monkeypatch.chdir(tmp_path)
    write_tiny(tmp_path / "SPEC", tmp_path / "out")
    outcome = limbeck(*arguments)
    assert outcome.code == 2
    (line,) = outcome.problems
    assert phrase in line
    assert [path.name for path in tmp_path.iterdir()] == ["SPEC"]


def test_the_same_mistake_in_a_process_of_its_own_is_code_2_without_a_traceback(tmp_path):
    (tmp_path / "bad.yaml").write_text("kind: [")
    done = started("run", str(tmp_path / "bad.yaml"))
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith(f"{tmp_path / 'bad.yaml'}:1: not YAML")


def test_json_is_the_summary_and_nothing_else_on_standard_output(limbeck, tmp_path, finished):
    outcome = limbeck("run", write_tiny(tmp_path / "tiny.yaml", finished), "--json")
    assert outcome.code == 0
    assert Summary.model_validate(json.loads(outcome.out)).name == "tiny"
    assert "distill                  already done" in outcome.err


def test_a_run_prints_its_accuracies_and_where_to_look(limbeck, tmp_path, finished):
    outcome = limbeck("run", write_tiny(tmp_path / "tiny.yaml", finished))
    assert outcome.code == 0
    for phrase in ("distilled", "random", "full", "recovered gap", str(finished / "runs" / "tiny" / "report.html")):
        assert phrase in outcome.out


def test_a_report_is_written_anew(limbeck, tmp_path, finished):
    output = Path(shutil.copytree(finished, tmp_path / "copied"))
    report = output / "runs" / "tiny" / "report.html"
    before = report.read_text()
    report.unlink()
    outcome = limbeck("report", output)
    assert outcome.code == 0
    assert report.read_text() == before
    assert str(report) in outcome.out


@pytest.mark.parametrize("content", [b"", b"{}", b"\xff\xfe", b"[]"])
def test_a_report_of_a_damaged_summary_is_refused(limbeck, tmp_path, content):
    (tmp_path / "runs" / "tiny").mkdir(parents=True)
    (tmp_path / "runs" / "tiny" / "summary.json").write_bytes(content)
    outcome = limbeck("report", tmp_path)
    assert outcome.code == 2
    assert "summary.json: damaged; run the spec again" in outcome.err


def test_an_output_that_is_a_file_is_said_in_one_line(limbeck, tmp_path):
    (tmp_path / "file").write_text("mine")
    for output in (tmp_path / "file", tmp_path / "file" / "below"):
        outcome = limbeck("run", write_tiny(tmp_path / "tiny.yaml", output))
        assert outcome.code in (1, 2)
        (line,) = outcome.problems
        assert str(tmp_path / "file") in line
    assert (tmp_path / "file").read_text() == "mine"


def test_settings_without_effect_here_are_named(limbeck, tmp_path, finished):
    changes = {"registry.name": "digits", "execution.suspend": True}
    spec = write_tiny(tmp_path / "tiny.yaml", shutil.copytree(finished, tmp_path / "copied"), changes)
    outcome = limbeck("run", spec)
    assert outcome.code == 0
    for setting in ("spec.registry.name", "spec.execution.suspend"):
        assert f"note: {setting} has no effect" in outcome.err


def test_an_interrupt_while_it_starts_is_no_traceback(tmp_path):
    """Ctrl-C at the first sign of life: the command's own file is being imported, or torch is."""
    spec = write_tiny(tmp_path / "tiny.yaml", tmp_path / "out")
    program = (
        "import os, signal, sys; from limbeck import cli, specfile\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # a shell's background jobs ignore it
        "read = specfile.read_spec\n"
        "def interrupted(*arguments):\n    os.kill(os.getpid(), signal.SIGINT); return read(*arguments)\n"
        "specfile.read_spec = interrupted\n"
        f"sys.argv = ['limbeck', 'run', {str(spec)!r}]\n"
        "cli.main()\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode in (1, 128 + signal.SIGINT, -signal.SIGINT)
    assert "Traceback" not in done.stderr
    assert done.stderr.count("\n") <= 1


# ---- bad sources, through the whole command


def truncated_jpeg() -> bytes:
    return encoded(Image.fromarray(noise(0, 64)), "JPEG")[:-200]


def bomb() -> bytes:
    """A PNG of 40,000 x 40,000 pixels in a kilobyte or so."""
    head = struct.pack(">IIBBBBB", 40000, 40000, 1, 0, 0, 0, 0)
    parts = [png_chunk(b"IHDR", head), png_chunk(b"IDAT", zlib.compress(bytes(5001) * 100)), png_chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def among_good(content: bytes, name: str = "cat/bad.png") -> Callable[[Path], str]:
    return lambda root: str(write_tree(root / "t", six_images() | {name: content}))


BAD_IMAGES: dict[str, tuple[Callable[[Path], str], str]] = {
    "a truncated jpeg": (among_good(truncated_jpeg(), "cat/bad.jpg"), "1 of 7 images cannot be used: cat/bad.jpg"),
    "text named jpg": (among_good(b"not an image", "cat/bad.jpg"), "1 of 7 images cannot be used: cat/bad.jpg"),
    "an empty file": (among_good(b""), "1 of 7 images cannot be used: cat/bad.png"),
    "a bomb": (among_good(bomb()), "1 of 7 images cannot be used: cat/bad.png"),
    "a zip that climbs": (lambda root: str(write_zip(root / "x.zip", six_images() | {"../up.png": b"x"})), "up.png"),
    "az without adlfs": (lambda root: "az://limbeck-nowhere/images", "az:// needs a package that is not installed"),
}


def refused(limbeck, tmp_path: Path, uri: str, source_format: str) -> str:
    source = {"source.uri": uri, "source.format": source_format, "source.limit": None, "distill.size": 2}
    spec = write_tiny(tmp_path / "tiny.yaml", tmp_path / "out", source | {"evaluate.tasks": []})
    outcome = limbeck("run", spec)
    assert outcome.code == 2, outcome
    (line,) = outcome.problems
    assert outcome.out == ""
    assert not list((tmp_path / "out").rglob("manifest.json"))
    assert not (tmp_path / "out" / "runs").exists()
    return line


@pytest.mark.parametrize(("make", "phrase"), BAD_IMAGES.values(), ids=BAD_IMAGES.keys())
def test_bad_images_are_refused_in_one_line_and_leave_no_result(limbeck, tmp_path, make, phrase):
    if phrase.startswith("az:") and find_spec("adlfs"):
        pytest.skip("adlfs is installed")
    (tmp_path / "source").mkdir()
    assert phrase in refused(limbeck, tmp_path, make(tmp_path / "source"), "auto")
    assert not (tmp_path / "up.png").exists()


YAML_CANNOT_SAY = {"null byte"}
NO_FORMAT = {"unknown format"}


@pytest.mark.parametrize("name", [name for name in BAD if name not in YAML_CANNOT_SAY | NO_FORMAT])
def test_a_bad_source_is_refused_in_one_line_and_leaves_no_result(limbeck, tmp_path, name):
    make, source_format, _ = BAD[name]
    (tmp_path / "source").mkdir()
    refused(limbeck, tmp_path, make(tmp_path / "source"), source_format)


def test_a_hostile_pickle_is_not_run_by_a_run(limbeck, tmp_path):
    (tmp_path / "source").mkdir()
    uri = cifar(test_batch=Hostile(os.mkdir, str(tmp_path / "ran")))(tmp_path / "source")
    assert "mkdir" in refused(limbeck, tmp_path, uri, "auto")
    array = np.array([Hostile(os.mkdir, str(tmp_path / "ran"))], object)
    np.save(tmp_path / "source" / "x.npy", array, allow_pickle=True)
    assert "pickle" in refused(limbeck, tmp_path, str(tmp_path / "source" / "x.npy"), "auto")
    assert not (tmp_path / "ran").exists()
    pickle.loads(pickle.dumps(Hostile(os.mkdir, str(tmp_path / "ran"))))
    assert (tmp_path / "ran").exists()  # so it would have been seen


def test_a_source_that_was_mended_is_read_again(limbeck, tmp_path):
    root = tmp_path / "source"
    uri = among_good(b"not an image")(root)
    assert "cat/bad.png" in refused(limbeck, tmp_path, uri, "auto")
    (root / "t" / "cat" / "bad.png").write_bytes(six_images()["cat/0.png"])
    changes = {"source.uri": uri, "source.limit": None, "distill.size": 2, "distill.iterations": 1}
    changes |= {"trajectories.experts": 1, "evaluate.tasks": []}
    outcome = limbeck("run", write_tiny(tmp_path / "tiny.yaml", tmp_path / "out", changes), "--json")
    assert outcome.code == 0, outcome.err
    assert json.loads(outcome.out)["source"]["images"] == 7


def test_bad_images_can_be_left_out(limbeck, tmp_path):
    uri = among_good(b"not an image")(tmp_path / "source")
    changes = {"source.uri": uri, "source.limit": None, "distill.size": 2, "distill.iterations": 1}
    changes |= {"trajectories.experts": 1, "evaluate.tasks": [], "source.onBadImage": "skip"}
    outcome = limbeck("run", write_tiny(tmp_path / "tiny.yaml", tmp_path / "out", changes), "--json")
    assert outcome.code == 0, outcome.err
    source = json.loads(outcome.out)["source"]
    assert source["images"] == 6
    assert list(source["skipped"]) == ["cat/bad.png"]


def test_a_set_larger_than_what_is_left_of_the_source_is_refused(limbeck, tmp_path):
    """Six of seven images can be used, and seven synthetic ones are asked for."""
    uri = among_good(b"not an image")(tmp_path / "source")
    changes = {"source.uri": uri, "source.limit": None, "distill.size": 7, "evaluate.tasks": []}
    spec = write_tiny(tmp_path / "tiny.yaml", tmp_path / "out", changes | {"source.onBadImage": "skip"})
    outcome = limbeck("run", spec)
    assert outcome.code == 2, outcome.out
    assert "spec.distill.size: 7; at most the source's 6 images" in outcome.problems[-1]
