"""What the operator knows of the objects of the cluster: the last of each that it has seen, and who belongs to whom."""

from __future__ import annotations

import json
import zlib
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Mapping
from typing import Any, NamedTuple

_REMEMBERED = 1000  # objects that are gone


class Key(NamedTuple):
    """An object."""

    kind: str
    namespace: str
    name: str


def key_of(kind: str, document: Mapping[str, Any]) -> Key:
    """The key of an object."""
    return Key(kind, document["metadata"]["namespace"], document["metadata"]["name"])


class _Entry(NamedTuple):
    version: int
    uid: str
    owner: str | None  # uid of what controls it
    tag: str
    packed: bytes


class Cache:
    """Objects by key, each with the keys of what it controls.

    News may come late and twice, from watches, lists and the answers to the operator's own writes: what is older than
    what is known changes nothing. Objects are kept packed, a tenth of their size as Python has them.

    Args:
        tag: what is remembered of an object beside it, to be counted.
    """

    def __init__(self, tag: Callable[[Mapping[str, Any]], str] = lambda _: "") -> None:
        self._tag = tag
        self._entries: dict[Key, _Entry] = {}
        self._gone: dict[Key, int] = {}  # the resource version at which one went, so that late news of it is known
        self._children: defaultdict[str, set[Key]] = defaultdict(set)  # by the owner's uid

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, key: Key) -> Mapping[str, Any] | None:
        """What is known of an object."""
        entry = self._entries.get(key)
        return None if entry is None else _unpacked(entry)

    def keys(self, kind: str) -> list[Key]:
        """All objects of a kind."""
        return [key for key in self._entries if key.kind == kind]

    def tags(self) -> Counter[tuple[str, str]]:
        """How many objects there are by kind and tag."""
        return Counter((key.kind, entry.tag) for key, entry in self._entries.items())

    def children(self, kind: str, owner: Mapping[str, Any]) -> list[Mapping[str, Any]]:
        """The objects of a kind that an object controls."""
        found = self._children.get(owner["metadata"]["uid"], ())
        return [_unpacked(self._entries[key]) for key in sorted(found) if key.kind == kind]

    def put(self, kind: str, document: Mapping[str, Any]) -> bool:
        """Keep what is known of an object; whether that was news."""
        key, version = key_of(kind, document), _version(document)
        known = self._entries.get(key)
        if (known is not None and known.version >= version) or self._gone.get(key, -1) >= version:
            return False
        self._forget(key)
        self._gone.pop(key, None)
        owner = owner_of(document)
        uid = None if owner is None else owner["uid"]
        packed = zlib.compress(json.dumps(document).encode(), 1)
        self._entries[key] = _Entry(version, document["metadata"]["uid"], uid, self._tag(document), packed)
        if uid is not None:
            self._children[uid].add(key)
        return True

    def remove(self, kind: str, document: Mapping[str, Any]) -> bool:
        """Forget an object that is gone; whether it was there."""
        key, version = key_of(kind, document), _version(document)
        known = self._entries.get(key)
        if known is None or (known.uid != document["metadata"]["uid"] and known.version > version):
            return False
        self._drop(key, max(version, known.version))
        return True

    def retain(self, kind: str, listed: Collection[Key], version: str) -> list[tuple[Key, Mapping[str, Any] | None]]:
        """Forget all of a kind that were not in a whole list, which was true at a resource version; what those were."""
        gone = []
        for key in self.keys(kind):
            if key not in listed and self._entries[key].version <= int(version):
                gone.append((key, self.get(key)))
                self._drop(key, self._entries[key].version)
        return gone

    def _drop(self, key: Key, version: int) -> None:
        self._forget(key)
        self._gone[key] = version
        while len(self._gone) > _REMEMBERED:
            del self._gone[next(iter(self._gone))]

    def _forget(self, key: Key) -> None:
        entry = self._entries.pop(key, None)
        if entry is None or entry.owner is None:
            return
        mine = self._children[entry.owner]
        mine.discard(key)
        if not mine:
            del self._children[entry.owner]


def owner_of(document: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The reference to what controls an object."""
    references = document["metadata"].get("ownerReferences") or []
    return next((entry for entry in references if entry.get("controller")), None)


def _unpacked(entry: _Entry) -> Mapping[str, Any]:
    found: Mapping[str, Any] = json.loads(zlib.decompress(entry.packed))
    return found


def _version(document: Mapping[str, Any]) -> int:
    return int(document["metadata"]["resourceVersion"])
