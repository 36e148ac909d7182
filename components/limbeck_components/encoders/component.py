"""A part of stage evaluate."""

from kfp import dsl

from limbeck_components.base import component


@component
def encoders(spec: str, sources: str, method: str, made_from: dsl.Input[dsl.Dataset]) -> None:
    """Train and probe the encoders of one method, beside those of others; evaluate then finds them done.

    Args:
        spec: The whole spec, as JSON.
        sources: The sources' fingerprints.
        method: What they are pre-trained on: distilled, random, highLoss, full, or none. Nothing is done for one that
            the spec does not evaluate.
        made_from: The synthetic set for distilled, the selection for its rivals.
    """
    from limbeck_components.work import train_encoders

    stage = "distill" if method == "distilled" else "select"
    train_encoders(spec, sources, method, {stage: made_from})
