"""The registered set that distill starts from: what it is, whether it fits, and its files, in the store.

A set in a folder is read where it lies. One of MLflow's registry is downloaded once, and then lies in the store as the
results of stages do: there the stage is given it, Ray workers see it, and later processes find it, also when MLflow is
slow. Stages know nothing of MLflow.
"""

from __future__ import annotations

import json
import shutil
import tempfile
import weakref
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from safetensors import SafetensorError, safe_open

from limbeck.data.distilled_files import RECORD, TENSORS, check_rate
from limbeck.errors import InputError
from limbeck.spec import DistillationSpec
from limbeck.store import Identity, Result
from limbeck.tracking.place import require
from limbeck.tracking.registered import RegisteredSet

if TYPE_CHECKING:  # it needs torch
    from limbeck.stages.task import Workshop

FIELD = "spec.distill.warmStart"
_STAGE, _VERSION = "start", 1  # where it lies in the store, and how
_PATIENCE = 600.0  # seconds, for another process that downloads it, too


@dataclass(frozen=True)
class Form:
    """What a set's images must have in common with those that a spec distils, to start them."""

    shape: tuple[int, ...]  # as they are kept, [m, 3, r, r]
    shown: int  # the side at which networks see them

    @classmethod
    def distilled(cls, spec: DistillationSpec, size: int) -> Form:
        """Of the set that a spec distils, of `size` images."""
        shown = spec.source.image_size
        side = spec.distill.side(shown)
        return cls((size, 3, side, side), shown)

    @property
    def pixels(self) -> str:
        """In words."""
        kept = f"{self.shape[-1]}x{self.shape[-1]} pixels"
        return kept if self.shape[-1] == self.shown else f"{kept}, seen at {self.shown}x{self.shown}"


class RegisteredStart:
    """The set that `distill.warmStart: models:/NAME/VERSION` means; nothing is asked before it is needed.

    Args:
        registered: the set.
        shop: whose store it is kept in; without one it is in a temporary folder as long as this is.
    """

    def __init__(self, registered: RegisteredSet, shop: Workshop | None = None) -> None:
        self._registered, self._shop = registered, shop

    @property
    def uri(self) -> str:
        """As the spec has it."""
        return self._registered.uri

    @property
    def digest(self) -> str:
        """Of its content, whatever it is called.

        Raises:
            InputError: there is no such version.
            WorkError: MLflow does not say.
        """
        return self._registered.digest

    @cached_property
    def form(self) -> Form:
        """Of its images.

        Raises:
            InputError: there is no such version, or it is damaged.
            WorkError: MLflow does not give it.
        """
        return _form(self._files, self.uri, self._registered.field)

    def result(self) -> Result:
        """The set in the store, which is left there.

        Raises:
            InputError: there is no such version, or it is damaged.
            WorkError: MLflow does not give it.
        """
        assert self._shop is not None

        def fill(folder: Path) -> list[str]:
            for file in self._files.iterdir():
                shutil.copyfile(file, folder / file.name)
            return []

        return replace(self._shop, patience=_PATIENCE).make(self._identity, fill)[0]

    @property
    def _identity(self) -> Identity:
        return Identity(_STAGE, _VERSION, {}, {"checksums": self.digest})

    @cached_property
    def _files(self) -> Path:
        """The folder with its files, every checksum verified."""
        found = None if self._shop is None else self._shop.find(self._identity)
        return found.path if found is not None else self._registered.pull(_temporary(self) / "set")


def registered_start(spec: DistillationSpec, shop: Workshop | None = None) -> RegisteredStart | None:
    """The registered set that a spec starts from; None where it starts from real images, or from a folder."""
    uri = spec.distill.registered_start
    return None if uri is None else RegisteredStart(RegisteredSet(uri, spec.tracking.uri, FIELD), shop)


def fitting_champion(spec: DistillationSpec, say: Callable[[str], None]) -> int | None:
    """The version of `registry.name` that is the champion now, if distill can start from it.

    Args:
        spec: with registry.name and distill.size.
        say: is told why there is none.

    Raises:
        InputError: the spec has no registry.name or no distill.size, or MLflow is not installed.
        WorkError: MLflow does not answer.
    """
    name, size = spec.registry.name, spec.distill.size
    if name is None or size is None:
        field = "spec.registry.name" if name is None else "spec.distill.size"
        raise InputError(field, "nothing", "a value, which --champion needs")
    require()
    champion = RegisteredSet(f"models:/{name}@champion", spec.tracking.uri, "spec.registry.name")
    with tempfile.TemporaryDirectory() as temporary:
        try:
            form = _form(champion.pull(Path(temporary) / "set"), champion.uri, "spec.registry.name")
        except InputError as error:  # no such model, no alias, or one that nobody could start from
            say(f"no champion to start from: {error}")
            return None
    wanted = Form.distilled(spec, size)
    if form != wanted:
        found = f"version {champion.number} has {form.shape[0]} images of {form.pixels}"
        say(f"no champion to start from: {champion.uri}: {found}; {size} of {wanted.pixels}, as this spec distils")
        return None
    return champion.number


def _temporary(owner: RegisteredStart) -> Path:
    """A folder that goes with its owner."""
    folder = Path(tempfile.mkdtemp(prefix="limbeck-"))
    weakref.finalize(owner, shutil.rmtree, folder, ignore_errors=True)
    return folder


def _form(folder: Path, uri: str, field: str) -> Form:
    """The form of a set's images.

    From the head of the file: the set may be larger than a small pod's memory.
    """
    try:
        record = json.loads((folder / RECORD).read_text())
        with safe_open(folder / TENSORS, framework="numpy") as tensors:
            shape = tuple(int(side) for side in tensors.get_slice("images").get_shape())
    except (OSError, ValueError, SafetensorError) as error:
        raise InputError(field, f"{uri}: {TENSORS}: {error}", "a version that limbeck registered") from None
    rate = record["recipe"].get("rate") if isinstance(record.get("recipe"), dict) else None
    check_rate(rate, f"{field}: {uri}")
    if len(shape) != 4:
        raise InputError(field, f"{uri}: images of shape {list(shape)}", "a version that limbeck registered")
    return Form(shape, record.get("imageSize", shape[-1]))
