"""The pipeline: one task a stage, each with the pod settings that the spec has for it."""

from collections.abc import Sequence
from pathlib import Path
from typing import get_args

from kfp import compiler, dsl, kubernetes
from kfp.dsl import graph_component, pipeline_task

from limbeck.cluster import IMAGE
from limbeck.errors import InputError
from limbeck.spec import Baseline, Distillation, Execution, Resources, StageName
from limbeck_components.distill.component import distill
from limbeck_components.encoders.component import encoders
from limbeck_components.evaluate.component import evaluate
from limbeck_components.fingerprint.component import fingerprint
from limbeck_components.ingest.component import ingest
from limbeck_components.outcome.component import outcome
from limbeck_components.register.component import register
from limbeck_components.select.component import select
from limbeck_components.targets.component import targets
from limbeck_components.teacher.component import teacher
from limbeck_components.trajectories.component import trajectories

PREFIX = "limbeck-"  # of the names of pipelines and schedules
_FOR_EVER = "31536000s"  # Argo counts the work itself, too, and would end a retry when it is over
_DESCRIPTION = "Distils an image dataset into a small synthetic one that pre-trains encoders."


def pipeline_name(distillation: Distillation) -> str:
    """Of the pipeline, and of its schedule."""
    return f"{PREFIX}{distillation.metadata.name}"


def build(
    distillation: Distillation, image: str | None = None, *, here: bool = False
) -> graph_component.GraphComponent:
    """The pipeline of a spec.

    Args:
        distillation: the spec, which becomes the default of the pipeline's parameter.
        image: of all tasks; by default the spec's, else limbeck's own of this version.
        here: whether it is run on this machine.

    Raises:
        InputError: a quantity that Kubeflow does not know.
    """
    settings, image = distillation.spec, image or distillation.spec.execution.image or IMAGE
    execution = settings.execution.model_copy(update={"image": image})  # a Ray cluster of the run has it too
    distillation = distillation.model_copy(update={"spec": settings.model_copy(update={"execution": execution})})
    pods = _Pods(execution, image, here=here)
    methods = ["distilled", *settings.evaluate.baselines] if settings.evaluate.tasks else []

    @dsl.pipeline(name=pipeline_name(distillation), description=_DESCRIPTION)  # type: ignore[untyped-decorator]
    def pipeline(spec: str = distillation.model_dump_json(by_alias=True)) -> None:
        _wire(spec, pods, methods)

    return pipeline


def build_for_any() -> graph_component.GraphComponent:
    """The pipeline for any spec, which whoever starts a run pastes in; its pods ask for nothing in particular."""
    pods = _Pods(Execution(), IMAGE)

    @dsl.pipeline(name=f"{PREFIX}distillation", description=_DESCRIPTION)  # type: ignore[untyped-decorator]
    def pipeline(spec: str) -> None:
        _wire(spec, pods, ["distilled", *get_args(Baseline)])

    return pipeline


def _wire(spec: str, pods: "_Pods", methods: Sequence[str]) -> None:
    """One task a stage, and one a method that encoders are pre-trained by; at the end, in any case, the outcome."""
    end = pods.prepare(outcome(spec=spec), None, retries=0)
    with dsl.ExitHandler(end, name="stages"):
        begun = pods.prepare(fingerprint(spec=spec), None)
        common = {"spec": spec, "sources": begun.output}
        data = pods.prepare(ingest(**common), "ingest").outputs["dataset"]
        model = pods.prepare(teacher(**common, dataset=data), "teacher").outputs["model"]
        matched = pods.prepare(targets(**common, dataset=data, teacher=model), "targets").outputs["representations"]
        shown = pods.prepare(trajectories(**common, dataset=data, targets=matched), "trajectories")
        experts = shown.outputs["experts"]
        choice = pods.prepare(select(**common, dataset=data, targets=matched, trajectories=experts), "select")
        chosen = choice.outputs["selection"]
        made = pods.prepare(distill(**common, trajectories=experts, selection=chosen), "distill")
        synthetic = made.outputs["synthetic"]
        parts = []
        for method in methods:  # side by side, and all but the first beside distill
            made_from = synthetic if method == "distilled" else chosen
            part = pods.prepare(encoders(**common, method=method, made_from=made_from), "evaluate")
            parts.append(part.set_display_name(f"encoders, {method}"))
        judged = pods.prepare(evaluate(**common, synthetic=synthetic), "evaluate").after(*parts)
        pods.prepare(register(**common, synthetic=synthetic, scores=judged.outputs["scores"]), "register")


def compile_to(pipeline: graph_component.GraphComponent, file: str | Path) -> None:
    """Write a pipeline as YAML; the same spec gives the same bytes."""
    compiler.Compiler().compile(pipeline, str(file))


class _Pods:
    """What every task's pod is like."""

    def __init__(self, execution: Execution, image: str, *, here: bool = False) -> None:
        self._execution, self._image, self._here = execution, image, here

    def prepare(
        self, task: pipeline_task.PipelineTask, stage: StageName | None, retries: int | None = None
    ) -> pipeline_task.PipelineTask:
        """Give a task its settings; it is never taken from Kubeflow's cache, whose key does not know the data."""
        execution = self._execution
        task.set_caching_options(False)
        task.set_container_image(self._image)
        tries = execution.backoff_limit if retries is None else retries
        if tries:
            task.set_retry(tries, backoff_duration="30s", backoff_factor=1.0, backoff_max_duration=_FOR_EVER)
        if execution.active_deadline_seconds is not None and retries is None:
            kubernetes.set_timeout(task, execution.active_deadline_seconds)
        if not self._here:
            task.set_env_variable("HOME", "/tmp")  # noqa: S108 - the pod's own; whoever runs it may have no home
        kubernetes.use_field_path_as_env(task, "LIMBECK_POD_NAME", "metadata.name")
        for secret in execution.secrets:
            for variable, key in secret.environment.items():
                kubernetes.use_secret_as_env(task, secret.name, {key: variable})
            if secret.mount_path is not None:
                kubernetes.use_secret_as_volume(task, secret.name, secret.mount_path)
        for volume in execution.volumes:
            kubernetes.mount_pvc(task, volume.claim, volume.mount_path)
        if execution.image_pull_secrets:
            kubernetes.set_image_pull_secrets(task, execution.image_pull_secrets)
        if stage is not None and stage in execution.resources:
            self._resources(task, stage, execution.resources[stage])
        return task

    def _resources(self, task: pipeline_task.PipelineTask, stage: StageName, wanted: Resources) -> None:
        for name, amount in (("cpu", wanted.cpu), ("memory", wanted.memory)):
            if amount is None:
                continue
            try:
                getattr(task, f"set_{name}_request")(amount)
                getattr(task, f"set_{name}_limit")(amount)
            except ValueError:
                where = f"spec.execution.resources.{stage}.{name}"
                raise InputError(where, amount, "for Kubeflow: 2 or 500m CPU cores, 8Gi of memory") from None
        if wanted.gpus:
            task.set_accelerator_type(wanted.gpu_resource)
            task.set_accelerator_limit(wanted.gpus)
        for label, value in wanted.node_selector.items():
            kubernetes.add_node_selector(task, label, value)
        for toleration in wanted.tolerations:
            kubernetes.add_toleration(
                task,
                key=toleration.key,
                operator=toleration.operator,
                value=toleration.value,
                effect=toleration.effect,
                toleration_seconds=toleration.toleration_seconds,
            )
        if wanted.shared_memory is not None:
            kubernetes.empty_dir_mount(
                task,
                volume_name="shm",
                mount_path="/dev/shm",  # noqa: S108
                medium="Memory",
                size_limit=wanted.shared_memory,
            )
