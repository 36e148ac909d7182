"""What a run leaves for people and programs: `runs/<name>/summary.json`, and `report.html` beside it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import ValidationError

from limbeck.checkpoint import load_tensors
from limbeck.data.dataset import ImageDataset
from limbeck.data.distilled import DistilledSet
from limbeck.errors import InputError, WorkError
from limbeck.report import ReportData, render_report
from limbeck.store import DamagedResultError, Store
from limbeck.summary import Summary

REPORT, SUMMARY = "report.html", "summary.json"
_REAL_IMAGES = 24


def write_summary(store: Store, summary: Summary) -> None:
    """Write `runs/<name>/summary.json`."""
    text = summary.model_dump_json(by_alias=True, indent=2) + "\n"
    store.write_text(f"runs/{summary.name}/{SUMMARY}", text)


def read_summary(store: Store, name: str | None) -> Summary:
    """The summary of the run of that name, or of the only run.

    Raises:
        InputError: there is no such run, or there are several and none is named.
    """
    names = store.names("runs")
    if name is None:
        if len(names) != 1:
            found = f"{len(names)} runs" if names else "no finished run"
            raise InputError(store.url, found, f"--name {' or '.join(names)}" if names else "the output of limbeck run")
        (name,) = names
    try:
        text = store.read_text(f"runs/{name}/{SUMMARY}")
        if text is None:
            raise InputError(store.url, f"no run {name!r}", " or ".join(names) or "the output of limbeck run")
        return Summary.model_validate_json(text)
    except (ValidationError, UnicodeDecodeError):
        raise InputError(f"{store.url}/runs/{name}/{SUMMARY}", "damaged", "run the spec again") from None


def read_history(distill: Path) -> pa.Table:
    """The history of a distillation: iteration, matchingLoss, learningRate, expert, startEpoch."""
    return pq.read_table(distill / "history.parquet")


def write_report(store: Store, summary: Summary) -> str:
    """Write `runs/<name>/report.html` from the summary and the results that it names; returns the page."""
    stages = {stage.name: stage for stage in summary.stages}

    def folder(label: str, stage: str) -> Path:
        try:
            result = store.find(stage, stages[label].key)
        except DamagedResultError as damage:
            raise WorkError(f"{damage}; run the spec again") from None
        if result is None:
            raise WorkError(f"{store.location(stage, stages[label].key)} is gone; run the spec again")
        return result.path

    dataset = ImageDataset.open(folder("ingest source", "ingest"))
    distilled = DistilledSet.load(folder("register", "register"))
    distill = folder("distill", "distill")
    initial = load_tensors(distill / "synthetic.safetensors")[0]["initial_images"]
    history = read_history(distill)
    chosen = np.random.default_rng(0).permutation(len(dataset))[:_REAL_IMAGES]
    html = render_report(
        ReportData(
            summary=summary,
            iterations=history["iteration"].to_numpy(),
            matching_losses=history["matchingLoss"].to_numpy(),
            learning_rates=history["learningRate"].to_numpy(),
            synthetic=distilled.viewable(distilled.images).numpy(),
            initial=distilled.viewable(initial).numpy(),
            real=np.array(dataset.images[np.sort(chosen)]),
        )
    )
    store.write_text(f"runs/{summary.name}/{REPORT}", html)
    return html
