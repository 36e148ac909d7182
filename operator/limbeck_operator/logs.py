"""The operator's log: one JSON object a line, or text for people."""

from __future__ import annotations

import json
import logging
import sys
from datetime import UTC, datetime

from limbeck.redact import RedactedFormatter, redact_url


class _Json(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "message": redact_url(record.getMessage()),
        }
        line |= getattr(record, "object", {})
        if record.exc_info:
            line["traceback"] = redact_url(self.formatException(record.exc_info))
        return json.dumps(line, ensure_ascii=False)


def about(kind: str, namespace: str, name: str) -> dict[str, dict[str, str]]:
    """What to give a line as `extra`, so that it names the object that it is about."""
    return {"object": {"kind": kind, "namespace": namespace, "name": name}}


def configure(form: str) -> None:
    """Have all loggers write to standard error; libraries only what went wrong."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Json() if form == "json" else RedactedFormatter("%(asctime)s %(levelname)s %(message)s"))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
    logging.getLogger("limbeck").setLevel(logging.INFO)
