"""What a pod says of its run when it ends: the few figures that fit in Kubernetes' termination message."""

from __future__ import annotations

from pathlib import Path
from statistics import fmean

from pydantic import BaseModel, ConfigDict
from pydantic.alias_generators import to_camel

from limbeck.redact import redact_url
from limbeck.summary import Summary

LARGEST = 4096  # bytes; Kubernetes cuts what is longer


class _Record(BaseModel):
    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True, frozen=True, extra="ignore")


class StageOutcome(_Record):
    """One stage."""

    name: str
    seconds: float  # that computing it took
    reused: bool  # found done


class Outcome(_Record):
    """A run that is complete.

    Or a look before one, which has nothing but the fingerprint and, where it was asked for and there is one that the
    run can start from, the champion.
    """

    source_fingerprint: str  # digest of the fingerprints of all sources
    digest: str | None = None  # sha256 of the distilled set
    images: int | None = None
    model: str | None = None
    version: int | None = None
    champion: bool | None = None
    recovered_gap: float | None = None  # mean over tasks, architectures and fractions of labels
    links: dict[str, str] = {}
    stages: list[StageOutcome] = []

    def text(self) -> str:
        """It as JSON; without its stages, then its links, where all of it is more than 4,096 bytes."""
        for less in (set[str](), {"stages"}, {"stages", "links"}):
            text = self.model_dump_json(by_alias=True, exclude_defaults=True, exclude=less)
            if len(text.encode()) <= LARGEST:
                break
        return text

    def write(self, path: Path) -> None:
        """Write it to a file."""
        path.write_text(self.text())


def outcome_of(summary: Summary, source_fingerprint: str) -> Outcome:
    """The outcome of a run that is complete."""
    gaps = [gap.value for gap in summary.recovered_gaps if gap.value is not None]
    registered = summary.registered
    links = {"distilledSet": summary.distilled.path}
    if "mlflow" in summary.links:
        links["mlflow"] = summary.links["mlflow"]
    return Outcome(
        source_fingerprint=source_fingerprint,
        digest=next(stage.digest for stage in summary.stages if stage.name == "register"),
        images=summary.distilled.images,
        model=registered.name if registered else None,
        version=registered.version if registered else None,
        champion=registered.champion if registered else None,
        recovered_gap=round(fmean(gaps), 4) if gaps else None,
        links={name: redact_url(link) for name, link in links.items()},
        stages=[StageOutcome(name=s.name, seconds=round(s.seconds, 1), reused=s.reused) for s in summary.stages],
    )
