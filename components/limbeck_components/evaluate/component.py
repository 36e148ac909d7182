"""Stage evaluate."""

from kfp import dsl

from limbeck_components.base import component


@component
def evaluate(
    spec: str,
    sources: str,
    synthetic: dsl.Input[dsl.Dataset],
    scores: dsl.Output[dsl.Dataset],
    table: dsl.Output[dsl.Markdown],
    metrics: dsl.Output[dsl.Metrics],
) -> None:
    """Compare encoders pre-trained on the synthetic set with those on its rivals, by linear probes.

    Args:
        spec: The whole spec, as JSON.
        sources: The sources' fingerprints.
        synthetic: The synthetic set.
        scores: Names the accuracies in the store.
        table: The accuracies, mean and deviation over the seeds.
        metrics: Accuracies, recovered gaps, time and memory.
    """
    from limbeck_components.work import run_stage

    run_stage("evaluate", spec, sources, {"distill": synthetic}, scores, metrics, table=table)
