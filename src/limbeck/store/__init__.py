"""The artifact store: results addressed by what they are made of, valid only once their manifest is there.

A result lies under `<output>/<stage>/<key>/`. Its key is the digest of what made it (see `Identity`), its
`manifest.json` names every file with size and sha256 and is there last, and created once: no manifest, no result.
Work under way lies apart, in the output's folder `work`, where a killed stage finds its checkpoints again.
"""

from limbeck.store.files import file_digest, json_digest, write_atomically
from limbeck.store.records import (
    MANIFEST,
    DamagedResultError,
    FileEntry,
    Identity,
    Made,
    Manifest,
    Result,
    data_folder,
)
from limbeck.store.results import Store

__all__ = [
    "MANIFEST",
    "DamagedResultError",
    "FileEntry",
    "Identity",
    "Made",
    "Manifest",
    "Result",
    "Store",
    "data_folder",
    "file_digest",
    "json_digest",
    "write_atomically",
]
