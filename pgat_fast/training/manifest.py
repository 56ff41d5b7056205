"""Manifest of a checkpoint: its metadata, and the hash of every file, including itself; names of checkpoints.

The file is JSON in one canonical form, so that any changed byte is detected, even in white space.
"""

import hashlib
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import NoneType
from typing import Any, Final, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from pgat_fast.errors import CheckpointError

FORMAT: Final = "pgat-fast checkpoint"

MANIFEST: Final = "manifest.json"
WEIGHTS: Final = "model.safetensors"
TRAINING: Final = "training.safetensors"
TORCH_TRAINING: Final = "training.pt"

FILES: Final = {1: (WEIGHTS, TORCH_TRAINING), 2: (WEIGHTS, TRAINING)}
"""Schema -> the files besides the manifest. Schema 1, which is only read, has the training state from `torch.save`."""
SCHEMA: Final = max(FILES)

LARGEST_MANIFEST: Final = 4 * 2**20
LARGEST_FILE: Final = 16 * 2**30
"""Bytes: far more than the largest model needs. A file that claims more is not read."""

_DEEPEST: Final = 64

NAME: Final = re.compile(r"(?:[A-Za-z0-9]+-)*step-[0-9]{1,18}", re.ASCII)
"""Names of checkpoints, which are ordered by step number."""
PREVIOUS: Final = ".previous"
"""Suffix of the name of a good checkpoint while another one replaces it."""

Schema = TypeVar("Schema", bound=BaseModel)


class File(BaseModel):
    """Expected size and hash of a file of the checkpoint."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)

    bytes: int = Field(ge=0, le=LARGEST_FILE)
    sha256: str = Field(pattern="^[0-9a-f]{64}$")


class About(BaseModel):
    """Types of the known metadata. Their readers would fail at other types without naming the file."""

    model_config = ConfigDict(strict=True, extra="allow")

    config: dict[str, Any] = {}
    epoch: int = Field(default=0, ge=0)
    step: int = Field(default=0, ge=0)
    best: str | None = Field(default=None, pattern=f"^{NAME.pattern}$")
    validation_loss: float | None = None
    input_scaler: dict[str, Any] = {}
    target_scaler: dict[str, Any] = {}
    data: dict[str, Any] = {}
    versions: dict[str, Any] = {}
    backend: str = ""
    compiled: bool = False


@dataclass(frozen=True)
class Manifest:
    """A manifest that has been read and verified."""

    files: dict[str, File]
    about: dict[str, Any]


def find_checkpoints(root: Path) -> list[Path]:
    """Return all paths in `root` that are named like a checkpoint, whatever their state, oldest first."""
    names = {path.name for path in root.iterdir()} if root.is_dir() else set()
    checkpoint_names = [name for name in names if NAME.fullmatch(name)]
    stems = {name.removesuffix(PREVIOUS) for name in names if name.endswith(PREVIOUS)}
    checkpoint_names += [stem + PREVIOUS for stem in stems - names if NAME.fullmatch(stem)]
    return [root / name for name in sorted(checkpoint_names, key=_age)]


def _age(name: str) -> tuple[list[int], str]:
    return [int(number) for number in reversed(re.findall(r"\d+", name))], name


def sha256(content: bytes) -> str:
    """Return the SHA-256 of `content` as 64 hexadecimal digits."""
    return hashlib.sha256(content).hexdigest()


def encode_manifest(about: dict[str, Any], contents: Mapping[str, bytes]) -> bytes:
    """Return the bytes of a manifest for files with these `contents`.

    Raises CheckpointError, TypeError, ValueError or RecursionError if `about` is not plain JSON or a known key has a
    wrong type.
    """
    content = {
        "format": FORMAT,
        "schema": SCHEMA,
        "created": datetime.now(UTC).isoformat(timespec="milliseconds"),
        "files": {name: {"bytes": len(raw), "sha256": sha256(raw)} for name, raw in contents.items()},
        "about": about,
    }
    raw = _encode(content | {"sha256": sha256(_encode(content))})
    if len(raw) > LARGEST_MANIFEST:
        raise CheckpointError(f"about: {len(raw):,} bytes as JSON, more than the {LARGEST_MANIFEST:,} that are read")
    if decode_manifest(raw).about != about:
        raise CheckpointError("about: changes in JSON: use dicts with text as keys, lists, numbers, text and None")
    return raw


def decode_manifest(raw: bytes) -> Manifest:
    """Parse the output of `encode_manifest`. Raise CheckpointError, without the name of the file, for anything else."""
    content = strict_json(raw)
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise CheckpointError(f"not the manifest of a checkpoint: it has no format {FORMAT!r}")
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
        intact = _encode(content) == raw and content.pop("sha256") == sha256(_encode(content))
    except (RecursionError, ValueError) as error:  # nested too deeply, or a number such as 1e999
        raise CheckpointError(f"damaged: {error}") from error
    if not intact:
        raise CheckpointError("damaged: its content does not match its own sha256")
    if b"\n" + b" " * _DEEPEST in raw:  # the canonical form has a space of indentation for each level
        raise CheckpointError("nested too deeply")
    files, about = content["files"], content["about"]
    if not isinstance(files, dict) or set(files) != set(FILES[schema]):
        names = list(files) if isinstance(files, dict) else files
        raise CheckpointError(f"lists the files {_shown(names)}; a checkpoint has {' and '.join(FILES[schema])}")
    _validate(About, about, "about")
    return Manifest({name: _validate(File, entry, f"files.{name}") for name, entry in files.items()}, about)


def _encode(content: Any) -> bytes:
    return (json.dumps(content, indent=1, allow_nan=False) + "\n").encode("ascii")


def strict_json(raw: bytes, convert: Callable[[dict[str, Any]], Any] = dict) -> Any:
    """Parse JSON, with each object as the result of `convert`.

    Raises CheckpointError for anything else, also for duplicate keys, NaN and too deep nesting.
    """

    def distinct(pairs: list[tuple[str, Any]]) -> Any:
        result = dict(pairs)
        if len(result) != len(pairs):
            raise ValueError(f"a duplicate key among {_shown([name for name, _ in pairs])}")
        return convert(result)

    def refuse(constant: str) -> Any:
        raise ValueError(f"{constant} is not JSON")

    try:
        return json.loads(raw.decode("utf-8"), object_pairs_hook=distinct, parse_constant=refuse)
    except RecursionError:
        raise CheckpointError("nested too deeply") from None
    except ValueError as error:
        raise CheckpointError(f"damaged, or not JSON: {error}") from error


def _validate(schema: type[Schema], content: Any, key: str) -> Schema:
    try:
        return schema.model_validate(content)
    except ValidationError as error:
        fault = error.errors()[0]
        name = ".".join((key, *map(str, fault["loc"])))
        raise CheckpointError(f"{name} is {_shown(fault['input'])}: {fault['msg']}") from error


def _shown(value: Any) -> str:
    """Return `value` as text for a message, of at most 120 characters."""
    text = repr(value) if isinstance(value, str | int | float | bool | NoneType) else f"{type(value).__name__} {value}"
    return text if len(text) <= 120 else f"{text[:117]}..."
