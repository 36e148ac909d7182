"""Reading a spec file: YAML into the spec, and every problem in one line that names file, line, field and remedy."""

from __future__ import annotations

import difflib
import json
import re
import types
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin

import yaml
from annotated_types import Ge, Gt, Le, Lt, MaxLen, MinLen
from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from limbeck.errors import InputError
from limbeck.spec import Distillation, ScheduledDistillation, SharedSettings

Location = tuple[str | int, ...]

_LARGEST_FILE = 1 << 20
_DEEPEST, _MOST_VALUES = 50, 10_000
_TEXT, _MERGE = "tag:yaml.org,2002:str", "tag:yaml.org,2002:merge"


class SpecError(InputError):
    """A spec file with one or more problems, each a line of `problems`."""

    def __init__(self, problems: Sequence[str]) -> None:
        super().__init__(problems[0], "")
        self.problems = tuple(problems)
        self.args = ("\n".join(problems),)


@dataclass(frozen=True)
class _Located:
    name: str
    lines: Mapping[Location, int]

    @contextmanager
    def located(self) -> Iterator[None]:
        """Inside the block, an `InputError` about a field of the spec gets the file and the line of that field."""
        try:
            yield
        except InputError as error:
            if isinstance(error, SpecError) or not error.where.startswith("spec."):
                raise
            parts = re.findall(r"[^.\[\]]+", error.where)
            location = tuple(int(part) if part.isdigit() else part for part in parts)
            place = _place(self.name, self.lines, location)
            raise InputError(f"{place}: {error.where}", error.found, error.allowed) from None


@dataclass(frozen=True)
class SpecFile(_Located):
    """A spec and the lines of the file that it was read from."""

    distillation: Distillation


@dataclass(frozen=True)
class ScheduleFile(_Located):
    """A schedule and the lines of the file that it was read from."""

    scheduled: ScheduledDistillation


def read_spec(path: str | Path, overrides: Sequence[str] = ()) -> SpecFile:
    """Read and check a spec file.

    Args:
        path: a YAML or JSON file with one document.
        overrides: settings as on the command line, `field.path=value`, relative to `spec`; the value is YAML.

    Raises:
        SpecError: with all that is wrong, in the order of the file.
    """
    found = read_any(path, overrides)
    if isinstance(found, ScheduleFile):
        place = _place(found.name, found.lines, ("kind",))
        raise SpecError([f"{place}: kind: found ScheduledDistillation, which a cluster runs; allowed: Distillation"])
    return found


def read_any(path: str | Path, overrides: Sequence[str] = ()) -> SpecFile | ScheduleFile:
    """Read and check the file of a spec or of a schedule; as `read_spec`."""
    name = str(path)
    document, lines = _read_yaml(name)
    for override in overrides:
        _override(document, lines, override)
    if document.get("kind") == "ScheduledDistillation":
        return ScheduleFile(name, lines, _validated(name, document, lines, ScheduledDistillation))
    return SpecFile(name, lines, _validated(name, document, lines, Distillation))


def read_shared(path: str | Path) -> dict[str, Any]:
    """Read and check a file of settings that specs of a cluster inherit: sections output, tracking and execution.

    Returns:
        The file as it stands, so that what it says can be told from what it leaves out.

    Raises:
        SpecError: with all that is wrong, in the order of the file.
    """
    name = str(path)
    document, lines = _read_yaml(name, empty="an empty one is {}")
    _validated(name, document, lines, SharedSettings)
    return document


M = TypeVar("M", bound=BaseModel)


def _validated(name: str, document: Mapping[str, Any], lines: Mapping[Location, int], model: type[M]) -> M:
    try:
        return model.model_validate(document)
    except ValidationError as error:
        explain = _Explainer(name, lines, model)
        raise SpecError([text for _, text in sorted(explain(dict(problem)) for problem in error.errors())]) from None


class _Loader(yaml.SafeLoader):
    """YAML as Kubernetes reads it where it matters here: 1e-4 is a number, a key stands once."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?$|^[-+]?\.(inf|Inf|INF)$|^\.(nan|NaN|NAN)$"),
    list("-+0123456789."),
)


def _read_yaml(
    name: str, empty: str = "a mapping with apiVersion, kind, metadata and spec is needed"
) -> tuple[dict[str, Any], dict[Location, int]]:
    """The document, and the line (from 1) on which each of its fields stands."""
    path = Path(name)
    try:
        if path.stat().st_size > _LARGEST_FILE:
            raise SpecError([f"{name}: larger than 1 MiB; a spec is a short YAML file"])
        text = path.read_text(encoding="utf-8")
        lines: dict[Location, int] = {}
        document = _parse(name, text, lines)
    except FileNotFoundError:
        raise SpecError([f"{name}: no such file"]) from None
    except IsADirectoryError:
        raise SpecError([f"{name}: a folder, not a spec file"]) from None
    except UnicodeDecodeError:
        raise SpecError([f"{name}: not a text file in UTF-8"]) from None
    except OSError as error:
        raise SpecError([f"{name}: {error.strerror}"]) from None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = mark.line + 1 if mark else 1
        raise SpecError([f"{name}:{line}: not YAML: {error.problem or error.context}"]) from None
    except RecursionError:
        raise SpecError([f"{name}: not YAML: maximum recursion depth exceeded"]) from None
    except (yaml.YAMLError, ValueError) as error:
        raise SpecError([f"{name}: not YAML: {' '.join(str(error).split())[:200]}"]) from None
    if not isinstance(document, dict):
        found = "empty" if document is None else f"a {_kind(document)}"
        raise SpecError([f"{name}:1: {found}; {empty}"])
    return document, lines


def _parse(name: str, text: str, lines: dict[Location, int]) -> Any:
    """The value of a YAML text, after its shape was checked; fills in the line of every field."""
    loader = _Loader(text)
    node = loader.get_single_node()
    if node is None:
        return None
    _index(name, node, (), lines)
    return loader.construct_document(node)


def _index(name: str, node: yaml.Node, at: Location, lines: dict[Location, int]) -> None:
    lines.setdefault(at, node.start_mark.line + 1)
    if len(at) > _DEEPEST or len(lines) > _MOST_VALUES:
        raise SpecError([f"{name}: its aliases expand to too much; a spec has a few hundred values at most"])
    if isinstance(node, yaml.MappingNode):
        seen: dict[str, int] = {}
        for key, value in node.value:
            line = key.start_mark.line + 1
            text = str(key.value) if isinstance(key, yaml.ScalarNode) else "a list or mapping"
            if key.tag not in (_TEXT, _MERGE):
                where = f"{_dotted(at)}: " if at else ""
                raise SpecError([f"{_at(name, line)}: {where}the key {text!r} is not text; put it in quotes"])
            if text in seen:
                twice = f"{_dotted((*at, text))} stands twice, first on line {seen[text]}"
                raise SpecError([f"{_at(name, line)}: {twice}"])
            seen[text] = lines[(*at, text)] = line
            _index(name, value, (*at, text), lines)
    elif isinstance(node, yaml.SequenceNode):
        for position, item in enumerate(node.value):
            _index(name, item, (*at, position), lines)


def _at(name: str, line: int) -> str:
    return name if name.startswith("--set ") else f"{name}:{line}"


def _override(document: dict[str, Any], lines: dict[Location, int], override: str) -> None:
    path, equals, text = override.partition("=")
    names = path.removeprefix("spec.").split(".")
    if not equals or not all(names):
        raise SpecError([f"--set {override}: not of the form field.path=value, such as source.limit=1000"])
    try:
        value = _parse(f"--set {override}", text, {})
    except (yaml.YAMLError, RecursionError, ValueError):
        raise SpecError([f"--set {override}: {text!r} is not a YAML value"]) from None
    place: Any = document
    for depth, name in enumerate(["spec", *names[:-1]]):
        if place.get(name) is None:
            place[name] = {}
            lines["spec", *names[:depth]] = 0
        place = place[name]
        if not isinstance(place, dict):
            raise SpecError([f"--set {override}: {_dotted(('spec', *names[:depth]))} is not a section"])
    place[names[-1]] = value
    location = ("spec", *names)
    for stale in [key for key in lines if key[: len(location)] == location]:
        del lines[stale]
    lines[location] = 0  # said on the command line


@dataclass(frozen=True)
class _Explainer:
    """Says what pydantic complains of in a user's terms: (line, text) of a complaint."""

    name: str
    lines: Mapping[Location, int]
    model: type[BaseModel]

    def __call__(self, problem: dict[str, Any]) -> tuple[int, str]:
        location: Location = tuple(problem["loc"])
        is_key = location[-1:] == ("[key]",)
        if is_key:
            location = location[:-1]
            found, allowed = "no such key", f"allowed: {self._allowed((*location[:-1], '[key]'))}"
        elif problem["type"] == "conflict":  # ours, from a validator of the section
            field = problem["ctx"]["field"].split(".")
            location = (*location, *(int(part) if part.isdigit() else part for part in field))
            found, allowed = f"found {problem['ctx']['found']}", f"allowed: {problem['ctx']['allowed']}"
        elif problem["type"] == "missing":
            found, allowed = "missing", f"allowed: {self._allowed(location)}"
        elif problem["type"] == "extra_forbidden":
            found, allowed = "no such field", self._siblings(location)
        else:
            found, allowed = f"found {_show(problem['input'])}", f"allowed: {self._allowed(location)}"
        text = f"{_place(self.name, self.lines, location)}: {_dotted(location)}: {found}; {allowed}"
        return _line_of(self.lines, location), " ".join(text.split())

    def _siblings(self, location: Location) -> str:
        annotation, metadata = self._field_at(location[:-1])
        section, _ = _peel(annotation, metadata)
        if not (isinstance(section, type) and issubclass(section, BaseModel)):
            section = self.model
        names = sorted(field.alias or name for name, field in section.model_fields.items() if not field.exclude)
        close = difflib.get_close_matches(str(location[-1]), names, n=1)
        return f"did you mean {close[0]}?" if close else f"allowed: {', '.join(names)}"

    def _allowed(self, location: Location) -> str:
        """What the field at `location` takes, in words."""
        annotation, metadata = self._field_at(location)
        return _describe(annotation, metadata)

    def _field_at(self, location: Location) -> tuple[Any, list[Any]]:
        annotation: Any = self.model
        metadata: list[Any] = []
        for part in location:
            annotation, metadata = _peel(annotation, metadata)
            if isinstance(part, int):
                annotation, metadata = get_args(annotation)[0], []
            elif get_origin(annotation) is dict:
                annotation, metadata = get_args(annotation)[0 if part == "[key]" else 1], []
            elif isinstance(annotation, type) and issubclass(annotation, BaseModel):
                field = _named(annotation, part)
                if field is None:
                    break
                annotation, metadata = field.annotation, list(field.metadata)
        return annotation, metadata


def _place(name: str, lines: Mapping[Location, int], location: Location) -> str:
    line = _line_of(lines, location)
    return f"{name}:{line}" if line else f"{name} (--set)"


def _line_of(lines: Mapping[Location, int], location: Location) -> int:
    while location not in lines and location:
        location = location[:-1]
    return lines.get(location, 1)


def _dotted(location: Location) -> str:
    text = ""
    for part in location:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else str(part)
    return text


def _show(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 60 else text[:57] + "..."


def _kind(value: Any) -> str:
    return {list: "list", str: "text", int: "number", float: "number", bool: "truth value"}.get(type(value), "value")


def _named(model: type[BaseModel], name: str) -> FieldInfo | None:
    for key, field in model.model_fields.items():
        if name in (field.alias, key):
            return field
    return None


def _peel(annotation: Any, metadata: list[Any]) -> tuple[Any, list[Any]]:
    """Take `Annotated` and `| None` off; collect the bounds that they carry."""
    while True:
        if get_origin(annotation) is Annotated:
            annotation, *extra = get_args(annotation)
            for item in extra:
                metadata = [*metadata, *(item.metadata if isinstance(item, FieldInfo) else [item])]
        elif get_origin(annotation) in (Union, types.UnionType):
            (annotation,) = [part for part in get_args(annotation) if part is not type(None)]
        else:
            return annotation, metadata


def _describe(annotation: Any, metadata: list[Any]) -> str:
    annotation, metadata = _peel(annotation, metadata)
    origin = get_origin(annotation)
    if origin is Literal:
        return " or ".join(str(choice) for choice in get_args(annotation))
    if origin is list:
        return f"a list, each item {_describe(get_args(annotation)[0], [])}"
    if origin is dict:
        return f"a mapping, its keys {_describe(get_args(annotation)[0], [])}"
    if annotation in (int, float):
        return ("a whole number" if annotation is int else "a number") + _bounds(metadata)
    if annotation is bool:
        return "true or false"
    if annotation is str:
        return "text" + _text_bounds(metadata)
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        required = [field.alias or name for name, field in annotation.model_fields.items() if field.is_required()]
        return "a section" + (f" with {', '.join(required)}" if required else "")
    return "see limbeck schema"


def _bounds(metadata: list[Any]) -> str:
    words = []
    for bound in metadata:
        if isinstance(bound, Ge):
            words.append(f"at least {bound.ge:,}")
        elif isinstance(bound, Gt):
            words.append(f"above {bound.gt:,}")
        elif isinstance(bound, Le):
            words.append(f"at most {bound.le:,}")
        elif isinstance(bound, Lt):
            words.append(f"below {bound.lt:,}")
    return " " + " and ".join(words) if words else ""


def _text_bounds(metadata: list[Any]) -> str:
    words = []
    for bound in metadata:
        pattern = getattr(bound, "pattern", None)
        if pattern and "[-a-z0-9]" in pattern:
            return " of at most 63 small letters, digits and '-', beginning and ending with a letter or digit"
        if pattern and "[A-Za-z0-9._-]" in pattern:
            return " of at most 200 letters, digits and, within, . _ -"
        if pattern and "@(hourly" in pattern:
            return ": minute hour day month weekday, or @hourly, @daily, @weekly, @monthly, @yearly"
        if pattern and "/" in pattern:
            return ": an IANA time zone, such as Europe/Berlin" if "_+-" in pattern else ": a path from /"
        if pattern:
            return ", a Kubernetes quantity such as 500m or 4Gi"
        if isinstance(bound, MinLen) and bound.min_length:
            words.append("not empty")
        if isinstance(bound, MaxLen):
            words.append(f"at most {bound.max_length:,} characters")
    return ", " + ", ".join(words) if words else ""
