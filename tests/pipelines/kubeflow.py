"""A stand-in for Kubeflow's API server, which cannot run here: v2beta1 over HTTP, with the official client's models.

It keeps what it is sent, and answers 400 to a field that those models do not have.
"""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime
from email.parser import BytesParser
from email.policy import HTTP
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import kfp_server_api
import yaml

_API = "/apis/v2beta1"


class Refused(Exception):  # noqa: N818 - an answer
    """An answer that is no success."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


def checked(document: Any, kind: str, where: str = "") -> None:
    """See that a document has only fields of a model of the client's, at every depth."""
    inner = re.fullmatch(r"list\[(.+)\]|dict\(str, (.+)\)", kind)
    if inner:
        for item in document if inner[1] else document.values():
            checked(item, inner[1] or inner[2], where)
        return
    model = getattr(kfp_server_api, kind, None)
    if model is None or not hasattr(model, "openapi_types"):
        return
    if isinstance(document, str):  # an enumeration
        return
    fields = {model.attribute_map[name]: type_ for name, type_ in model.openapi_types.items()}
    unknown = sorted(set(document) - set(fields))
    if unknown:
        raise Refused(400, f"unknown field {where}{unknown[0]}")
    for name, value in document.items():
        if value is not None:
            checked(value, fields[name], f"{where}{name}.")


class Kubeflow:
    """An installation with nothing in it."""

    def __init__(self) -> None:
        self.experiments: dict[str, dict[str, Any]] = {}
        self.pipelines: dict[str, dict[str, Any]] = {}
        self.versions: dict[str, dict[str, Any]] = {}
        self.runs: dict[str, dict[str, Any]] = {}
        self.recurring: dict[str, dict[str, Any]] = {}
        self.asked: list[tuple[str, str]] = []
        self.headers: list[dict[str, str]] = []
        self.fails: list[int | Callable[[str, str], int | None]] = []  # statuses of the next answers
        self.script: list[dict[str, Any]] = []  # states that a run is in, one a look
        self.logs: dict[str, str] = {}  # by pod
        self.login_page = False  # what a proxy answers to whoever it does not know
        self.slow = 0.0  # seconds before an answer
        self.multi_user = False
        self._count = 0
        kubeflow = self

        class Handler(BaseHTTPRequestHandler):
            def _answer(self) -> None:
                kubeflow.handle(self)

            do_GET = do_POST = do_DELETE = _answer  # noqa: N815

            def log_message(self, *arguments: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.host = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def handle(self, request: BaseHTTPRequestHandler) -> None:
        url = urlsplit(request.path)
        body = request.rfile.read(int(request.headers.get("Content-Length") or 0))
        self.asked.append((request.command, url.path))
        self.headers.append({name.lower(): value for name, value in request.headers.items()})
        time.sleep(self.slow)
        log = re.fullmatch(r"/apis/v1alpha1/runs/([^/]+)/nodes/([^/]+)/log", url.path)
        if self.login_page:
            self._write(request, 200, "text/html; charset=utf-8", "<!doctype html><title>Sign in</title>")
            return
        if log and log[2] in self.logs:
            self._write(request, 200, "text/plain", self.logs[log[2]])
            return
        try:
            self._fail(request.command, url.path)
            status, answer = 200, self._route(request, url.path, parse_qs(url.query), body)
        except Refused as refused:
            status, answer = refused.status, {"code": refused.status, "message": str(refused)}
        self._write(request, status, "application/json", json.dumps(answer))

    def _write(self, request: BaseHTTPRequestHandler, status: int, kind: str, text: str) -> None:
        request.send_response(status)
        request.send_header("Content-Type", kind)
        request.send_header("Content-Length", str(len(text.encode())))
        request.end_headers()
        request.wfile.write(text.encode())

    def _fail(self, method: str, path: str) -> None:
        if not self.fails:
            return
        first = self.fails[0]
        status = first(method, path) if callable(first) else first
        if status is not None:
            self.fails.pop(0)
            raise Refused(status, f"injected {status}")

    def _route(
        self, request: BaseHTTPRequestHandler, path: str, query: dict[str, list[str]], body: bytes
    ) -> dict[str, Any]:
        if not path.startswith(_API):
            raise Refused(404, f"no {path}")
        rest = path.removeprefix(_API)
        for method, pattern, act in (
            ("GET", r"/healthz", self._health),
            ("GET", r"/experiments", lambda q, b: self._list(self.experiments, "experiments", q)),
            ("POST", r"/experiments", lambda q, b: self._make("experiment", self.experiments, "V2beta1Experiment", b)),
            ("POST", r"/pipelines/upload", lambda q, b: self._upload(request, q, b)),
            ("POST", r"/pipelines/upload_version", lambda q, b: self._upload_version(request, q, b)),
            ("GET", r"/pipelines", lambda q, b: self._list(self.pipelines, "pipelines", q)),
            ("GET", r"/pipelines/([^/]+)/versions", self._versions),
            ("POST", r"/runs", lambda q, b: self._make("run", self.runs, "V2beta1Run", b)),
            ("GET", r"/runs", lambda q, b: self._list(self.runs, "runs", q)),
            ("GET", r"/runs/([^/:]+)", self._run),
            ("POST", r"/runs/([^/:]+):terminate", self._terminate),
            ("GET", r"/recurringruns", lambda q, b: self._list(self.recurring, "recurringRuns", q)),
            ("POST", r"/recurringruns", self._make_recurring),
            ("POST", r"/recurringruns/([^/]+):(enable|disable)", self._switch),
            ("DELETE", r"/recurringruns/([^/]+)", lambda q, b, i: self.recurring.pop(i) and {}),
        ):
            match = re.fullmatch(pattern, unquote(rest))
            if match and method == request.command:
                return act(query, body, *match.groups())  # type: ignore[operator]
        raise Refused(404, f"no {request.command} {path}")

    def _health(self, query: Any, body: bytes) -> dict[str, Any]:
        return {"multi_user": self.multi_user}

    def _id(self) -> str:
        self._count += 1
        return f"id-{self._count}"

    def _make(self, kind: str, place: dict[str, Any], model: str, body: bytes) -> dict[str, Any]:
        document = json.loads(body)
        checked(document, model)
        if kind == "run":
            self._check_reference(document)
        entry = {**document, f"{kind}_id": self._id(), "created_at": datetime.now(UTC).isoformat()}
        if kind == "run":  # it is in the namespace of its experiment
            entry["namespace"] = self.experiments[document["experiment_id"]].get("namespace", "")
        place[entry[f"{kind}_id"]] = entry
        return entry

    def _make_recurring(self, query: Any, body: bytes) -> dict[str, Any]:
        made = self._make("recurring_run", self.recurring, "V2beta1RecurringRun", body)
        self._check_reference(made)
        fields = made["trigger"]["cron_schedule"]["cron"].split()
        if len(fields) != 6:
            raise Refused(400, "a cron expression has six fields")
        made["status"] = "ENABLED" if made["mode"] == "ENABLE" else "DISABLED"
        return made

    def _check_reference(self, document: dict[str, Any]) -> None:
        reference = document["pipeline_version_reference"]
        version = self.versions.get(reference["pipeline_version_id"])
        if version is None or version["pipeline_id"] != reference["pipeline_id"]:
            raise Refused(404, "no such pipeline version")

    def _switch(self, query: Any, body: bytes, id: str, what: str) -> dict[str, Any]:  # noqa: A002
        self.recurring[id] |= {"status": f"{what.upper()}D", "mode": what.upper()}
        return {}

    def _list(self, place: dict[str, Any], name: str, query: dict[str, list[str]]) -> dict[str, Any]:
        space = query.get("namespace", [""])[0]
        entries = [entry for entry in place.values() if entry.get("namespace", "") == space]
        for condition in json.loads(unquote(query.get("filter", ["{}"])[0])).get("predicates", []):
            value = condition.get("string_value", condition.get("stringValue"))
            key = {"name": "display_name"}.get(condition["key"], condition["key"])
            entries = [e for e in entries if e.get(key) == value]
        size, first = int(query.get("page_size", ["10"])[0]), int(query.get("page_token", ["0"])[0] or 0)
        token = str(first + size) if first + size < len(entries) else ""
        return {name: entries[first : first + size], "next_page_token": token, "total_size": len(entries)}

    def _versions(self, query: Any, body: bytes, pipeline: str) -> dict[str, Any]:
        own = {i: entry for i, entry in self.versions.items() if entry["pipeline_id"] == pipeline}
        return self._list(own, "pipeline_versions", query)

    def _file(self, request: BaseHTTPRequestHandler, body: bytes) -> str:
        head = f"Content-Type: {request.headers['Content-Type']}\r\n\r\n".encode()
        (part,) = BytesParser(policy=HTTP).parsebytes(head + body).iter_parts()
        content = part.get_content()
        return content.decode() if isinstance(content, bytes) else str(content)

    def _upload(self, request: BaseHTTPRequestHandler, query: dict[str, list[str]], body: bytes) -> dict[str, Any]:
        name, space = query["name"][0], query.get("namespace", [""])[0]
        if (name, space) in {(entry["display_name"], entry.get("namespace", "")) for entry in self.pipelines.values()}:
            raise Refused(409, f"the name {name} is taken")
        entry = {"pipeline_id": self._id(), "display_name": name, "name": name, "namespace": space}
        self.pipelines[entry["pipeline_id"]] = entry
        self._version_of(entry["pipeline_id"], name, self._file(request, body))
        return entry

    def _upload_version(
        self, request: BaseHTTPRequestHandler, query: dict[str, list[str]], body: bytes
    ) -> dict[str, Any]:
        name, pipeline = query["name"][0], query["pipelineid"][0]
        taken = [e for e in self.versions.values() if (e["display_name"], e["pipeline_id"]) == (name, pipeline)]
        if taken:
            raise Refused(409, f"the version {name} is taken")
        return self._version_of(pipeline, name, self._file(request, body))

    def _version_of(self, pipeline: str, name: str, text: str) -> dict[str, Any]:
        spec = next(yaml.safe_load_all(text))
        assert spec["pipelineInfo"]["name"].startswith("limbeck-")
        entry = {"pipeline_version_id": self._id(), "pipeline_id": pipeline, "display_name": name, "name": name}
        self.versions[entry["pipeline_version_id"]] = entry
        return entry

    def _terminate(self, query: Any, body: bytes, run: str) -> dict[str, Any]:
        if run not in self.runs:
            raise Refused(404, "no such run")
        if self.runs[run].get("state") in ("SUCCEEDED", "FAILED", "SKIPPED", "CANCELED"):
            raise Refused(400, "a run that has ended cannot be terminated")
        self.runs[run]["state"] = "CANCELING"
        return {}

    def _run(self, query: Any, body: bytes, run: str) -> dict[str, Any]:
        if run not in self.runs:
            raise Refused(404, "no such run")
        if self.script:
            self.runs[run] |= self.script.pop(0)
        return self.runs[run]


def task(name: str, state: str, pod: str | None = None) -> list[dict[str, Any]]:
    """One of a run's tasks, as Argo's nodes are listed: the task, and the executor in it, whose pod does the work."""
    executor = {"task_id": f"e-{name}", "display_name": "executor", "state": state}
    if pod is not None:
        executor["child_tasks"] = [{"pod_name": pod}]
    return [{"task_id": f"t-{name}", "display_name": name, "state": state}, executor]


def state(of_run: str, *tasks: list[dict[str, Any]]) -> dict[str, Any]:
    """A run in a state, with its tasks; Kubeflow's servers say nothing of why one has failed."""
    around = [{"task_id": name, "display_name": name, "state": of_run} for name in ("root", "exit-handler-1")]
    return {"state": of_run, "run_details": {"task_details": [*around, *(node for nodes in tasks for node in nodes)]}}
