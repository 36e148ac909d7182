"""One container of a pod: a process that is started, probed, stopped and started again, and its status."""

from __future__ import annotations

import http.client
import json
import os
import shutil
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tests.cluster import launcher
from tests.cluster.podspec import NotYetError, Object

_LONGEST_BACK_OFF, _STABLE_SECONDS = 30.0, 60.0  # a container that has run so long is started again at once
_MESSAGE_BYTES, _LOG_BYTES, _LOG_LINES = 4096, 2048, 80
_RETRY_SECONDS = 1.0


def now() -> str:
    """The time as status has it."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


class Container:
    """One container.

    Args:
        spec: of it, of the pod's manifest.
        policy: when it is started again: Always, OnFailure or Never.
        folder: for what belongs to one start of it.
        log: file that it writes to.
        settings: what the launcher needs; asked before each start.
            It raises NotYetError when something is missing.
        probing: threads for probes.
        say: takes lines on what happens.
    """

    def __init__(
        self,
        spec: Object,
        policy: str,
        folder: Path,
        log: Path,
        settings: Callable[[Object], dict[str, Any]],
        probing: ThreadPoolExecutor,
        say: Callable[[str], None],
    ) -> None:
        self.spec, self._policy, self._folder, self.log = spec, policy, folder, log
        self._settings, self._probing, self._say = settings, probing, say
        self.name = str(spec["name"])
        self.state: dict[str, Any] = {"waiting": {"reason": "ContainerCreating"}}
        self.ready = False
        self._last: dict[str, Any] = {}
        self._process: subprocess.Popen[bytes] | None = None
        self._starts, self._next, self._back_off = 0, 0.0, 0.0
        self._began, self._from = 0.0, 0
        self._is_stopping, self._kill_at = False, float("inf")
        self._probes: dict[str, Probe] = {}

    @property
    def is_running(self) -> bool:
        """Whether there is a process."""
        return self._process is not None

    @property
    def exit_code(self) -> int | None:
        """Of a container that has ended for good."""
        return int(self.state["terminated"]["exitCode"]) if "terminated" in self.state else None

    @property
    def was_started(self) -> bool:
        """Whether it ever ran."""
        return self._starts > 0

    def keep(self, address: str) -> None:
        """Start it, look after it, or start it again, as is due.

        Args:
            address: of the pod.
        """
        if self._process is not None:
            if self.poll():
                self._probe(address)
        elif "waiting" in self.state and time.monotonic() >= self._next:
            self._start()

    def poll(self) -> bool:
        """Whether it still runs; what came of it when it does not."""
        if self._process is None:
            return False
        code = self._process.poll()
        if code is None:
            if time.monotonic() >= self._kill_at:
                self._say(f"{self.name}: killed after its grace period")
                self._kill_at = float("inf")
                self._process.send_signal(launcher.KILL)
            return True
        self._process = None
        self._end(code if code >= 0 else 128 - code)
        return False

    def stop(self, grace: float) -> None:
        """Ask it to end, and see to it that it does; once."""
        if self._process is not None and not self._is_stopping:
            self._say(f"{self.name}: SIGTERM, {grace:g} s of grace")
            self._is_stopping, self._kill_at = True, time.monotonic() + grace
            self._process.send_signal(launcher.STOP)

    def settle(self) -> None:
        """It will not be started again: what it waited for is what it last was."""
        if "waiting" in self.state and "terminated" in self._last:
            self.state, self._last = self._last, {}

    def kill(self) -> None:
        """Leave nothing running."""
        if self._process is not None:
            self._process.send_signal(launcher.KILL)
            self._process.wait()
            self._process = None

    def status(self) -> dict[str, Any]:
        """As a pod's status has it."""
        return {
            "name": self.name,
            "image": self.spec["image"],
            "imageID": "",
            "containerID": f"process://{self._folder.parent.name}/{self.name}/{self._starts}" if self._starts else "",
            "ready": self.ready,
            "started": self.is_running and self._passes("startup"),
            "restartCount": max(0, self._starts - 1),
            "state": self.state,
            "lastState": self._last,
        }

    def _start(self) -> None:
        if self.spec["image"].startswith("missing/"):
            first = self.state["waiting"]["reason"] == "ContainerCreating"
            reason = "ErrImagePull" if first else "ImagePullBackOff"
            self._wait(reason, f'{"" if first else "Back-off pulling image "}"{self.spec["image"]}": not found')
            return
        try:
            settings = self._settings(self.spec)
        except NotYetError as error:
            self._wait(error.reason, str(error))
            return
        shutil.rmtree(self._folder, ignore_errors=True)
        scratch, message = self._folder / "root", self._folder / "message"
        scratch.mkdir(parents=True)
        message.touch()
        message.chmod(0o666)
        settings["mounts"].append([str(message), self.spec["terminationMessagePath"], False])
        settings |= {"scratch": str(scratch), "pid": str(self._folder / "pid")}
        settings |= {"failure": str(self._folder / "failure"), "parent": os.getpid()}
        (self._folder / "settings.json").write_text(json.dumps(settings))
        self._from = self.log.stat().st_size if self.log.exists() else 0
        self._process = launch("container", self._folder / "settings.json", self.log)
        self._starts += 1
        self._began, self._is_stopping, self._kill_at = time.monotonic(), False, float("inf")
        self.state = {"running": {"startedAt": now()}}
        self._probes = {
            kind: Probe(self.spec[f"{kind}Probe"], self._attempt)
            for kind in ("startup", "liveness", "readiness")
            if f"{kind}Probe" in self.spec
        }
        self._say(f"{self.name}: started{f', for the {self._starts}. time' if self._starts > 1 else ''}")

    def _wait(self, reason: str, message: str) -> None:
        if self.state != (state := {"waiting": {"reason": reason, "message": message}}):
            self._say(f"{self.name}: {reason}: {message}")
        self.state, self._next = state, time.monotonic() + _RETRY_SECONDS

    def _end(self, code: int) -> None:
        self.ready = False
        reason, message = "Completed" if code == 0 else "Error", self._message(code)
        failure = self._folder / "failure"
        if code == launcher.START_ERROR and failure.exists() and failure.stat().st_size:
            reason, message = "StartError", failure.read_text()
        began = self.state["running"]["startedAt"]
        ended = {"exitCode": code, "reason": reason, "startedAt": began, "finishedAt": now()}
        self.state = {"terminated": ended | ({"message": message} if message else {})}
        said = message.strip().splitlines()
        self._say(f"{self.name}: ended with {code}{f': {said[0][:200]}' if said else ''}")
        if self._policy == "Always" or (self._policy == "OnFailure" and code != 0):
            stable = time.monotonic() - self._began > _STABLE_SECONDS
            self._back_off = 1.0 if stable or not self._back_off else min(2 * self._back_off, _LONGEST_BACK_OFF)
            self._last, waiting = self.state, f"back-off {self._back_off:g}s restarting failed container={self.name}"
            self.state = {"waiting": {"reason": "CrashLoopBackOff", "message": waiting}}
            self._next = time.monotonic() + self._back_off

    def _message(self, code: int) -> str:
        """What it left in its termination log, or at the end of its log where it may."""
        file = self._folder / "message"
        message = file.read_bytes()[:_MESSAGE_BYTES] if file.exists() else b""
        if not message and code != 0 and self.spec.get("terminationMessagePolicy") == "FallbackToLogsOnError":
            with self.log.open("rb") as log:
                log.seek(max(self._from, self.log.stat().st_size - _LOG_BYTES))
                message = b"".join(log.readlines()[-_LOG_LINES:])
        return message.decode(errors="replace")

    def _probe(self, address: str) -> None:
        for kind, probe in self._probes.items():
            if kind == "startup" or self._passes("startup"):
                probe.tick(self._probing, address)
            if kind != "readiness" and probe.has_failed:
                self._say(f"{self.name}: {kind} probe failed: {probe.said}")
                self.stop(float(self.spec[f"{kind}Probe"].get("terminationGracePeriodSeconds", 5)))
        ready = self._passes("startup") and self._passes("readiness")
        if ready != self.ready:
            why = f": {self._probes['readiness'].said}" if not ready and "readiness" in self._probes else ""
            self._say(f"{self.name}: {'ready' if ready else 'not ready'}{why}")
        self.ready = ready

    def _passes(self, kind: str) -> bool:
        return kind not in self._probes or self._probes[kind].passes

    def _attempt(self, probe: Object, address: str) -> str:
        """Try once; what is wrong, or nothing."""
        seconds = probe.get("timeoutSeconds", 1)
        if "exec" in probe:
            return self._execute(probe["exec"]["command"], seconds)
        handler = probe.get("httpGet") or probe.get("tcpSocket")
        if handler is None:
            return "the test node has no such probe"
        port, host = self._port(handler["port"]), handler.get("host") or address
        try:
            if "tcpSocket" in probe:
                socket.create_connection((host, port), seconds).close()
                return ""
            if handler.get("scheme") == "HTTPS":
                insecure = ssl._create_unverified_context()
                connection: Any = http.client.HTTPSConnection(host, port, timeout=seconds, context=insecure)
            else:
                connection = http.client.HTTPConnection(host, port, timeout=seconds)
            headers = {entry["name"]: entry["value"] for entry in handler.get("httpHeaders") or []}
            connection.request("GET", handler.get("path", "/"), headers=headers)
            status = connection.getresponse().status
            connection.close()
        except (OSError, http.client.HTTPException) as error:
            return f"{handler.get('path', '')} of port {port}: {error}"
        return "" if 200 <= status < 400 else f"{handler.get('path', '/')} of port {port} answered {status}"

    def _execute(self, command: list[str], seconds: float) -> str:
        settings = json.loads((self._folder / "settings.json").read_text())
        variables = [f"{name}={value}" for name, value in settings["environment"].items()]
        try:
            process = (self._folder / "pid").read_text()
            inside = [f"--target={process}", "--mount", "--net", "--pid", "--ipc", "--uts", "--root"]
            inside += [f"--setuid={settings['uid']}", f"--setgid={settings['gid']}"]
            whole = ["nsenter", *inside, "env", "-i", *variables, *command]
            done = subprocess.run(whole, capture_output=True, timeout=seconds, check=False)
        except (OSError, subprocess.TimeoutExpired) as error:
            return str(error)
        return "" if done.returncode == 0 else (done.stdout + done.stderr).decode(errors="replace")[-200:] or "failed"

    def _port(self, port: int | str) -> int:
        if isinstance(port, int):
            return port
        return next(int(p["containerPort"]) for p in self.spec.get("ports") or [] if p.get("name") == port)


class Probe:
    """One probe of a container since its start.

    Args:
        spec: of it.
        attempt: tries once, in a thread: it takes the spec and the pod's address, and says what is wrong or nothing.
    """

    def __init__(self, spec: Object, attempt: Callable[[Object, str], str]) -> None:
        self._spec, self._attempt = spec, attempt
        self._next = time.monotonic() + spec.get("initialDelaySeconds", 0)
        self._pending: Future[str] | None = None
        self._good, self._bad = 0, 0
        self.passes, self.has_failed, self.said = False, False, ""

    def tick(self, threads: ThreadPoolExecutor, address: str) -> None:
        """Take an answer that is there, and ask again when it is time."""
        if self._pending is not None and self._pending.done():
            self.said = self._pending.result()
            self._pending = None
            self._good, self._bad = (0, self._bad + 1) if self.said else (self._good + 1, 0)
            if self._good >= self._spec.get("successThreshold", 1):
                self.passes = True
            if self._bad >= self._spec.get("failureThreshold", 3):
                self.passes, self.has_failed = False, True
        if self._pending is None and time.monotonic() >= self._next:
            self._next = time.monotonic() + self._spec.get("periodSeconds", 10)
            self._pending = threads.submit(self._attempt, self._spec, address)


def launch(kind: str, settings: Path, log: Path | int) -> subprocess.Popen[bytes]:
    """Start the launcher; it dies with the calling thread.

    Args:
        kind: sandbox or container.
        settings: its file.
        log: file that its output is added to, or what subprocess takes instead.
    """
    command = [sys.executable, "-I", "-S", launcher.__file__, kind, str(settings)]
    if isinstance(log, int):
        return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, start_new_session=True, env=_plain())
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as out:
        log.chmod(0o666)  # so that a container that is not root may open /dev/stdout
        return subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=out, stderr=out, start_new_session=True, env=_plain()
        )


def _plain() -> Mapping[str, str]:
    return {"PATH": os.environ["PATH"]}
