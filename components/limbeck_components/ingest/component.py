"""Stage ingest."""

from kfp import dsl

from limbeck_components.base import component


@component
def ingest(spec: str, sources: str, dataset: dsl.Output[dsl.Dataset], metrics: dsl.Output[dsl.Metrics]) -> None:
    """Read the source and the evaluation's tasks into the store, once.

    Args:
        spec: The whole spec, as JSON.
        sources: The sources' fingerprints; a source that has changed since fails the task.
        dataset: Names the source's images in the store.
        metrics: How long it took, and how much memory.
    """
    from limbeck_components.work import run_stage

    run_stage("ingest", spec, sources, {}, dataset, metrics)
