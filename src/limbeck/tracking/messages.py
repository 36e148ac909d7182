"""What the command and the process that talks to MLflow tell each other, a line of JSON each, beside the journal."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

from limbeck.evaluation.comparison import Champion, Policy
from limbeck.summary import Registered
from limbeck.tracking.journal import Data


class _Message(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Send(_Message):
    """Send a journal, after those that lie beside it."""

    journal: str


class Publish(_Message):
    """Log the distilled set, and register it where a name is given."""

    until: int  # milliseconds since 1970; later nobody waits for the answer
    folder: str  # that it lies in
    images: int
    image_size: int
    target_dimension: int
    recipe: dict[str, Any]
    spec: dict[str, Any]
    lineage: dict[str, str]
    evaluation: dict[str, Any]  # accuracies and recovered gaps, as in a run's summary
    location: str  # URL or path of the same
    digest: str
    title: str  # of the card
    name: str | None
    promote: Policy
    metric: str
    confidence: float
    champion: Champion | None = None  # that was evaluated again beside this set
    tags: dict[str, str]
    synthetic: Data
    tasks: dict[str, Data]  # by the task's name
    figures: dict[str, tuple[float, str | None]]  # what was measured, and on which task


class Opened(_Message):
    """The run is there."""

    reply: Literal["opened"] = "opened"
    run_id: str
    url: str | None  # of its page; None where no server is known


class Trouble(_Message):
    """MLflow does not take what it is sent, or takes it again."""

    reply: Literal["trouble"] = "trouble"
    error: str | None  # None: it is over


class Refused(_Message):
    """One thing that MLflow will never take, and is left out."""

    reply: Literal["refused"] = "refused"
    error: str


class Kept(_Message):
    """The journal of an earlier command that cannot be sent now."""

    reply: Literal["kept"] = "kept"
    error: str


class Published(_Message):
    """The answer to Publish."""

    reply: Literal["published"] = "published"
    model_id: str = ""
    url: str | None = None
    registered: Registered | None = None
    evaluate_first: int | None = None  # the champion's version, without which the promotion cannot be decided
    error: str | None = None


Reply = Annotated[Opened | Trouble | Refused | Kept | Published, Field(discriminator="reply")]
REPLIES: TypeAdapter[Reply] = TypeAdapter(Reply)
