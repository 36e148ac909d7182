"""Stage register, and the end of a run."""

from kfp import dsl

from limbeck_components.base import component


@component
def register(
    spec: str,
    sources: str,
    synthetic: dsl.Input[dsl.Dataset],
    scores: dsl.Input[dsl.Dataset],
    distilled: dsl.Output[dsl.Dataset],
    report: dsl.Output[dsl.HTML],
    card: dsl.Output[dsl.Markdown],
    metrics: dsl.Output[dsl.Metrics],
) -> None:
    """Put the distilled set together, register it, and write the run's summary and report.

    Args:
        spec: The whole spec, as JSON.
        sources: The sources' fingerprints.
        synthetic: The synthetic set.
        scores: Its evaluation.
        distilled: Names the distilled set in the store, and the version that it became.
        report: The run's report.
        card: What a person wants to know first.
        metrics: Recovered gaps.
    """
    from limbeck_components.work import conclude

    conclude(spec, sources, {"distill": synthetic, "evaluate": scores}, distilled, metrics, report, card)
