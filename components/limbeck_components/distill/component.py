"""Stage distill."""

from kfp import dsl

from limbeck_components.base import component


@component
def distill(
    spec: str,
    sources: str,
    trajectories: dsl.Input[dsl.Dataset],
    selection: dsl.Input[dsl.Dataset],
    synthetic: dsl.Output[dsl.Dataset],
    images: dsl.Output[dsl.HTML],
    metrics: dsl.Output[dsl.Metrics],
) -> None:
    """Optimise the synthetic images so that training on them follows the expert trajectories.

    Args:
        spec: The whole spec, as JSON.
        sources: The sources' fingerprints.
        trajectories: The expert trajectories.
        selection: What the synthetic set starts from.
        synthetic: Names the synthetic images, targets and learned rate in the store.
        images: The synthetic images before and after.
        metrics: Matching loss, learned rate, time and memory.
    """
    from limbeck_components.work import run_stage

    inputs = {"trajectories": trajectories, "select": selection}
    run_stage("distill", spec, sources, inputs, synthetic, metrics, images=images)
