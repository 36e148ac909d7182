"""Stage trajectories."""

from kfp import dsl

from limbeck_components.base import component


@component
def trajectories(
    spec: str,
    sources: str,
    dataset: dsl.Input[dsl.Dataset],
    targets: dsl.Input[dsl.Dataset],
    experts: dsl.Output[dsl.Dataset],
    metrics: dsl.Output[dsl.Metrics],
) -> None:
    """Train the expert students and keep their trajectories: here, or on the Ray cluster that the spec names.

    Args:
        spec: The whole spec, as JSON. With execution.ray.cluster a RayCluster lives as long as this task.
        sources: The sources' fingerprints.
        dataset: The source's images, of ingest.
        targets: The teacher's representations.
        experts: Names the expert trajectories in the store.
        metrics: The experts' losses, time and memory.
    """
    from limbeck_components.work import run_stage

    run_stage("trajectories", spec, sources, {"dataset": dataset, "targets": targets}, experts, metrics)
