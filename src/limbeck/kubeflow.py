"""What both sides of Kubeflow Pipelines know: where an installation is and who asks, and how a task says it failed."""

from __future__ import annotations

from dataclasses import dataclass

FAILED = "limbeck failed: "  # begins the line of a task's log that says why it has failed


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
