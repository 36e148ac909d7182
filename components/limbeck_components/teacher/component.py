"""Stage teacher."""

from kfp import dsl

from limbeck_components.base import component


@component
def teacher(
    spec: str,
    sources: str,
    dataset: dsl.Input[dsl.Dataset],
    model: dsl.Output[dsl.Model],
    metrics: dsl.Output[dsl.Metrics],
) -> None:
    """Train the teacher by self-supervised learning, or import one.

    Args:
        spec: The whole spec, as JSON.
        sources: The sources' fingerprints.
        dataset: The source's images, of ingest.
        model: Names the teacher in the store.
        metrics: Its last loss, time and memory.
    """
    from limbeck_components.work import run_stage

    run_stage("teacher", spec, sources, {"dataset": dataset}, model, metrics)
