"""See what the sources are: first of all tasks."""

from limbeck_components.base import component


@component
def fingerprint(spec: str) -> str:
    """Check a spec against its sources, and take their fingerprints.

    Args:
        spec: The whole spec, as JSON.

    Returns:
        The fingerprints by source, as JSON: what tells one run from another, where a source has changed.
    """
    from limbeck_components.work import fingerprints

    return fingerprints(spec)
