"""Kubeflow Pipelines, as the operator uses it: one thread asks, since the official client is made for one."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, TypeVar

from limbeck.errors import InputError, WorkError
from limbeck.kubeflow import Access
from limbeck.redact import redact_url
from limbeck.spec import Distillation
from limbeck_operator import api
from limbeck_operator.answers import Answers
from limbeck_operator.by_kubeflow import names_of
from limbeck_operator.cache import Key, key_of
from limbeck_operator.leader import NotLeadingError
from limbeck_operator.observed import Looked
from limbeck_operator.plan import Submit

if TYPE_CHECKING:
    from limbeck_pipelines.client import Kubeflow

T = TypeVar("T")

_EXPERIMENT = "limbeck"
_PACE = 3.0  # answers a second that Kubeflow is asked for at most
_UNKNOWN = Looked(trouble="this operator knows no Kubeflow: start it with --kubeflow-host")


class Pipelines:
    """One installation of Kubeflow Pipelines; where it has a namespace for each user, an object's is the object's own.

    Every method raises `InputError` or `WorkError`, as `limbeck_pipelines.client.Kubeflow` does.

    Args:
        access: where it is, and who asks.
        leads: asked right before a run is made.
        image: of runs whose spec names none.
    """

    def __init__(self, access: Access, leads: Callable[[], bool], image: str) -> None:
        if find_spec("kfp") is None:
            raise InputError("--kubeflow-host", "kfp is not installed", "pip install 'limbeck[kubeflow]'")
        self._access, self._leads, self._image = access, leads, image
        self._thread = ThreadPoolExecutor(1, "kubeflow")
        self._clients: dict[str | None, Kubeflow] = {}
        self._serves_several: bool | None = None

    async def look(self, namespace: str, names: Sequence[str]) -> Looked:
        """What runs of these names there are."""

        def asked() -> Looked:
            client = self._client(namespace)
            found = [client.named(name) for name in names]
            return Looked(tuple(run for run in found if run is not None))

        return await self._asked(asked)

    async def submit(self, distillation: Distillation, namespace: str, name: str) -> None:
        """Start a run of that name."""

        def asked() -> None:
            self._client(namespace).submit(
                distillation,
                experiment=_EXPERIMENT,
                run_name=name,
                image=distillation.spec.execution.image or self._image,
                before=self._check,
            )

        await self._asked(asked)

    async def terminate(self, namespace: str, ids: Sequence[str]) -> None:
        """Have runs end."""

        def asked() -> None:
            for entry in ids:
                self._check()
                self._client(namespace).terminate(entry)

        await self._asked(asked)

    def close(self) -> None:
        """Ask nothing any more."""
        self._thread.shutdown(wait=False, cancel_futures=True)

    def _check(self) -> None:
        if not self._leads():
            raise NotLeadingError

    def _client(self, namespace: str) -> Kubeflow:
        from limbeck_pipelines.client import Kubeflow

        if self._serves_several is None:
            self._clients[None] = Kubeflow(self._access, attempts=1)
            self._serves_several = self._clients[None].serves_several
        space = namespace if self._serves_several and self._access.namespace is None else None
        if space not in self._clients:
            self._clients[space] = Kubeflow(replace(self._access, namespace=space), attempts=1)
        return self._clients[space]

    async def _asked(self, call: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, call)


class Runs:
    """The runs of Distillations, asked for in the background.

    Args:
        pipelines: where they are; None where the operator knows no Kubeflow.
        arrived: told of an object about whose runs there is news.
        least: seconds that an answer is good for, at least.
    """

    def __init__(self, pipelines: Pipelines | None, arrived: Callable[[Key], None], least: float) -> None:
        self._pipelines = pipelines
        self._answers: Answers[Key, Looked] = Answers(arrived, _trouble, at_once=1, pace=_PACE, least=least)

    @property
    def seconds(self) -> float:
        """How often Kubeflow may be asked about one."""
        return self._answers.seconds

    def look(self, document: Mapping[str, Any]) -> Looked | None:
        """What Kubeflow has last said of an object's runs; None before it has."""
        names, pipelines = names_of(document), self._pipelines
        if pipelines is None:
            return _UNKNOWN
        if not names:
            self._answers.forget(_key(document))
            return None
        namespace = document["metadata"]["namespace"]
        return self._answers.look(_key(document), names, lambda: pipelines.look(namespace, names))

    def submit(self, document: Mapping[str, Any], what: Submit) -> None:
        """Begin to submit a run; what Kubeflow says then is news."""
        pipelines, namespace = self._pipelines, document["metadata"]["namespace"]
        if pipelines is not None:
            self._answers.do(
                _key(document),
                names_of(document),
                lambda: pipelines.submit(what.distillation, namespace, what.name),
            )

    def terminate(self, document: Mapping[str, Any], ids: Sequence[str]) -> None:
        """Begin to terminate runs; what Kubeflow says then is news."""
        pipelines, namespace = self._pipelines, document["metadata"]["namespace"]
        if pipelines is not None:
            self._answers.do(_key(document), names_of(document), lambda: pipelines.terminate(namespace, ids))

    def forget(self, key: Key) -> None:
        """An object is gone."""
        self._answers.forget(key)

    async def rest(self) -> None:
        """Ask nothing until asked again, and know nothing any more."""
        await self._answers.close()

    def close(self) -> None:
        """Let go of the connections."""
        if self._pipelines is not None:
            self._pipelines.close()


def _key(document: Mapping[str, Any]) -> Key:
    return key_of(api.DISTILLATION, document)


def _trouble(error: Exception) -> Looked:
    """What went wrong, as an answer."""
    known = isinstance(error, InputError | WorkError)
    return Looked(trouble=redact_url(str(error) if known else f"{type(error).__name__}: {error}"))
