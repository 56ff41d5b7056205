"""Manifest of a checkpoint: its metadata, and the hash of every file, including the manifest itself.

The file is JSON in one canonical form, so that any changed byte is detected, even in white space.
"""

import hashlib
import json
import math
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from types import NoneType
from typing import Any, Final

from pgat_fast.errors import CheckpointError

FORMAT: Final = "pgat-fast checkpoint"
SCHEMA: Final = 1

MANIFEST: Final = "manifest.json"
WEIGHTS: Final = "model.safetensors"
TRAINING: Final = "training.pt"

LARGEST_MANIFEST: Final = 4 * 2**20
LARGEST_FILE: Final = 16 * 2**30
"""Bytes: far more than the largest model needs. A file that claims more is not read."""

NAME: Final = re.compile(r"(?:[A-Za-z0-9]+-)*step-[0-9]{1,18}", re.ASCII)
"""Names of checkpoints, which are ordered by step number."""

_SHA256: Final = re.compile(r"[0-9a-f]{64}", re.ASCII)
_DEEPEST: Final = 64

_ABOUT: Final[Mapping[str, tuple[type, ...]]] = {
    "config": (dict,),
    "epoch": (int,),
    "step": (int,),
    "best": (str, NoneType),
    "validation_loss": (float, int, NoneType),
    "input_scaler": (dict,),
    "target_scaler": (dict,),
    "data": (dict,),
    "versions": (dict,),
    "backend": (str,),
    "compiled": (bool,),
}


@dataclass(frozen=True)
class File:
    """Expected size and hash of a file of the checkpoint."""

    bytes: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """A manifest that has been read and verified."""

    files: dict[str, File]
    about: dict[str, Any]

    def same_content(self, other: "Manifest") -> bool:
        """Return whether both describe equal checkpoints, regardless of when these were made."""
        return self.files == other.files and self.about == other.about


def encode_manifest(about: dict[str, Any], contents: Mapping[str, bytes]) -> bytes:
    """Return the bytes of a manifest for files with these `contents`.

    Raises CheckpointError, which names the key, if `about` is not plain JSON or a known key has a wrong type.
    """
    _check_json(about, "about")
    _check_about(about)
    content = {
        "format": FORMAT,
        "schema": SCHEMA,
        "created": datetime.now(UTC).isoformat(timespec="milliseconds"),
        "files": {
            name: {"bytes": len(raw), "sha256": hashlib.sha256(raw).hexdigest()} for name, raw in contents.items()
        },
        "about": about,
    }
    raw = _encode(content | {"sha256": hashlib.sha256(_encode(content)).hexdigest()})
    if len(raw) > LARGEST_MANIFEST:
        raise CheckpointError(f"about: {len(raw):,} bytes as JSON, more than the {LARGEST_MANIFEST:,} that are read")
    return raw


def decode_manifest(raw: bytes) -> Manifest:
    """Parse the output of `encode_manifest`. Raise CheckpointError, without the name of the file, for anything else."""
    content = _parse(raw)
    if content.get("format") != FORMAT:
        raise CheckpointError(f"no manifest of a checkpoint: format is not {FORMAT!r}")
    schema = content.get("schema")
    if type(schema) is not int or schema < 1:
        raise CheckpointError(f"schema is {_shown(schema)}, not a number from 1 to {SCHEMA}")
    if schema > SCHEMA:
        raise CheckpointError(
            f"schema {schema}, but this version reads schemas up to {SCHEMA}: it was written by a newer pgat-fast "
            "(upgrade this one) or is damaged"
        )
    if list(content) != ["format", "schema", "created", "files", "about", "sha256"]:
        raise CheckpointError(f"has the keys {_shown(list(content))}, not those of a manifest")
    try:
        canonical = _encode(content)
        digest = content.pop("sha256")
        intact = canonical == raw and digest == hashlib.sha256(_encode(content)).hexdigest()
    except ValueError as error:  # a number that JSON cannot represent, such as 1e999
        raise CheckpointError(f"damaged: {error}") from error
    if not intact:
        raise CheckpointError("damaged: its content does not match its own sha256")
    about = content["about"]
    if not isinstance(about, dict):
        raise CheckpointError(f"about is {_shown(about)}, not an object")
    _check_about(about)
    return Manifest(_files(content["files"]), about)


def _encode(content: Any) -> bytes:
    return (json.dumps(content, indent=1, allow_nan=False) + "\n").encode("ascii")


def strict_json(raw: bytes) -> Any:
    """Parse JSON. Raise CheckpointError for anything else, also for duplicate keys, NaN and too deep nesting."""

    def distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        result = dict(pairs)
        if len(result) != len(pairs):
            names = Counter(name for name, _ in pairs)
            raise ValueError(f"the key {_shown(names.most_common(1)[0][0])} is there twice")
        return result

    def refuse(constant: str) -> Any:
        raise ValueError(f"{constant} is no JSON")

    try:
        return json.loads(raw.decode("utf-8"), object_pairs_hook=distinct, parse_constant=refuse)
    except RecursionError:
        raise CheckpointError("nested too deeply") from None
    except ValueError as error:
        raise CheckpointError(f"damaged, or no JSON: {error}") from error


def _parse(raw: bytes) -> dict[str, Any]:
    content = strict_json(raw)
    if not isinstance(content, dict):
        raise CheckpointError(f"is {_shown(content)}, not an object")
    _check_json(content, "")
    return content


def _files(content: Any) -> dict[str, File]:
    if not isinstance(content, dict) or set(content) != {WEIGHTS, TRAINING}:
        listed = list(content) if isinstance(content, dict) else content
        raise CheckpointError(f"lists the files {_shown(listed)}; a checkpoint has {WEIGHTS} and {TRAINING}")
    files = {}
    for name, entry in content.items():
        if not isinstance(entry, dict) or set(entry) != {"bytes", "sha256"}:
            raise CheckpointError(f"files.{name} is {_shown(entry)}, not its bytes and sha256")
        size, digest = entry["bytes"], entry["sha256"]
        if type(size) is not int or not 0 <= size <= LARGEST_FILE:
            raise CheckpointError(f"files.{name}.bytes is {_shown(size)}, not a size up to {LARGEST_FILE:,}")
        if type(digest) is not str or not _SHA256.fullmatch(digest):
            raise CheckpointError(f"files.{name}.sha256 is {_shown(digest)}, not 64 hexadecimal digits")
        files[name] = File(size, digest)
    return files


def _check_about(about: dict[str, Any]) -> None:
    """Reject known keys with a wrong type: later readers of them would fail without naming the file."""
    for key, kinds in _ABOUT.items():
        if key in about and type(about[key]) not in kinds:
            expected = " or ".join("null" if kind is NoneType else kind.__name__ for kind in kinds)
            raise CheckpointError(f"about.{key} is {_shown(about[key])}, expected {expected}")
    for key in ("epoch", "step"):
        if about.get(key, 0) < 0:
            raise CheckpointError(f"about.{key} is {about[key]}, below 0")
    best = about.get("best")
    if best is not None and not NAME.fullmatch(best):
        raise CheckpointError(f"about.best is {_shown(best)}, not the name of a checkpoint")


def _check_json(value: Any, key: str, depth: int = 0) -> None:
    """Raise CheckpointError if `value` would change in a round trip through JSON."""
    kind = type(value)
    if depth > _DEEPEST:
        raise CheckpointError(f"{key[:80]}...: nested too deeply, more than {_DEEPEST} levels")
    if kind is dict:
        for name, inner in value.items():
            if type(name) is not str:
                raise CheckpointError(f"{key}: the key {_shown(name)} is no text, as JSON needs")
            _check_json(inner, f"{key}.{name}" if key else name, depth + 1)
    elif kind is list:
        for index, inner in enumerate(value):
            _check_json(inner, f"{key}[{index}]", depth + 1)
    elif kind is float and not math.isfinite(value):
        raise CheckpointError(f"{key} is {value}, which JSON has no word for: use None")
    elif kind not in (str, int, float, bool, NoneType):
        raise CheckpointError(
            f"{key} is a {kind.__module__}.{kind.__qualname__}: use plain dicts, lists, numbers, text and None"
        )


def _shown(value: Any) -> str:
    """Return `value` as text for a message, of at most 120 characters."""
    text = repr(value) if isinstance(value, str | int | float | bool | NoneType) else f"{type(value).__name__} {value}"
    return text if len(text) <= 120 else f"{text[:117]}..."
