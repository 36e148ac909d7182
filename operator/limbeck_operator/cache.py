"""What the operator knows of the objects of the cluster: the last of each that it has seen, and who belongs to whom."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple


class Key(NamedTuple):
    """An object."""

    kind: str
    namespace: str
    name: str


def key_of(kind: str, document: Mapping[str, Any]) -> Key:
    """The key of an object."""
    return Key(kind, document["metadata"]["namespace"], document["metadata"]["name"])


class Cache:
    """Objects by key, each with the keys of what it controls.

    News may come late and twice, from watches, lists and the answers to the operator's own writes: what is older than
    what is known changes nothing.
    """

    def __init__(self) -> None:
        self._objects: dict[Key, Mapping[str, Any]] = {}
        self._gone: dict[Key, int] = {}  # the resource version at which one went, so that late news of it is known
        self._children: defaultdict[str, set[Key]] = defaultdict(set)  # by the owner's uid

    def __len__(self) -> int:
        return len(self._objects)

    def get(self, key: Key) -> Mapping[str, Any] | None:
        """What is known of an object."""
        return self._objects.get(key)

    def keys(self, kind: str) -> Iterator[Key]:
        """All objects of a kind."""
        return iter([key for key in self._objects if key.kind == kind])

    def children(self, kind: str, owner: Mapping[str, Any]) -> list[Mapping[str, Any]]:
        """The objects of a kind that an object controls."""
        found = self._children.get(owner["metadata"]["uid"], ())
        return [self._objects[key] for key in sorted(found) if key.kind == kind]

    def put(self, kind: str, document: Mapping[str, Any]) -> bool:
        """Keep what is known of an object; whether that was news."""
        key, version = key_of(kind, document), _version(document)
        known = self._objects.get(key)
        if known is not None and _version(known) >= version:
            return False
        if self._gone.get(key, -1) >= version:
            return False
        if known is not None:
            self._unlink(key, known)
        self._gone.pop(key, None)
        self._objects[key] = document
        owner = owner_of(document)
        if owner is not None:
            self._children[owner["uid"]].add(key)
        return True

    def remove(self, kind: str, document: Mapping[str, Any]) -> bool:
        """Forget an object that is gone; whether it was there."""
        key, version = key_of(kind, document), _version(document)
        known = self._objects.get(key)
        if known is None or (known["metadata"]["uid"] != document["metadata"]["uid"] and _version(known) > version):
            return False
        self._unlink(key, known)
        del self._objects[key]
        self._gone[key] = max(version, _version(known))
        while len(self._gone) > 1000:
            del self._gone[next(iter(self._gone))]
        return True

    def replace(self, kind: str, documents: Iterable[Mapping[str, Any]], version: str) -> list[Key]:
        """Take a whole list of a kind, which was true at a resource version; the keys of which that was news."""
        news, listed = [], set()
        for document in documents:
            key = key_of(kind, document)
            listed.add(key)
            if self.put(kind, document):
                news.append(key)
        for key in self.keys(kind):
            known = self._objects[key]
            if key not in listed and _version(known) <= int(version):
                self.remove(kind, known)
                news.append(key)
        return news

    def _unlink(self, key: Key, known: Mapping[str, Any]) -> None:
        owner = owner_of(known)
        if owner is not None:
            mine = self._children[owner["uid"]]
            mine.discard(key)
            if not mine:
                del self._children[owner["uid"]]


def owner_of(document: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The reference to what controls an object."""
    references = document["metadata"].get("ownerReferences") or []
    return next((entry for entry in references if entry.get("controller")), None)


def _version(document: Mapping[str, Any]) -> int:
    return int(document["metadata"]["resourceVersion"])
