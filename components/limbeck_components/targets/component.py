"""Stage targets."""

from kfp import dsl

from limbeck_components.base import component


@component
def targets(
    spec: str,
    sources: str,
    dataset: dsl.Input[dsl.Dataset],
    teacher: dsl.Input[dsl.Model],
    representations: dsl.Output[dsl.Dataset],
    metrics: dsl.Output[dsl.Metrics],
) -> None:
    """Take the teacher's representation of every image: what students are trained to match.

    Args:
        spec: The whole spec, as JSON.
        sources: The sources' fingerprints.
        dataset: The source's images, of ingest.
        teacher: The teacher.
        representations: Names the targets in the store.
        metrics: Time and memory.
    """
    from limbeck_components.work import run_stage

    run_stage("targets", spec, sources, {"dataset": dataset, "teacher": teacher}, representations, metrics)
