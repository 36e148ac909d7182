import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from limbeck.data.mapped import create_mapped, open_mapped
from limbeck.errors import InputError, WorkError


@pytest.mark.parametrize("dtype", [np.bool_, np.uint8, np.int32, np.int64, np.float16, np.float32, np.float64])
def test_what_is_written_through_the_map_is_what_the_safetensors_library_reads(tmp_path, dtype):
    path = tmp_path / "x.safetensors"
    values = np.arange(24).reshape(2, 3, 4).astype(dtype)
    mapped = create_mapped(path, "x", values.shape, dtype)
    mapped[:] = values
    mapped.flush()
    assert (load_file(path)["x"] == values).all()
    assert (open_mapped(path, "x") == values).all()


def test_data_begin_at_a_multiple_of_64_bytes(tmp_path):
    for name in ("x", "a-longer-name", "n" * 61):
        path = tmp_path / name
        create_mapped(path, name, (5,))
        assert (path.stat().st_size - 5) % 64 == 0


def test_the_map_that_is_read_cannot_be_written(tmp_path):
    create_mapped(tmp_path / "x", "x", (5,))
    with pytest.raises(ValueError, match="read-only"):
        open_mapped(tmp_path / "x", "x")[0] = 1


def test_files_of_the_safetensors_library_can_be_mapped(tmp_path):
    save_file({"a": np.arange(3), "b": np.ones((2, 2), np.float32)}, tmp_path / "x")
    assert open_mapped(tmp_path / "x", "a").tolist() == [0, 1, 2]
    assert open_mapped(tmp_path / "x", "b").tolist() == [[1, 1], [1, 1]]


@pytest.mark.parametrize(
    "content",
    [b"", b"1234567", b"\xff" * 64, b"\2\0\0\0\0\0\0\0{}", b"\4\0\0\0\0\0\0\0null", b"\2\0\0\0\0\0\0\0[]"],
)
def test_a_file_that_is_not_safetensors_is_refused(tmp_path, content):
    (tmp_path / "x").write_bytes(content)
    with pytest.raises(InputError, match="not a safetensors file"):
        open_mapped(tmp_path / "x", "x")


def test_a_file_that_is_cut_short_is_refused(tmp_path):
    path = tmp_path / "x"
    create_mapped(path, "x", (500,))
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(InputError, match="cut short"):
        open_mapped(path, "x")


def test_a_missing_file_and_an_impossible_place_are_errors_of_one_line(tmp_path):
    with pytest.raises(InputError, match="no such file"):
        open_mapped(tmp_path / "x", "x")
    with pytest.raises(WorkError, match="cannot write"):
        create_mapped(tmp_path / "missing" / "x", "x", (5,))
