"""limbeck distils a large unlabelled image dataset into a small synthetic one that pre-trains encoders."""

from limbeck.version import __version__

__all__ = ["__version__"]
