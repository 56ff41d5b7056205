"""Reading of pickles without running anything in them: for checkpoints that hold more than weights.

Training scripts save weights beside arguments, schedulers, configurations and numbers of other libraries. Python's
unpickler would import and call what a file names. Here a name stays a name, `InertUnpickler.call` knows a few of them,
and any other object becomes a `Placeholder`, which holds what the file says about it and does nothing.

The unpickler is the one of the standard library that is written in Python, whose operations can be replaced. The one
in C also hashes the keys of dicts and sets, which takes exponential time or all of the stack for tuples in tuples.
"""

import io
import pickle
from collections.abc import Callable
from dataclasses import dataclass
from types import NoneType
from typing import Any, Final

from pgat_fast.errors import CheckpointError

MOST_OPERATIONS: Final = 1_000_000
"""Largest number of operations of a pickle, which bounds time and memory; a state dict takes about 40 for a tensor."""

_DEEPEST: Final = 10_000
"""Largest number of containers within each other that are being filled."""
_KEYS: Final = (str, int, float, bool, bytes, NoneType)
"""Types of keys that are kept."""
_DICTS: Final = ("collections OrderedDict", "collections defaultdict", "builtins dict", "__builtin__ dict")


@dataclass(frozen=True, slots=True)
class Global:
    """A class or function that a pickle names as `module name`. It is not imported."""

    name: str


class Placeholder(list[Any]):
    """An object of a pickle that was not built: a list of what is known of it (arguments, items, attributes).

    Attributes:
        kind: its class, or the function that would have returned it, as `module name`; `object` if it is unknown.
        items: items of a dict subclass.
    """

    __slots__ = ("items", "kind")

    def __init__(self, kind: Any, args: Any = ()) -> None:
        self.kind = kind.name if isinstance(kind, Global) else "object"
        self.items: dict[Any, Any] = {}
        super().__init__((args, self.items))


class Budget:
    """Work that may still be done for one file: a few bytes of a pickle can repeat work on an object that they name."""

    def __init__(self, copied_bytes: int = 0) -> None:
        """Allow `MOST_OPERATIONS`, and copies of `copied_bytes` bytes: the size of the file is enough for any file."""
        self.operations, self.copied_bytes = MOST_OPERATIONS, copied_bytes

    def spend(self, operations: int = 1) -> None:
        """Count `operations`; raise CheckpointError if there are too many."""
        self.operations -= operations
        if self.operations < 0:
            raise CheckpointError(
                f"holds more than {MOST_OPERATIONS:,} objects beside the weights: save the state dict alone"
            )

    def copy(self, size: int) -> None:
        """Count a copy of `size` bytes; raise ValueError if all copies are larger than the file."""
        self.copied_bytes -= size
        if self.copied_bytes < 0:
            raise ValueError("an object is repeated too often")


class _Counted(dict[int, Any]):
    """A table of operations that counts those that it returns."""

    def __init__(self, table: dict[int, Any], budget: Budget) -> None:
        super().__init__(table)
        self._budget = budget

    def __getitem__(self, code: int) -> Any:
        self._budget.spend()
        return super().__getitem__(code)


class InertUnpickler(pickle._Unpickler):
    """Reads the pickles in a file, which is not trusted, one after the other.

    A method `load_x` carries out the operation X of the module `pickle`.
    """

    stack: list[Any]
    metastack: list[list[Any]]
    pop_mark: Callable[[], list[Any]]
    load_binbytes8: Callable[[], None]

    def __init__(self, file: io.BytesIO, budget: Budget) -> None:
        super().__init__(file, encoding="latin-1")  # of texts from Python 2
        self.budget = budget
        table = {code: getattr(type(self), load.__name__) for code, load in pickle._Unpickler.dispatch.items()}
        self.dispatch = _Counted(table, budget)  # type: ignore[misc]

    def load(self) -> Any:
        """Return the object of the next pickle.

        Raises CheckpointError for a pickle with too many operations; any exception for a damaged one.
        """
        self.memo: dict[int, Any] = {}
        return super().load()

    def find_class(self, module: str, name: str) -> Global:
        return Global(f"{module[:200]} {name[:200]}")

    def call(self, name: str, args: tuple[Any, ...]) -> Any:
        """Return the result of calling the global `name`; NotImplemented for an object that is not built."""
        if name in _DICTS:
            source = args[0] if args else ()
            pairs = list(source.items()) if isinstance(source, dict) else source
            if not isinstance(pairs, list | tuple):  # a factory of values
                return {}
            self.budget.spend(len(pairs))
            return {_key(pair[0]): pair[1] for pair in pairs if isinstance(pair, list | tuple) and len(pair) == 2}
        if name in ("copyreg _reconstructor", "copy_reg _reconstructor"):  # class, base, value of the base
            return Placeholder(args[0], args[2:])
        if name == "_codecs encode" and isinstance(args[0], str):  # how protocols 0 to 2 store bytes
            self.budget.copy(len(args[0]))
            return args[0].encode("latin-1")
        return NotImplemented

    def load_mark(self) -> None:
        if len(self.metastack) == _DEEPEST:
            raise ValueError("nested too deeply")
        super().load_mark()  # type: ignore[misc]  # not in the stubs

    def load_reduce(self) -> None:
        args, function = self.stack.pop(), self.stack.pop()
        is_call = isinstance(function, Global) and isinstance(args, tuple)
        result = self.call(function.name, args) if is_call else NotImplemented
        self.stack.append(Placeholder(function, args) if result is NotImplemented else result)

    load_newobj = load_reduce

    def load_newobj_ex(self) -> None:
        self.stack.pop()  # arguments with names
        self.load_reduce()

    def _instantiate(self, kind: Any, args: list[Any]) -> None:
        self.stack.append(Placeholder(kind, args))

    def load_build(self) -> None:
        state = self.stack.pop()
        if isinstance(self.stack[-1], Placeholder):
            self.stack[-1].append(state)

    def load_dict(self) -> None:
        items = self.pop_mark()
        self.stack.append({})
        self._add(items)

    def load_setitems(self) -> None:
        self._add(self.pop_mark())

    def load_setitem(self) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        self._add([key, value])

    def _add(self, items: list[Any]) -> None:
        """Add keys and values, in turn, to a dict or an object on the stack."""
        target = self.stack[-1].items if isinstance(self.stack[-1], Placeholder) else self.stack[-1]
        if isinstance(target, dict):
            target.update((_key(key), value) for key, value in zip(items[::2], items[1::2], strict=True))

    def load_empty_set(self) -> None:
        self.stack.append(Placeholder(Global("builtins set")))

    def load_additems(self) -> None:
        self.pop_mark()  # sets hold no weights

    def load_frozenset(self) -> None:
        self.pop_mark()
        self.stack.append(Placeholder(Global("builtins frozenset")))

    def load_bytearray8(self) -> None:
        self.load_binbytes8()  # reads what there is, before memory is allocated


def _key(value: Any) -> Any:
    return value if type(value) in _KEYS else object()
