"""Stage select."""

from kfp import dsl

from limbeck_components.base import component


@component
def select(
    spec: str,
    sources: str,
    dataset: dsl.Input[dsl.Dataset],
    targets: dsl.Input[dsl.Dataset],
    trajectories: dsl.Input[dsl.Dataset],
    selection: dsl.Output[dsl.Dataset],
    metrics: dsl.Output[dsl.Metrics],
) -> None:
    """Choose the images that the synthetic set starts from.

    Args:
        spec: The whole spec, as JSON.
        sources: The sources' fingerprints.
        dataset: The source's images, of ingest.
        targets: The teacher's representations.
        trajectories: The expert trajectories.
        selection: Names the selection in the store.
        metrics: Time and memory.
    """
    from limbeck_components.work import run_stage

    inputs = {"dataset": dataset, "targets": targets, "trajectories": trajectories}
    run_stage("select", spec, sources, inputs, selection, metrics)
