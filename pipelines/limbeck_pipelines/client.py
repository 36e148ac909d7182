"""A Kubeflow Pipelines installation: submit a pipeline, wait for it, and keep schedules."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import re
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import kfp
import kfp_server_api
import urllib3
from google.auth.exceptions import GoogleAuthError
from kfp.client import ServiceAccountTokenVolumeCredentials

from limbeck.cluster import check_for_cluster
from limbeck.errors import InputError, WorkError
from limbeck.interrupt import StopRequest
from limbeck.kubeflow import DONE, FAILED, OUTCOME, SUCCEEDED, Access, Run, Task
from limbeck.progress import Progress
from limbeck.redact import redact_url
from limbeck.spec import Distillation
from limbeck_pipelines.distillation import PREFIX, build, compile_to, pipeline_name

_ATTEMPTS, _FIRST_PAUSE = 5, 1.0  # of a request that Kubeflow answers with 5xx, and seconds before the second
_INNER = re.compile(r"executor.*|exit-handler.*|root.*|.*-driver")  # tasks that are Kubeflow's own
_PAGE = 100
_TIMEOUTS = (10.0, 60.0)  # seconds to connect, and until an answer comes
_PATIENCE = 900.0  # seconds that a run is waited for while Kubeflow does not answer
_LOG = "/apis/v1alpha1/runs/{run_id}/nodes/{node_id}/log"  # of a pod; there is no later one
_LOGS, _LOG_BYTES = 8, 2**20  # at most, of a run that has failed

T = TypeVar("T")


@dataclass(frozen=True)
class Schedule:
    """A recurring run."""

    id: str
    name: str
    cron: str
    enabled: bool
    link: str


class _Client(kfp.Client):  # type: ignore[misc]  # its module has no types
    """The official client; how often to ask is not its business."""

    def get_kfp_healthz(self, sleep_duration: int = 5) -> Any:
        return self._healthz_api.healthz_service_get_healthz(_request_timeout=_TIMEOUTS)

    @property
    def transport(self) -> Any:
        """What all its requests go through."""
        return self._healthz_api.api_client


class Kubeflow:
    """An installation of Kubeflow Pipelines.

    Every method raises `InputError` where the host, the credentials or a name are wrong, and `WorkError` where Kubeflow
    does not answer, or answers with an error, also after retries.

    Args:
        access: where it is, and who asks.
        attempts: how often it is asked before that is said.
    """

    def __init__(self, access: Access, attempts: int = _ATTEMPTS) -> None:
        self._attempts = attempts
        given = [n for n in ("token", "token_file", "cookies", "iap_client") if getattr(access, n) is not None]
        if len(given) > 1:
            flags = " and ".join(f"--{name.replace('_', '-')}" for name in given)
            raise InputError(access.host, f"{flags} are given", "one way to say who is asking")
        self._access = access
        if access.token_file is not None and not Path(access.token_file).is_file():
            raise InputError("--token-file", f"{access.token_file} is not there", "a file with a token")
        self._client: Any = None
        self._client = self._ask(self._connect)
        self._space = access.namespace or self._client.get_user_namespace() or None

    def _connect(self) -> Any:
        access = self._access
        volume = ServiceAccountTokenVolumeCredentials(access.token_file) if access.token_file is not None else None
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of a host without https://, which is then used
            client = _Client(
                host=access.host,
                client_id=access.iap_client,
                existing_token=access.token,
                cookies=access.cookies,
                credentials=volume,
                ssl_ca_cert=access.ca_file,
            )
        transport = client.transport
        transport.request = _patient(transport.request)
        return client

    def submit(
        self,
        distillation: Distillation,
        *,
        experiment: str,
        run_name: str,
        service_account: str | None = None,
        image: str | None = None,
        before: Callable[[], None] = lambda: None,
    ) -> str:
        """Start a run of a spec's pipeline; its id. What `before` raises, when all else is ready, prevents it."""
        place = self._experiment(experiment)
        pipeline, version = self._upload(distillation, image)
        before()
        run = self._ask(
            lambda: self._client.run_pipeline(
                place,
                run_name,
                pipeline_id=pipeline,
                version_id=version,
                service_account=service_account or distillation.spec.execution.service_account,
            ),
            once=True,
        )
        return str(run.run_id)

    def link(self, run: str) -> str:
        """The page of a run."""
        return self._page(f"runs/details/{run}")

    @property
    def serves_several(self) -> bool:
        """Whether every user has a namespace of their own, with experiments and pipelines of its own."""
        return bool(self._ask(self._client.get_kfp_healthz).multi_user)

    def named(self, name: str) -> Run | None:
        """The run of a name, as it is now; of several, which two submitters at once can make, the first.

        The others are terminated.
        """
        filtered = json.dumps({"predicates": [{"operation": 1, "key": "display_name", "stringValue": name}]})  # equals
        found = self._ask(
            lambda: list(
                _pages(
                    lambda token: self._client.list_runs(token, _PAGE, namespace=self._space, filter=filtered), "runs"
                )
            )
        )
        runs = sorted(found, key=lambda run: (run.created_at, run.run_id))
        for other in runs[1:]:
            if other.state not in DONE:
                self.terminate(other.run_id)
        return self._seen(self._ask(lambda: self._client.get_run(runs[0].run_id))) if runs else None

    def terminate(self, run: str) -> None:
        """Have a run end; one that has ended already stays as it is."""
        self._ask(lambda: self._client.terminate_run(run))

    def _seen(self, found: Any) -> Run:
        tasks = _tasks(found)
        said = ""
        if found.state == SUCCEEDED:
            latest = sorted(tasks, key=lambda task: str(task.end_time or task.create_time or ""), reverse=True)
            said = self._own_words(found.run_id, latest, OUTCOME) or ""
        elif found.state in DONE:
            said = self._reason(found, tasks)
        own = [task for task in tasks if task.display_name and not _INNER.fullmatch(task.display_name)]
        return Run(
            id=str(found.run_id),
            name=str(found.display_name),
            state=found.state or "PENDING",
            link=self.link(found.run_id),
            tasks=tuple(
                Task(task.task_id, task.display_name, task.state or "", task.start_time, task.end_time) for task in own
            ),
            said=said,
        )

    def wait(
        self, run: str, progress: Progress, stop: StopRequest, *, timeout: float | None = None, every: float = 5.0
    ) -> None:
        """Until a run has ended, telling what its tasks do.

        Raises:
            WorkError: it failed, with what the failed task said; it was cancelled; or it took longer than `timeout`
                seconds, and still runs.
            Stopped: a stop was asked for; the run goes on.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        seen: dict[str, str] = {}
        while True:
            found = self._watched(run, progress, stop)
            tasks = _tasks(found)
            for task in tasks:
                name, state = task.display_name or "", task.state or ""
                if name and state and not _INNER.fullmatch(name) and seen.get(task.task_id) != state:
                    seen[task.task_id] = state
                    progress.say(f"{name:<24} {state.lower()}")
            if found.state == SUCCEEDED:
                return
            if found.state in DONE:
                why = self._reason(found, tasks)
                raise WorkError(f"{self.link(run)}: {found.state.lower()}{': ' if why else ''}{why}")
            if deadline is not None and time.monotonic() > deadline:
                raise WorkError(f"{self.link(run)}: still {(found.state or 'pending').lower()} after {timeout:g} s")
            _pause(every, stop)

    def _watched(self, run: str, progress: Progress, stop: StopRequest) -> Any:
        """The run as it is now; while Kubeflow does not answer, a restart say, it is asked again."""
        deadline, told = time.monotonic() + _PATIENCE, False
        while True:
            try:
                return self._ask(lambda: self._client.get_run(run))
            except (InputError, WorkError) as error:
                if isinstance(error, InputError) or time.monotonic() > deadline:
                    raise WorkError(f"{self.link(run)} is no longer watched, and may go on: {error}") from None
                if not told:
                    progress.say(f"{error}; it is asked again for {_PATIENCE / 60:.0f} minutes")
                told = True
            _pause(_FIRST_PAUSE, stop)

    def _reason(self, run: Any, tasks: list[Any]) -> str:
        """Why a run has failed: what the stage itself has written, else what Kubeflow says of it."""
        failed = [task for task in tasks if task.state == "FAILED"]
        said = self._own_words(run.run_id, failed, FAILED)
        if said is None:
            said = next((task.error.message for task in reversed(failed) if task.error and task.error.message), None)
        if said is None and run.error is not None:
            said = run.error.message
        names = [task.display_name or "" for task in failed]
        names = [name for name in names if name and not _INNER.fullmatch(name)]
        if not said and names:
            said = f"task {names[-1]}, whose log says why, as does runs/NAME/outcome.json in the output"
        return redact_url(" ".join(said.split())) if said else ""

    def _own_words(self, run: str, tasks: list[Any], mark: str) -> str | None:
        """What a component wrote behind a mark, from the log of its pod; None where no log of these tasks has it."""
        pods: dict[str, None] = {}  # in order
        for task in sorted(tasks, key=lambda task: not (task.display_name or "").startswith("executor")):
            for pod in (task.pod_name, *(child.pod_name for child in task.child_tasks or [])):
                if pod:
                    pods[pod] = None
        for pod in list(pods)[:_LOGS]:
            try:
                with _quiet():
                    answer = self._client.transport.call_api(
                        _LOG,
                        "GET",
                        {"run_id": run, "node_id": pod},
                        auth_settings=["Bearer"],
                        _preload_content=False,
                        _return_http_data_only=True,
                    )
                text = answer.read(_LOG_BYTES).decode(errors="replace")
                answer.release_conn()
            except (kfp_server_api.ApiException, urllib3.exceptions.HTTPError):  # it is gone, or not ours to read
                continue
            own = [str(line).removeprefix(mark) for line in text.splitlines() if line.startswith(mark)]
            if own:
                return own[-1]
        return None

    def schedule(
        self,
        distillation: Distillation,
        cron: str,
        *,
        experiment: str,
        service_account: str | None = None,
        image: str | None = None,
    ) -> tuple[Schedule, bool]:
        """Have a spec's pipeline run at the times of a cron expression; whether that replaced another schedule.

        A run that is due while the one before still works waits; what was missed is not made up for.
        Kubeflow cannot change a recurring run, so the new one is made before the old one is deleted.
        """
        name, six = pipeline_name(distillation), six_fields(cron)
        old = [entry for entry in self.schedules() if entry.name == name]
        place = self._experiment(experiment)
        pipeline, version = self._upload(distillation, image)
        made = self._ask(
            lambda: self._client.create_recurring_run(
                place,
                name,
                cron_expression=six,
                max_concurrency=1,
                no_catchup=True,
                pipeline_id=pipeline,
                version_id=version,
                enabled=all(entry.enabled for entry in old),
                service_account=service_account or distillation.spec.execution.service_account,
            ),
            once=True,
        )
        for entry in old:
            self._ask(lambda entry=entry: self._client.delete_recurring_run(entry.id))  # type: ignore[misc]
        return self._schedule(made), bool(old)

    def schedules(self) -> list[Schedule]:
        """All schedules of limbeck's."""

        def all_() -> list[Schedule]:
            pages = _pages(
                lambda token: self._client.list_recurring_runs(token, _PAGE, namespace=self._space), "recurring_runs"
            )
            return [self._schedule(entry) for entry in pages if (entry.display_name or "").startswith(PREFIX)]

        return sorted(self._ask(all_), key=lambda entry: entry.name)

    def pause(self, name: str) -> None:
        """Have a schedule start nothing until it is resumed."""
        for entry in self._named(name):
            self._ask(lambda entry=entry: self._client.disable_recurring_run(entry.id))  # type: ignore[misc]

    def resume(self, name: str) -> None:
        """Have a paused schedule go on."""
        for entry in self._named(name):
            self._ask(lambda entry=entry: self._client.enable_recurring_run(entry.id))  # type: ignore[misc]

    def unschedule(self, name: str) -> None:
        """Delete a schedule; its runs stay."""
        for entry in self._named(name):
            self._ask(lambda entry=entry: self._client.delete_recurring_run(entry.id))  # type: ignore[misc]

    def _named(self, name: str) -> list[Schedule]:
        all_ = self.schedules()
        found = [entry for entry in all_ if entry.name in (name, f"{PREFIX}{name}")]
        if not found:
            allowed = ", ".join(entry.name for entry in all_) or "nothing is scheduled"
            raise InputError(name, f"no such schedule at {self._shown}", allowed)
        return found

    def _upload(self, distillation: Distillation, image: str | None) -> tuple[str, str]:
        """The ids of the pipeline and of its version; equal specs are one version."""
        check_for_cluster(distillation.spec)
        name = pipeline_name(distillation)
        with tempfile.TemporaryDirectory() as folder:
            file = f"{folder}/pipeline.yaml"
            compile_to(build(distillation, image), file)
            digest = hashlib.sha256(Path(file).read_bytes()).hexdigest()[:16]

            def pipeline() -> str:
                found = self._pipeline(name)
                return str(found or self._client.upload_pipeline(file, name, namespace=self._space).pipeline_id)

            pipeline_id = self._ask(pipeline, again_on_conflict=True)

            def version() -> str:
                found = self._version(pipeline_id, digest)
                if found is not None:
                    return found
                made = self._client.upload_pipeline_version(file, digest, pipeline_id=pipeline_id)
                return str(made.pipeline_version_id)

            return pipeline_id, self._ask(version, again_on_conflict=True)

    def _pipeline(self, name: str) -> str | None:
        """Its id; the client's own search does not see a namespace's private pipelines."""
        pages = _pages(lambda token: self._client.list_pipelines(token, _PAGE, namespace=self._space), "pipelines")
        return next((str(entry.pipeline_id) for entry in pages if entry.display_name == name), None)

    def _version(self, pipeline: str, name: str) -> str | None:
        pages = _pages(lambda token: self._client.list_pipeline_versions(pipeline, token, _PAGE), "pipeline_versions")
        return next((str(entry.pipeline_version_id) for entry in pages if entry.display_name == name), None)

    def _experiment(self, name: str) -> str:
        found = self._ask(lambda: self._client.create_experiment(name, namespace=self._space))
        return str(found.experiment_id)

    def _schedule(self, entry: Any) -> Schedule:
        cron = entry.trigger.cron_schedule if entry.trigger is not None else None
        return Schedule(
            entry.recurring_run_id,
            entry.display_name,
            cron.cron if cron is not None else "",
            entry.status != "DISABLED" and entry.mode != "DISABLE",
            self._page(f"recurringrun/details/{entry.recurring_run_id}"),
        )

    @property
    def _shown(self) -> str:
        return redact_url(self._access.host)

    def _page(self, place: str) -> str:
        host = self._shown if "://" in self._shown else f"https://{self._shown}"
        return f"{host.rstrip('/')}/#/{place}"

    def _ask(self, call: Callable[[], T], *, once: bool = False, again_on_conflict: bool = False) -> T:
        """Ask Kubeflow, again where that may help.

        Args:
            call: asks.
            once: whether asking a second time could do something twice, where the answer to the first was lost.
            again_on_conflict: whether what is there already, by somebody who was faster, is found when asked again.
        """
        pause = _FIRST_PAUSE
        for attempt in range(1, self._attempts + 1):
            try:
                with _quiet():
                    answer = call()
                self._check_speaker()
                return answer
            except GoogleAuthError as error:
                allowed = "GOOGLE_APPLICATION_CREDENTIALS, a service account's"
                raise InputError("--iap-client", " ".join(str(error).split())[:300], allowed) from None
            except kfp_server_api.ApiException as error:
                status = error.status or 0
                conflict = status == 409 and again_on_conflict
                passing = status == 503 or (status >= 500 and not once)  # 503: nobody was there to do anything
                if attempt == self._attempts or not (conflict or passing):
                    raise self._explained(error) from None
            except urllib3.exceptions.HTTPError as error:
                if attempt == self._attempts or once:
                    reason = " ".join(str(getattr(error, "reason", error)).split())
                    raise WorkError(f"Kubeflow at {self._shown} does not answer: {redact_url(reason)}") from None
            time.sleep(pause)
            pause *= 2
        raise AssertionError

    def _check_speaker(self) -> None:
        """See that it was Kubeflow that answered: the client takes a proxy's login page for an empty list.

        Raises:
            InputError: it was not.
        """
        last = self._client.transport.last_response if self._client is not None else None
        if last is not None and "html" in (last.getheader("Content-Type") or ""):
            raise InputError(
                self._shown, "something answers that is not Kubeflow, a login page say", "other credentials"
            )

    def _explained(self, error: Any) -> Exception:
        status, where = error.status, f"Kubeflow at {self._shown}"
        message = _message(error)
        if status == 401:
            return InputError(
                where, "it does not know who is asking (401)", "--token, --token-file, --cookies or --iap-client"
            )
        if status == 403:
            return InputError(where, f"not allowed (403): {message}", "other credentials, or --namespace")
        if status == 404:
            return InputError(where, f"not there (404): {message}", "the URL that ends before /apis/v2beta1")
        if status == 400:
            return InputError(where, message, "")
        return WorkError(f"{where} answers {status}: {message}")


def _tasks(run: Any) -> list[Any]:
    return (run.run_details.task_details or []) if run.run_details is not None else []


def _pages(ask: Callable[[str], Any], name: str) -> Iterator[Any]:
    """The entries of all pages of a list."""
    token = ""
    while True:
        page = ask(token)
        yield from getattr(page, name) or []
        token = page.next_page_token
        if not token:
            return


def six_fields(cron: str) -> str:
    """A cron expression as Kubeflow has it, with seconds first.

    Raises:
        InputError: it is none.
    """
    from cronsim import CronSim, CronSimError

    fields = cron.split()
    if len(fields) not in (5, 6):
        raise InputError("--cron", f"{cron!r} has {len(fields)} fields", "5: minute hour day month weekday; or 6")
    from datetime import UTC, datetime

    try:
        CronSim(" ".join(fields[-5:]), datetime.now(UTC))
    except CronSimError as error:
        raise InputError("--cron", f"{cron!r}: {error}", "such as '0 3 * * 1', Mondays at three") from None
    if len(fields) == 6 and not fields[0].isdecimal():
        raise InputError("--cron", f"{fields[0]!r} as the second", "a number; limbeck runs at most once a minute")
    return cron if len(fields) == 6 else f"0 {' '.join(fields)}"


def next_runs(cron: str, time_zone: str, count: int) -> list[str]:
    """The next times of a cron expression in a time zone.

    Raises:
        InputError: either is none.
    """
    from datetime import datetime
    from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

    from cronsim import CronSim

    five = " ".join(six_fields(cron).split()[1:])
    try:
        zone = ZoneInfo(time_zone)
    except (ZoneInfoNotFoundError, ValueError):
        raise InputError("--time-zone", f"{time_zone!r} is none", "a name such as Europe/Berlin") from None
    times = CronSim(five, datetime.now(zone))
    return [next(times).strftime("%Y-%m-%d %H:%M %Z") for _ in range(count)]


def _patient(request: Callable[..., Any]) -> Callable[..., Any]:
    """A request that is given up when nothing answers; the client itself would wait for ever."""

    def limited(*arguments: Any, _request_timeout: Any = None, **options: Any) -> Any:
        return request(*arguments, _request_timeout=_request_timeout or _TIMEOUTS, **options)

    return limited


def _pause(seconds: float, stop: StopRequest) -> None:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        stop.check()
        time.sleep(min(0.1, seconds))


def _message(error: Any) -> str:
    try:
        text = str(json.loads(error.body)["message"])
    except (ValueError, TypeError, KeyError):
        text = str(error.reason)
    return redact_url(" ".join(text.split())[:300])


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The client prints links on standard output, which is the command's own."""
    with contextlib.redirect_stdout(io.StringIO()):
        yield
