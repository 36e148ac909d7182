# ruff: noqa: F811 -- a fixture that is imported is an argument too
"""Teachers trained elsewhere: what is read, what is refused, and that nothing in a checkpoint is executed."""

from __future__ import annotations

import os
import pickle
import zipfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from limbeck.errors import InputError
from limbeck.nn.encoders import EncoderConfig, build_encoder
from limbeck.ssl.teachers import TeacherRecord, import_teacher, load_teacher, save_teacher
from tests.data.test_bad_sources import Hostile
from tests.stages.command import limbeck  # noqa: F401 - a fixture
from tests.stages.tiny import (
    digests,
    result_files,
    run_tiny,
    write_tiny,
)

CONFIG = EncoderConfig("resnet10", 8, 4, "batch")
MEAN, STD = [0.4, 0.5, 0.6], [0.2, 0.3, 0.4]
PIXELS = torch.rand(5, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def encoder(seed=3):
    """With running statistics of its own."""
    module = build_encoder(CONFIG, seed).train()
    module(torch.randn(20, 3, 8, 8, generator=torch.Generator().manual_seed(seed)))
    return module.eval()


def expected(module):
    mean, std = (torch.tensor(v)[:, None, None] for v in (MEAN, STD))
    with torch.no_grad():
        return module((PIXELS - mean) / std)


def imported(path, config=CONFIG):
    return import_teacher(str(path), path, config, MEAN, STD)


def through_disk(path, folder, config=CONFIG):
    """As the stages do: imported, written into a result, read again."""
    folder.mkdir()
    save_teacher(folder, *imported(path, config))
    return load_teacher(folder, torch.device("cpu"))


def write_safetensors(module, path):
    save_file(module.state_dict(), path.with_suffix(".safetensors"))
    return path.with_suffix(".safetensors")


def write_wrapped(module, path):
    """As DataParallel writes it, with the classifier that it was trained with."""
    state = {f"module.{name}": tensor for name, tensor in module.state_dict().items()}
    torch.save(state | {"module.fc.weight": torch.zeros(10, 32), "module.fc.bias": torch.zeros(10)}, path)
    return path


def write_lightning(module, path):
    torch.save({"state_dict": {f"backbone.{n}": t for n, t in module.state_dict().items()}, "epoch": 3}, path)
    return path


def write_plain(module, path):
    torch.save(module.state_dict(), path)
    return path


def write_legacy(module, path):
    torch.save(module.state_dict(), path, _use_new_zipfile_serialization=False)
    return path


def write_script(module, path):
    torch.jit.trace(module, PIXELS).save(str(path))
    return path


WRITERS = [write_safetensors, write_plain, write_legacy, write_wrapped, write_lightning, write_script]


@pytest.mark.parametrize("write", WRITERS, ids=lambda write: write.__name__)
def test_an_imported_encoder_represents_as_the_original_did(tmp_path, write):
    module = encoder()
    teacher = through_disk(write(module, tmp_path / "checkpoint.pt"), tmp_path / "teacher")
    torch.testing.assert_close(teacher.represent(PIXELS), expected(module))
    assert not teacher.module.training


def test_a_teacher_with_another_input_size_gets_it(tmp_path):
    config = EncoderConfig("resnet10", 16, 4, "batch")
    (tmp_path / "teacher").mkdir()
    record = TeacherRecord("encoder", config, None, 16, MEAN, STD)
    save_teacher(tmp_path / "teacher", encoder(), record)
    teacher = load_teacher(tmp_path / "teacher", torch.device("cpu"))
    assert teacher.represent(PIXELS).shape == (5, 32)
    assert not torch.allclose(teacher.represent(PIXELS), expected(encoder()))


@pytest.mark.parametrize("name", ["x.safetensors", "x.pt", "x.ckpt"])
@pytest.mark.parametrize(
    "content", [b"", b"not a checkpoint at all", b"\x80\x04", b"\x80\x02N.", b"\0" * 64, b"PK\x03\x04" + b"\0" * 60]
)
def test_bytes_that_are_no_checkpoint_are_refused_in_one_line(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=r"spec\.teacher\.checkpoint: ") as caught:
        imported(tmp_path / name)
    assert "\n" not in str(caught.value)
    assert str(tmp_path / name) in str(caught.value)


@pytest.mark.parametrize("keep", [0.1, 0.5, 0.9, 0.999])
@pytest.mark.parametrize("write", WRITERS, ids=lambda write: write.__name__)
def test_a_cut_checkpoint_is_refused(tmp_path, write, keep):
    path = write(encoder(), tmp_path / "checkpoint.pt")
    content = path.read_bytes()
    path.write_bytes(content[: int(keep * len(content))])
    with pytest.raises(InputError, match=r"spec\.teacher\.checkpoint: "):
        imported(path)


def test_a_checkpoint_of_torch_s_first_format_is_refused_wherever_it_is_cut(tmp_path):
    path = write_legacy(encoder(), tmp_path / "checkpoint.pt")
    content = path.read_bytes()
    for length in range(0, 1600, 7):  # the pickles before the numbers; torch raises five kinds of errors
        path.write_bytes(content[:length])
        with pytest.raises(InputError, match=r"spec\.teacher\.checkpoint: "):
            imported(path)


def rewritten_pickle(path: Path, content: bytes) -> None:
    """A checkpoint whose archive is torch's own, and whose pickle is another."""
    with zipfile.ZipFile(path) as archive:
        files = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for name, data in files.items():
            archive.writestr(name, content if name.endswith("/data.pkl") else data)


@pytest.mark.parametrize("inside", [False, True])
@pytest.mark.parametrize("name", ["x.pt", "x.safetensors", "x.bin"])
def test_a_malicious_checkpoint_is_refused_and_not_executed(tmp_path, inside, name):
    hostile = pickle.dumps({"conv1.weight": Hostile(os.mkdir, str(tmp_path / "ran"))}, protocol=2)
    path = tmp_path / name
    if inside:
        rewritten_pickle(write_plain(encoder(), path), hostile)
    else:
        path.write_bytes(hostile)
    with pytest.raises(InputError, match=r"spec\.teacher\.checkpoint: "):
        imported(path)
    assert not (tmp_path / "ran").exists()
    pickle.loads(hostile)
    assert (tmp_path / "ran").exists()  # so it would have been seen


@pytest.mark.parametrize(
    ("config", "phrase"),
    [
        (EncoderConfig("resnet18", 8, 4, "batch"), "has no 'layer1.1.conv1.weight' and"),
        (EncoderConfig("resnet10", 8, 8, "batch"), "conv1.weight has shape (4, 3, 3, 3); (8, 3, 3, 3) for resnet10"),
        (EncoderConfig("convnet", 8, 4, "batch"), "a state dict of convnet with width 4 (spec.teacher.architecture"),
        (EncoderConfig("convnet", 8, 4, "none", 1), "has no '0.weight' and 1 more"),
    ],
)
def test_another_architecture_is_named(tmp_path, config, phrase):
    with pytest.raises(InputError) as caught:
        imported(write_plain(encoder(), tmp_path / "x.pt"), config)
    assert phrase in str(caught.value)


def test_a_list_of_tensors_is_no_state_dict(tmp_path):
    torch.save([torch.zeros(1)], tmp_path / "x.pt")
    with pytest.raises(InputError, match="is not a state dict; a dict of names to tensors"):
        imported(tmp_path / "x.pt")


def test_an_unknown_timm_model_is_answered_with_near_ones():
    pytest.importorskip("timm")
    with pytest.raises(InputError, match=r"spec\.teacher\.checkpoint: timm has no model 'resnet19'"):
        import_teacher("timm:resnet19", None, CONFIG, MEAN, STD)


# ---- through whole runs


def pretrained(path):
    return {
        "teacher": {
            "algorithm": "pretrained",
            "checkpoint": str(path),
            "architecture": "resnet10",
            "width": 4,
        },
        "evaluate.tasks": [],
    }


@pytest.mark.parametrize("write", [write_safetensors, write_script], ids=lambda write: write.__name__)
def test_a_run_with_an_imported_teacher_is_repeatable_and_follows_the_file_s_content(tmp_path, write):
    path = write(encoder(3), tmp_path / "teacher.pt")
    content = path.read_bytes()
    first = run_tiny(tmp_path / "one", pretrained(path))
    assert first.distilled.target_dimension == 32
    again = run_tiny(tmp_path / "two", pretrained(path))
    assert digests(again) == digests(first)
    assert not list((tmp_path / "one").rglob("checkpoint-imported*"))
    assert all(stage.reused for stage in run_tiny(tmp_path / "one", pretrained(path)).stages)
    write(encoder(4), tmp_path / "teacher.pt")
    other = run_tiny(tmp_path / "one", pretrained(path))
    assert [stage.name for stage in other.stages if stage.reused] == ["ingest source"]
    for stage in ("teacher", "targets", "distill"):
        assert digests(other)[stage][1] != digests(first)[stage][1]
    path.write_bytes(content)
    assert all(stage.reused for stage in run_tiny(tmp_path / "one", pretrained(path)).stages)
    assert result_files(tmp_path / "two").items() <= result_files(tmp_path / "one").items()


@pytest.mark.parametrize(
    ("name", "content", "phrase"),
    [
        ("missing.safetensors", None, "missing.safetensors"),
        ("x.safetensors", b"nothing", "x.safetensors is damaged or not a checkpoint"),
        ("folder", "folder", "folder"),
        ("nonsense://x/y.pt", None, "nonsense://x/y.pt"),
        ("memory://limbeck-nowhere/y.pt", None, "memory://limbeck-nowhere/y.pt"),
        ("timm:resnet19", None, "timm has no model 'resnet19'"),
    ],
)
def test_a_bad_checkpoint_is_code_2_and_a_line_of_the_spec(limbeck, tmp_path, monkeypatch, name, content, phrase):
    monkeypatch.chdir(tmp_path)
    if content == "folder":
        Path(name).mkdir()
        Path(name, "weights.pt").write_bytes(b"x")
    elif content is not None:
        Path(name).write_bytes(content)
    outcome = limbeck("run", write_tiny(tmp_path / "tiny.yaml", tmp_path / "out", pretrained(name)))
    assert outcome.code == 2, outcome
    assert outcome.problems[-1].startswith(f"{tmp_path / 'tiny.yaml'}:")
    assert "spec.teacher.checkpoint: " in outcome.problems[-1]
    assert phrase in outcome.problems[-1]
    assert not (tmp_path / "out" / "teacher").exists()


def test_a_missing_checkpoint_is_found_before_any_work(limbeck, tmp_path):
    spec = write_tiny(tmp_path / "tiny.yaml", tmp_path / "out", pretrained(tmp_path / "missing.safetensors"))
    for command in ("validate", "run"):
        outcome = limbeck(command, spec)
        assert outcome.code == 2
        assert len(outcome.problems) == 1
        assert "spec.teacher.checkpoint" in outcome.err
    assert not (tmp_path / "out").exists()
