"""A spec that says nothing: limbeck's own defaults, which the API server fills in where no preset has a say."""

from __future__ import annotations

from limbeck.spec import DistillationSpec, Source

USUAL = DistillationSpec(source=Source(uri="-")).wire()
