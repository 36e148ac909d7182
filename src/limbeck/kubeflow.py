"""What all sides of Kubeflow Pipelines know: where it is and who asks, what a run is, what tasks say in their logs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

# begin the line of a task's log that says
FAILED = "limbeck failed: "  # why it has failed
OUTCOME = "limbeck outcome: "  # what came of the run, as a `limbeck.outcome.Outcome` in JSON

SUCCEEDED, CANCELING, CANCELED = "SUCCEEDED", "CANCELING", "CANCELED"  # some of Kubeflow's states
DONE = (SUCCEEDED, "FAILED", "SKIPPED", CANCELED)


@dataclass(frozen=True)
class Access:
    """An installation, and one way at most to say who asks.

    Attributes:
        host: its URL, `https://HOST/pipeline` say.
        namespace: of the user, in an installation for several.
        token: a bearer token.
        token_file: the file of a service account's token, read anew when Kubeflow asks for it.
        cookies: as a browser sends them, `authservice_session=...` say.
        iap_client: the OAuth client id of an Identity-Aware Proxy.
        ca_file: certificates that the host's is checked with.
    """

    host: str
    namespace: str | None = None
    token: str | None = None
    token_file: str | None = None
    cookies: str | None = None
    iap_client: str | None = None
    ca_file: str | None = None


@dataclass(frozen=True)
class Task:
    """A task of a run, those that are Kubeflow's own left out."""

    id: str
    name: str
    state: str  # Kubeflow's word
    began: datetime | None = None
    ended: datetime | None = None


@dataclass(frozen=True)
class Run:
    """A run as Kubeflow tells it.

    Attributes:
        id: Kubeflow's own.
        name: that it was submitted by.
        state: Kubeflow's word for where it stands.
        link: its page.
        tasks: in Kubeflow's order.
        said: once it has ended, its outcome, or why it has failed; empty where that is not known.
    """

    id: str
    name: str
    state: str
    link: str
    tasks: Sequence[Task] = ()
    said: str = ""

    @property
    def is_done(self) -> bool:
        """Whether it has ended."""
        return self.state in DONE
