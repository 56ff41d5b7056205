"""Search for the weights of a model in a checkpoint of another program, by their names."""

import logging
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor

from pgat_fast.errors import CheckpointError
from pgat_fast.training.inert_pickle import Budget, Placeholder

logger = logging.getLogger(__name__)

USUAL_KEYS: Final = ("model_state_dict", "state_dict", "model")
"""Keys under which training scripts store the weights that they trained, the most usual first."""
_WRAPPERS: Final = ("_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")
"""Parts of names that wrappers of modules inside the model add."""
_MOST_CONTAINERS: Final = 100_000
_DEEPEST: Final = 32
_MOST_PREFIXES: Final = 16
_MOST_NUMBERS: Final = 2**28


@dataclass(frozen=True, eq=False)
class Candidate:
    """Tensors in a checkpoint of which some have names that are expected.

    Attributes:
        path: keys and attributes that lead to them.
        prefix: what precedes the expected names.
        tensors: name without the prefix -> tensor, for all names that have the prefix.
        matches: number of expected names among them.
        others: names without the prefix.
    """

    path: tuple[str, ...]
    prefix: str
    tensors: dict[str, Tensor]
    matches: int
    others: list[str]

    @property
    def label(self) -> str:
        """The path and the prefix as text; empty for the file itself."""
        return ".".join((*self.path, *filter(None, [self.prefix.rstrip(".")])))


def find_weights(content: Any, expected: Iterable[str], key: str | None = None) -> Candidate | None:
    """Return the tensors in `content` that have the `expected` names, behind any prefix and in any containers.

    Args:
        content: what `torch_file.read_torch_file` returns.
        expected: names of all parameters.
        key: label of the candidate to take if several have all names; by default, the usual ones are preferred.

    Returns:
        The candidate with all names, otherwise the one with most of them; None if none has any.

    Raises:
        CheckpointError: several different candidates have all names, or none has the label `key`.
    """
    names = frozenset(expected)
    candidates = [candidate for path, state in _states(content) for candidate in _candidates(path, state, names)]
    whole = [candidate for candidate in candidates if candidate.matches == len(names)]
    if key is not None:
        chosen = next((candidate for candidate in whole or candidates if candidate.label == key), None)
        if chosen is None:
            labels = ", ".join(repr(candidate.label) for candidate in (whole or candidates)[:10]) or "no such key"
            raise CheckpointError(f"--key {key}: the model's weights are not there; there are weights under: {labels}")
        return chosen
    if not whole:
        return max(candidates, key=lambda candidate: candidate.matches, default=None)
    whole.sort(key=_rank)
    first = whole[0]
    others = [candidate for candidate in whole[1:] if not _same(candidate, first)]
    if others and _rank(others[0]) == _rank(first):
        labels = ", ".join(repr(candidate.label) for candidate in (first, *others)[:10])
        raise CheckpointError(f"holds several sets of weights: {labels}: choose one with --key")
    if others:
        labels = ", ".join(repr(candidate.label) for candidate in others[:10])
        logger.info("taking the weights under %r; others that fit are under %s (--key)", first.label, labels)
    return first


def _rank(candidate: Candidate) -> int:
    """Return how usual the place of the weights is, 0 for the most usual one."""
    if not candidate.path:
        return 0
    return next((k for k, name in enumerate(USUAL_KEYS, 1) if name == candidate.path[0]), len(USUAL_KEYS) + 1)


def _same(one: Candidate, other: Candidate) -> bool:
    """Return whether both hold the same numbers; False if there are more of them than any model has."""
    if sum(tensor.numel() for tensor in one.tensors.values()) > _MOST_NUMBERS:
        return False
    return one.tensors.keys() == other.tensors.keys() and all(
        tensor is other.tensors[name] or torch.equal(tensor, other.tensors[name])
        for name, tensor in one.tensors.items()
    )


def _states(content: Any) -> Iterator[tuple[tuple[str, ...], Mapping[Any, Any]]]:
    """Yield the path and the content of all dicts and modules in `content`, outer ones first."""
    waiting: deque[tuple[tuple[str, ...], Any]] = deque([((), content)])
    seen: set[int] = set()
    budget = Budget()
    while waiting and len(seen) < _MOST_CONTAINERS:
        path, value = waiting.popleft()
        if id(value) in seen or len(path) > _DEEPEST:
            continue
        seen.add(id(value))
        budget.spend(_size(value))
        children: Iterable[tuple[Any, Any]]
        if isinstance(value, Placeholder):
            if _is_module(value):
                yield path, dict(_module_state(value, "", _DEEPEST, budget))
            children = [*value.items.items(), *_attributes(value).items()]
            children += [("", item) for item in value.args] if isinstance(value.args, tuple) else []
        elif isinstance(value, Mapping):
            yield path, value
            children = value.items()
        else:
            children = (("", item) for item in value)
        for key, child in children:
            if isinstance(child, Mapping | list | tuple | Placeholder):
                waiting.append(((*path, label_of(key)) if key != "" else path, child))


def label_of(key: Any) -> str:
    """Return a key of a checkpoint as text for messages; a key that is neither text nor a small number by its type."""
    if isinstance(key, str):
        return key[:100]
    small = isinstance(key, int) and key.bit_length() <= 64
    return str(key) if small or isinstance(key, float) else f"<{type(key).__name__}>"


def _size(value: Any) -> int:
    """Return the number of items of a container, or of attributes, items and arguments of an object."""
    if not isinstance(value, Placeholder):
        return _length(value)
    states = value.state if isinstance(value.state, tuple) else (value.state,)
    return len(states) + sum(map(_length, (*states[:2], value.items, value.args)))


def _length(value: Any) -> int:
    return len(value) if isinstance(value, Mapping | list | tuple) else 0


def _attributes(value: Placeholder) -> dict[Any, Any]:
    """Return the attributes of an object, which a pickle stores as a dict, or as a pair of dicts if it has slots."""
    states = value.state[:2] if isinstance(value.state, tuple) else (value.state,)
    return {key: item for state in states if isinstance(state, dict) for key, item in state.items()}


def _is_module(value: Placeholder) -> bool:
    return all(isinstance(_attributes(value).get(name), dict) for name in ("_parameters", "_modules"))


def _module_state(module: Placeholder, prefix: str, depth: int, budget: Budget) -> Iterator[tuple[str, Any]]:
    """Yield the entries of the state dict of a module that was pickled whole. `budget` ends a search without end."""
    budget.spend(1 + _size(module))
    attributes = _attributes(module)
    for kind in ("_parameters", "_buffers"):
        values = attributes.get(kind) or {}
        budget.spend(len(values))
        for name, value in values.items():
            if isinstance(value, Tensor):
                yield f"{prefix}{name}", value
    budget.spend(len(attributes["_modules"]))
    for name, child in attributes["_modules"].items():
        if depth > 0 and isinstance(child, Placeholder) and _is_module(child):
            yield from _module_state(child, f"{prefix}{name}.", depth - 1, budget)


def _candidates(path: tuple[str, ...], state: Mapping[Any, Any], expected: frozenset[str]) -> list[Candidate]:
    """Return a candidate for each prefix behind which all expected names are, or else for the best prefix."""
    tensors = {name: value for name, value in state.items() if isinstance(name, str) and isinstance(value, Tensor)}
    best: list[Candidate] = []
    for named in (tensors, {_without_wrappers(name): value for name, value in tensors.items()}):
        prefixes = Counter(
            name[:start] for name in named for start in _starts(name) if name[start:] in expected
        ).most_common()
        if not prefixes:
            return best
        complete = [prefix for prefix, count in prefixes if count == len(expected)]
        best = [_candidate(path, prefix, named, expected) for prefix in complete or [prefixes[0][0]]]
        if complete:
            break
    return best


def _candidate(path: tuple[str, ...], prefix: str, named: Mapping[str, Tensor], expected: frozenset[str]) -> Candidate:
    tensors = {name.removeprefix(prefix): value for name, value in named.items() if name.startswith(prefix)}
    others = [name for name in named if not name.startswith(prefix)]
    return Candidate(path, prefix, tensors, len(expected & tensors.keys()), others)


def _starts(name: str) -> Iterator[int]:
    """Yield the positions at which `name`, or a part of it behind one of its first dots, begins."""
    start = 0
    for _ in range(_MOST_PREFIXES):
        yield start
        start = name.find(".", start) + 1
        if start == 0:
            return


def _without_wrappers(name: str) -> str:
    return ".".join(part for part in name.split(".") if part not in _WRAPPERS)
