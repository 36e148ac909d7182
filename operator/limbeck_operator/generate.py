"""What is generated: the CustomResourceDefinitions in `operator/crds/`.

`python -m limbeck_operator.generate ROOT` writes them; a test fails when they are stale.
"""

from __future__ import annotations

import sys
from pathlib import Path

import yaml

from limbeck_operator.crds import crds

_HEAD = "# Generated from limbeck.spec by `make generate`; do not edit.\n"


def generated() -> dict[str, str]:
    """The text of every generated file, by its path from the repository's root."""
    return {
        f"operator/crds/{definition['spec']['names']['plural']}.yaml": _HEAD
        + yaml.safe_dump(definition, sort_keys=False, width=120, allow_unicode=True)
        for definition in crds().values()
    }


if __name__ == "__main__":
    for path, text in generated().items():
        file = Path(sys.argv[1]) / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
