"""Names in an Arrow array behave as a tuple of strings does, and cost their bytes."""

import pickle

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from limbeck.data.sources import Names
from limbeck.data.sources.listing import labels_of_names, numbered

TEXTS = st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=8), max_size=20)
EDGES = st.none() | st.integers(-25, 25)


@settings(deadline=None)
@given(TEXTS, st.integers(-30, 30), EDGES, EDGES, st.sampled_from([None, 1, 2, -1, -3]))
def test_names_are_as_a_tuple(texts, place, start, stop, step):
    names, chosen = Names(texts), slice(start, stop, step)
    assert len(names) == len(texts)
    assert tuple(names) == tuple(texts)
    assert list(names[chosen]) == texts[chosen]
    assert names == texts
    assert names == tuple(texts)
    assert names != [*texts, "more"]
    assert list(reversed(names)) == texts[::-1]
    assert pickle.loads(pickle.dumps(names[chosen])) == texts[chosen]
    if -len(texts) <= place < len(texts):
        assert names[place] == texts[place]
        assert names.index(texts[place]) == texts.index(texts[place])
    else:
        with pytest.raises(IndexError):
            names[place]


def test_a_hundred_thousand_names_cost_little_more_than_their_bytes():
    before = pa.total_allocated_bytes()
    names = Names(numbered(100_000).array)
    assert pa.total_allocated_bytes() - before <= 100_000 * (8 + 8) + 4096
    assert (names[0], names[-1]) == ("00000000", "00099999")


@settings(deadline=None)
@given(st.lists(st.none() | st.sampled_from(["b", "a", "10", "2", "ü"]), min_size=1))
def test_labels_are_places_among_the_sorted_classes(found):
    labels, classes = labels_of_names(pa.array(found, pa.large_string()))
    assert list(classes) == sorted({name for name in found if name is not None})
    if classes:
        assert [None if label < 0 else classes[label] for label in labels] == found
    else:
        assert labels is None
