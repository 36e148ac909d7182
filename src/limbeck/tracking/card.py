"""The dataset card: what a distilled set is, in Markdown, for people who meet it in the registry."""

from __future__ import annotations

from collections.abc import Sequence

import yaml

from limbeck.cli_table import PLAIN, difference_words, percent_of_labels
from limbeck.data.distilled_files import PREVIEW
from limbeck.redact import redact_strings
from limbeck.summary import Accuracy, Difference, RecoveredGap
from limbeck.tracking.messages import Publish


def _sentence(request: Publish) -> str:
    """What it is, in a sentence or two."""
    side = request.image_size
    source = request.tags["limbeck.source"]
    size = next((a.bytes for a in _accuracies(request) if a.method == "distilled" and a.bytes), None)
    stored = "" if size is None else f", {_in_plain(size)} with their targets"
    text = f"{request.images} synthetic images of {side}x{side} pixels{stored}, distilled from {source}."
    gaps = [gap for gap in _gaps(request) if gap.value is not None]
    if gaps:
        settings = ((gap.value, f"{gap.task}, {percent_of_labels(gap.label_fraction)} of the labels") for gap in gaps)
        each = ", ".join(f"{value:.2f} ({setting})" for value, setting in settings)
        text += f" Recovered gap: {each}."
    return text


def card(request: Publish, *, as_file: bool) -> str:
    """The card: a file beside the set, or, without picture and spec, a description where nothing lies beside it."""
    use = f"models:/{request.name}@champion" if request.name else request.location
    parts = [
        f"# {request.title}\n\n{_sentence(request)}",
        f"![the synthetic images]({PREVIEW})" if as_file else "",
        f"## Use\n\n```python\nimport limbeck\n\ndistilled = limbeck.load({use!r})\n"
        "encoder = limbeck.pretrain(encoder, distilled)\n```\n\nImages that the encoder is to see later are normalised "
        "with `distilled.mean` and `distilled.std`.",
        _evaluation(request),
        "## Recipe\n\n" + markdown_table(("setting", "value"), list(request.recipe.items())),
        "## Lineage\n\n"
        + markdown_table(("made from", "digest"), [(n, f"`{d[:16]}`") for n, d in request.lineage.items()]),
        f"## Spec\n\n```yaml\n{yaml.safe_dump(redact_strings(request.spec), sort_keys=False)}```" if as_file else "",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _in_plain(size: int) -> str:
    """A size in bytes, as `64.0 kB`, in plain characters."""
    from limbeck.report import wording

    return wording.size(size).translate(PLAIN)


def _accuracies(request: Publish) -> list[Accuracy]:
    return [Accuracy.model_validate(entry) for entry in request.evaluation["accuracies"]]


def _differences(request: Publish) -> list[Difference]:
    """The mean differences over all settings; earlier sets have none."""
    found = (Difference.model_validate(entry) for entry in request.evaluation.get("differences", []))
    return [entry for entry in found if entry.task is None]


def _gaps(request: Publish) -> list[RecoveredGap]:
    return [RecoveredGap.model_validate(entry) for entry in request.evaluation["recoveredGaps"]]


def _evaluation(request: Publish) -> str:
    accuracies = _accuracies(request)
    if not accuracies:
        return "## Evaluation\n\nIt was not evaluated."
    parts = [
        "## Evaluation\n\nLinear-probe accuracy on test images in %, mean ± deviation over the seeds. Each method's "
        "learning rate and steps were chosen on held-out labels."
    ]
    line = difference_words(_differences(request))
    if line:
        parts.append(f"Difference of the distilled set: {line}.")
    for task, architecture in dict.fromkeys((a.task, a.architecture) for a in accuracies):
        cells = [a for a in accuracies if (a.task, a.architecture) == (task, architecture)]
        fractions = list(dict.fromkeys(cell.label_fraction for cell in cells))
        rows: list[tuple[object, ...]] = []
        for method in dict.fromkeys(cell.method for cell in cells):
            by_fraction = {c.label_fraction: c for c in cells if c.method == method}
            found = [by_fraction.get(f) for f in fractions]
            shown = ["-" if c is None else f"{100 * c.mean:.1f} ± {100 * c.deviation:.1f}" for c in found]
            size = next((c.bytes for c in by_fraction.values()), None)
            rows.append((method, *shown, "-" if size is None else _in_plain(size)))
        gaps = {g.label_fraction: g.value for g in _gaps(request) if (g.task, g.architecture) == (task, architecture)}
        if gaps:
            values = [gaps.get(fraction) for fraction in fractions]
            rows.append(("recovered gap", *("-" if value is None else f"{value:.2f}" for value in values), "-"))
        heads = ("pre-trained on", *(f"{percent_of_labels(f)} of the labels" for f in fractions), "bytes")
        parts.append(f"### {task}, {architecture}\n\n" + markdown_table(heads, rows))
    return "\n\n".join(parts)


def markdown_table(heads: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A table in Markdown, without a newline at its end."""
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join("| " + " | ".join(str(cell).replace("|", "\\|") for cell in line) + " |" for line in lines)
