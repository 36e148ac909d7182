"""Small tensors: more than one thread would only wait for itself."""

from tests.stages.tiny import one_thread  # noqa: F401 - a fixture
