"""What the cache knows, whatever order the news comes in."""

from __future__ import annotations

from typing import Any

from limbeck_operator.cache import Cache, Key

ONE = Key("Job", "ns", "one")


def document(version: int, uid: str = "u", owner: str | None = None, name: str = "one", **more: Any) -> dict[str, Any]:
    references = [] if owner is None else [{"uid": owner, "controller": True}]
    metadata = {"name": name, "namespace": "ns", "uid": uid, "resourceVersion": str(version)}
    return {"metadata": metadata | {"ownerReferences": references}} | more


def test_old_news_changes_nothing():
    cache = Cache()
    assert cache.put("Job", document(5, spec=1))
    assert not cache.put("Job", document(4, spec=2))
    assert not cache.put("Job", document(5, spec=3))
    assert cache.get(ONE)["spec"] == 1
    assert cache.put("Job", document(6, spec=4))
    assert cache.get(ONE)["spec"] == 4


def test_what_is_gone_stays_gone_until_it_is_made_again():
    cache = Cache()
    cache.put("Job", document(5))
    assert cache.remove("Job", document(7))
    assert not cache.put("Job", document(6))
    assert cache.get(ONE) is None
    assert cache.put("Job", document(8, uid="v"))
    assert not cache.remove("Job", document(7))  # of the one before
    assert cache.get(ONE)["metadata"]["uid"] == "v"


def test_children_are_found_by_their_owner_as_long_as_it_is_theirs():
    cache = Cache()
    cache.put("Job", document(1, owner="a"))
    cache.put("Job", document(2, name="two", uid="w", owner="a"))
    owner = {"metadata": {"uid": "a"}}
    assert [entry["metadata"]["name"] for entry in cache.children("Job", owner)] == ["one", "two"]
    assert cache.children("Distillation", owner) == []
    cache.put("Job", document(3, owner="b"))
    assert [entry["metadata"]["name"] for entry in cache.children("Job", owner)] == ["two"]
    cache.remove("Job", document(4, name="two", uid="w"))
    assert cache.children("Job", owner) == []


def test_a_list_tells_what_was_missed():
    cache = Cache(lambda found: str(found.get("spec")))
    cache.put("Job", document(1, spec=1))
    cache.put("Job", document(2, name="two", uid="w", spec=1))
    cache.put("Job", document(9, name="young", uid="y", spec=1))  # younger than the list
    assert cache.put("Job", document(5, spec=2))
    gone = cache.retain("Job", {ONE}, "7")
    assert [(key.name, found["metadata"]["resourceVersion"]) for key, found in gone] == [("two", "2")]
    assert sorted(key.name for key in cache.keys("Job")) == ["one", "young"]
    assert cache.tags() == {("Job", "2"): 1, ("Job", "1"): 1}
