"""The exit task."""

from kfp import dsl

from limbeck_components.base import component


@component
def outcome(spec: str, status: dsl.PipelineTaskFinalStatus) -> None:
    """Record how the pipeline has ended, whatever has happened.

    Args:
        spec: The whole spec, as JSON.
        status: Given by Kubeflow.
    """
    from limbeck_components.work import record_outcome

    record_outcome(spec, status.state, status.error_message or "", status.pipeline_job_resource_name)
