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
_DEEPEST: Final = 32
_MOST_PREFIXES: Final = 16
_MOST_NUMBERS: Final = 2**28
_LONGEST_NAME: Final = 1000


@dataclass(frozen=True, eq=False)
class Candidate:
    """Tensors in a checkpoint of which some have names that are expected."""

    path: tuple[str, ...]
    """Keys and attributes that lead to them."""
    prefix: str
    """What precedes the expected names."""
    matches: int
    """Number of expected names behind the prefix."""
    state: dict[str, Tensor]
    """All tensors that are there, by name."""

    @property
    def tensors(self) -> dict[str, Tensor]:
        """Name without the prefix -> tensor, for all names that have the prefix."""
        return {n.removeprefix(self.prefix): tensor for n, tensor in self.state.items() if n.startswith(self.prefix)}

    @property
    def others(self) -> list[str]:
        """Names without the prefix."""
        return [name for name in self.state if not name.startswith(self.prefix)]

    @property
    def label(self) -> str:
        """The path and the prefix as text; empty for the file itself."""
        return ".".join((*self.path, *filter(None, [self.prefix.rstrip(".")])))

    @property
    def rank(self) -> int:
        """How usual the place is, 0 for the most usual one."""
        usual = ((), *((key,) for key in USUAL_KEYS))
        return usual.index(self.path[:1]) if self.path[:1] in usual else len(usual)


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
            where = _labels(whole or candidates) or "no such key"
            raise CheckpointError(f"--key {key}: the model's weights are not there; there are weights under: {where}")
        return chosen
    if not whole:
        return max(candidates, key=lambda candidate: candidate.matches, default=None)
    first, *others = sorted(whole, key=lambda candidate: candidate.rank)
    others = [candidate for candidate in others if not _same(candidate, first)]
    if others and others[0].rank == first.rank:
        raise CheckpointError(f"holds several sets of weights: {_labels([first, *others])}: choose one with --key")
    if others:
        logger.info("taking the weights under %r; others that fit are under %s (--key)", first.label, _labels(others))
    return first


def label_of(key: Any) -> str:
    """Return a key of a checkpoint as text for messages; a key that is neither text nor a small number by its type."""
    if isinstance(key, str):
        return key[:100]
    small = isinstance(key, int) and key.bit_length() <= 64
    return str(key) if small or isinstance(key, float) else f"<{type(key).__name__}>"


def _labels(candidates: list[Candidate]) -> str:
    return ", ".join(repr(candidate.label) for candidate in candidates[:10])


def _same(one: Candidate, other: Candidate) -> bool:
    """Return whether both hold the same numbers; False if there are more of them than any model has."""
    if sum(tensor.numel() for tensor in one.tensors.values()) > _MOST_NUMBERS:
        return False
    return one.tensors.keys() == other.tensors.keys() and all(
        tensor is other.tensors[name] or torch.equal(tensor, other.tensors[name])
        for name, tensor in one.tensors.items()
    )


def _states(content: Any) -> Iterator[tuple[tuple[str, ...], dict[str, Tensor]]]:
    """Yield the path and the tensors of all dicts and modules in `content`, outer ones first."""
    waiting: deque[tuple[tuple[str, ...], Any]] = deque([((), (content,))])
    seen: set[int] = set()
    budget = Budget()
    while waiting:
        path, value = waiting.popleft()
        if id(value) in seen or len(path) > _DEEPEST:
            continue
        seen.add(id(value))
        budget.spend(1 + len(value))
        tensors = dict(_tensors(value, "", budget)) if isinstance(value, Mapping) else {}
        if tensors:
            yield path, tensors
        children = value.items() if isinstance(value, Mapping) else (("", item) for item in value)
        for key, child in children:
            if isinstance(child, Mapping | list | tuple) and child:
                waiting.append(((*path, label_of(key)) if key != "" else path, child))


def _tensors(state: Mapping[Any, Any], prefix: str, budget: Budget) -> Iterator[tuple[str, Tensor]]:
    """Yield the tensors of a state dict; for the attributes of a module, those of the state dict that it would have."""
    budget.spend(1 + len(state))
    for part in (state["_parameters"], state.get("_buffers")) if _is_module(state) else (state,):
        for name, value in part.items() if isinstance(part, Mapping) else ():
            if isinstance(value, Tensor) and isinstance(name, str) and len(name) <= _LONGEST_NAME:
                yield prefix + name, value
    if _is_module(state) and prefix.count(".") < _DEEPEST:
        for name, module in state["_modules"].items():
            for part in module if isinstance(module, Placeholder) else ():
                if _is_module(part):
                    yield from _tensors(part, f"{prefix}{label_of(name)}.", budget)


def _is_module(attributes: Any) -> bool:
    """Return whether these are the attributes of a module, whose parts a file may hold many times."""
    names = ("_parameters", "_modules")
    return isinstance(attributes, dict) and all(isinstance(attributes.get(name), dict) for name in names)


def _candidates(path: tuple[str, ...], state: dict[str, Tensor], expected: frozenset[str]) -> list[Candidate]:
    """Return a candidate for each prefix behind which all expected names are, or else for the best prefix."""
    best: list[Candidate] = []
    for named in (state, {_without_wrappers(name): tensor for name, tensor in state.items()}):
        found = Counter(name[:start] for name in named for start in _starts(name) if name[start:] in expected)
        whole = [(prefix, count) for prefix, count in found.items() if count == len(expected)]
        if found:
            best = [Candidate(path, prefix, count, named) for prefix, count in whole or found.most_common(1)]
        if whole:
            break
    return best


def _starts(name: str) -> list[int]:
    """Return the positions at which `name`, or a part of it behind one of its first dots, begins."""
    return [0, *(index + 1 for index, mark in enumerate(name) if mark == ".")][:_MOST_PREFIXES]


def _without_wrappers(name: str) -> str:
    return ".".join(part for part in name.split(".") if part not in _WRAPPERS)
