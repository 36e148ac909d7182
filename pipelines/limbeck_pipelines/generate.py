"""What is generated: `pipelines/distillation.yaml`, for uploading by hand, and the components' README files.

`python -m limbeck_pipelines.generate ROOT` writes them; a test fails when they are stale.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from limbeck_components.readme import readmes
from limbeck_pipelines.distillation import build_for_any, compile_to

PIPELINE = "pipelines/distillation.yaml"


def generated() -> dict[str, str]:
    """The text of every generated file, by its path from the repository's root."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "pipeline.yaml"
        compile_to(build_for_any(), file)
        files = {PIPELINE: file.read_text()}
    return files | {f"components/limbeck_components/{name}/README.md": text for name, text in readmes().items()}


if __name__ == "__main__":
    for path, text in generated().items():
        (Path(sys.argv[1]) / path).write_text(text)
