"""Where MLflow is: what identifies a store, and credentials that leave its URI."""

from __future__ import annotations

from pathlib import Path

import pytest

from limbeck.tracking.place import identity_of, without_credentials


@pytest.mark.parametrize(
    ("uri", "bare", "variables"),
    [
        ("https://host/path", "https://host/path", {}),
        ("sqlite:///a.db", "sqlite:///a.db", {}),
        (
            "https://ana:p%40ss@host:5000/path",
            "https://host:5000/path",
            {"MLFLOW_TRACKING_USERNAME": "ana", "MLFLOW_TRACKING_PASSWORD": "p@ss"},
        ),
        ("https://token@host", "https://host", {"MLFLOW_TRACKING_TOKEN": "token"}),
    ],
)
def test_credentials_go_to_mlflow_s_own_variables(uri, bare, variables):
    assert without_credentials(uri) == (bare, variables)


def test_a_relative_store_is_another_one_in_another_folder(tmp_path, monkeypatch):
    here = identity_of("sqlite:///mlflow.db")
    assert here == identity_of(f"sqlite:///{Path('mlflow.db').absolute()}")
    (tmp_path / "there").mkdir()
    monkeypatch.chdir(tmp_path / "there")
    assert identity_of("sqlite:///mlflow.db") != here


def test_a_new_password_is_not_another_store():
    assert identity_of("https://ana:one@host") == identity_of("https://ana:two@host")
