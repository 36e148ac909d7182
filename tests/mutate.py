"""Do the tests notice a change of the code? `make mutate` asks mutmut, on a random sample of all changes it can make.

    python -m tests.mutate [--sample 300] [--seed 0] [--of limbeck.nn ...]

mutmut copies the code into `mutants/`, runs the tests that `[tool.mutmut]` of pyproject.toml names, and then those of
them that reach a changed function, once for each change. A change that makes a test fail, or run for ever, is killed.
Printed are the shares by module, and the changes that no test noticed; `mutmut show NAME` shows one.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
from collections import Counter
from pathlib import Path

_CODE = Path("mutants/src/limbeck")
_SURVIVED, _UNTESTED = 0, 33  # mutmut's exit codes; all others but None, which is not run, are a kill
_FIRST = "limbeck.evaluation.protocol.x_best_rate__mutmut_1"  # any one: to have all made, and the tests timed


def results() -> dict[str, int | None]:
    """The exit code of each change, by its name; None where it was not tried."""
    found: dict[str, int | None] = {}
    for file in sorted(_CODE.rglob("*.meta")):
        found |= json.loads(file.read_text())["exit_code_by_key"]
    return found


def module(name: str) -> str:
    """limbeck.matching.match, of limbeck.matching.match.x_inner_order__mutmut_1."""
    return name.rpartition(".")[0]


def main() -> None:
    """Try a sample of the changes and print what became of them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sample", type=int, default=300, help="how many changes are tried")
    parser.add_argument("--seed", type=int, default=0, help="of the sample")
    parser.add_argument(
        "--of", nargs="*", default=["limbeck"], help="packages or modules that the sample is drawn from"
    )
    parser.add_argument("--processes", type=int, default=1)
    arguments = parser.parse_args()
    mutmut = [str(Path(sys.executable).with_name("mutmut")), "run", "--max-children", str(arguments.processes)]
    subprocess.run([*mutmut, _FIRST], check=True, stdout=subprocess.DEVNULL)
    names = sorted(name for name in results() if any(module(name).startswith(part) for part in arguments.of))
    random.Random(arguments.seed).shuffle(names)
    chosen, codes = names[: arguments.sample], results()  # a larger sample holds the smaller one
    left = [name for name in chosen if codes[name] in (None, _SURVIVED)]  # what was killed once stays killed
    if left:
        subprocess.run([*mutmut, *left], check=True, stdout=subprocess.DEVNULL)
    codes = results()
    missed = sorted(name for name in chosen if codes[name] in (None, _SURVIVED, _UNTESTED))
    tried, lived = Counter(map(module, chosen)), Counter(map(module, missed))
    for part in sorted(tried):
        print(f"{part:<36} {tried[part] - lived[part]:>4} of {tried[part]:>4} killed")
    killed = len(chosen) - len(missed)
    print(f"{killed} of {len(chosen)} killed ({killed / len(chosen):.1%}), of {len(names)} in all; not noticed:")
    for name in missed:
        print(f"  {name}{' (no test reaches it)' if codes[name] == _UNTESTED else ''}")


if __name__ == "__main__":
    main()
