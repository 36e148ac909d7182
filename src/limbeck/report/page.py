"""Puts the page together: from `ReportData` to one HTML file."""

from __future__ import annotations

from dataclasses import dataclass

import yaml
from jinja2 import Environment, PackageLoader, StrictUndefined

from limbeck.redact import redact_strings
from limbeck.report import wording
from limbeck.report.charts import accuracy_chart, history_chart
from limbeck.report.curves import curve_chart
from limbeck.report.data import ReportData
from limbeck.report.drawing import Chart, short_name
from limbeck.report.evaluation import (
    RISING,
    RIVALS,
    SMALL_METHODS,
    Setting,
    may_still_rise,
    method_name,
    overall,
    settings_of,
)
from limbeck.report.pictures import SHOWN_REAL, display_width, pictures_of, png_data_uri
from limbeck.report.verdict import headline_of, verdict_of
from limbeck.summary import Summary

_SHOWN_SKIPPED = 10


@dataclass(frozen=True)
class KeyFigure:
    """One of the figures at the top of the page."""

    label: str
    value: str
    note: str


@dataclass(frozen=True)
class Evaluation:
    """A setting with its charts.

    Attributes:
        setting: The task and architecture.
        chart: Accuracy over label fraction, or by method.
        curves: Label fraction -> accuracy over steps; without those that have no such chart.
    """

    setting: Setting
    chart: Chart
    curves: dict[float, Chart]


def render_report(data: ReportData) -> str:
    """The report as one HTML file that fetches nothing: styles, pictures and charts are in it; no script is.

    The same data give the same text. Credentials in URLs are redacted, and whatever comes from the spec or
    the source is escaped.

    Args:
        data: What the report is made from.

    Returns:
        The text of the file, to be written as UTF-8.
    """
    summary = Summary.model_validate(redact_strings(data.summary.model_dump()))
    return (
        _environment()
        .get_template("report.html")
        .render(
            summary=summary,
            verdict=verdict_of(summary),
            key_figures=key_figures(summary),
            evaluations=[_evaluation(setting, i) for i, setting in enumerate(settings_of(summary), 1)],
            differences=[d for d in (overall(summary, rival) for rival in RIVALS) if d is not None],
            pictures=pictures_of(data.synthetic, data.initial),
            real=[png_data_uri(image) for image in data.real[:SHOWN_REAL]],
            picture_width=display_width(summary.distilled.image_size),
            loss_chart=history_chart(
                data.iterations, data.matching_losses, name="loss", quantity="Matching loss", band=True
            ),
            rate_chart=history_chart(data.iterations, data.learning_rates, name="rate", quantity="Learned rate"),
            on_accelerator=any(stage.peak_device_memory_bytes for stage in summary.stages),
            skipped=list(summary.source.skipped.items())[:_SHOWN_SKIPPED],
            links=[(name, target, _is_web_address(target)) for name, target in summary.links.items()],
            spec=_yaml(summary),
            small_methods=wording.listing([method_name(method).lower() for method in SMALL_METHODS]),
        )
    )


def _evaluation(setting: Setting, position: int) -> Evaluation:
    curves = {f: curve_chart(setting, f, f"curve-{position}-{i}") for i, f in enumerate(setting.labels, 1)}
    return Evaluation(
        setting,
        accuracy_chart(setting, f"accuracy-{position}"),
        {label_fraction: chart for label_fraction, chart in curves.items() if chart is not None},
    )


def key_figures(summary: Summary) -> list[KeyFigure]:
    """The figures at the top of the page, the recovered gap first where there is one."""
    distilled, source = summary.distilled, summary.source
    pixels = f"{distilled.image_size} by {distilled.image_size} pixels"
    stored = "" if distilled.bytes is None else f"{wording.size(distilled.bytes)} as stored: "
    return [
        *_gap_figures(summary),
        KeyFigure(
            "Synthetic set",
            wording.count(distilled.images, "image"),
            f"{stored}{pixels}, {distilled.target_dimension}-dimensional targets",
        ),
        KeyFigure("Source", wording.count(source.images, "image"), _share_of_source(summary)),
        KeyFigure("Learned rate", wording.number(distilled.learning_rate), "the step size to pre-train with"),
        KeyFigure(
            "Matching loss",
            wording.number(distilled.matching_loss_last),
            f"from {wording.number(distilled.matching_loss_first)}; 1 is a student that did not move",
        ),
        KeyFigure("Total time", wording.duration(summary.seconds), f"on {summary.device}"),
    ]


def _share_of_source(summary: Summary) -> str:
    """How much of the source the synthetic set is, in bytes with targets; in images where bytes are not known."""
    distilled, source = summary.distilled, summary.source
    whole = next((a.bytes for a in summary.accuracies if a.method == "full" and a.bytes), None)
    if whole is not None and distilled.bytes is not None:
        share = wording.fraction(distilled.bytes / whole)
        return f"{wording.size(whole)} with their targets; the synthetic set is {share} of that"
    share = f"{wording.fraction(distilled.images / source.images)} of " if source.images else "from "
    return f"the synthetic set is {share}it"


def _gap_figures(summary: Summary) -> list[KeyFigure]:
    headline = headline_of(summary)
    if headline is None:
        return []
    setting = headline.setting
    where = f"{setting.task}, {setting.architecture}, {wording.fraction(headline.label_fraction)} of the labels"
    if headline.gap is None:
        distilled = setting.cells["distilled", headline.label_fraction]
        figures = [KeyFigure("Accuracy, distilled", wording.percent(distilled.mean, 1), where)]
    else:
        gap = setting.gaps[headline.label_fraction]
        best = "" if gap.equal_steps_value is None else ", each method at its best steps"
        figures = [KeyFigure("Recovered gap", wording.percent(headline.gap), where + best)]
        if gap.equal_steps is not None and gap.equal_steps_value is not None:
            note = f"there, all methods after {wording.count(gap.equal_steps, 'step')}"
            figures.append(KeyFigure("Recovered gap, equal steps", wording.percent(gap.equal_steps_value), note))
    gaps = [gap.value for gap in summary.recovered_gaps if gap.value is not None]
    if len(gaps) > 1:
        settings = f"over {len(gaps)} settings"
        if len(gaps) < len(summary.recovered_gaps):
            settings = f"over the {len(gaps)} of {len(summary.recovered_gaps)} settings that have one"
        spread = f"{wording.percent(min(gaps))} to {wording.percent(max(gaps))}"
        figures.append(KeyFigure("Recovered gaps", spread, settings))
    return figures


def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("limbeck.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    for function in (
        wording.count,
        wording.number,
        wording.percent,
        wording.fraction,
        wording.duration,
        wording.memory,
        wording.words,
        wording.size,
        wording.points,
        wording.thousands,
        wording.listing,
        may_still_rise,
        method_name,
        short_name,
    ):
        environment.filters[function.__name__] = function
    environment.globals |= {
        "absent": wording.ABSENT,
        "minus": wording.MINUS,
        "rising": RISING,
        "interval": wording.interval,
    }
    return environment


def _is_web_address(target: str) -> bool:
    """Whether a link can be followed from the page; any other scheme, `javascript:` above all, stays text."""
    return target.startswith(("https://", "http://"))


def _yaml(summary: Summary) -> str:
    spec = summary.model_dump(mode="json", include={"spec"})["spec"]
    return yaml.safe_dump(spec, sort_keys=False, allow_unicode=True, width=88) if spec else ""
