"""Reading of pickles without running anything in them: for checkpoints that hold more than weights.

Training scripts save weights beside arguments, schedulers, configurations and numbers of other libraries. Python's
unpickler would import and call what a file names. This one only moves values: containers, text and numbers become
Python's own, the few calls that `call` knows build tensors, and everything else becomes a `Placeholder`, which holds
what the file says about an object and does nothing.
"""

import io
import pickletools
from collections.abc import Callable
from types import NoneType
from typing import Any, Final

from pgat_fast.errors import CheckpointError

MOST_OPERATIONS: Final = 1_000_000
"""Largest number of operations of a pickle, which bounds time and memory; a state dict takes about 40 for a tensor."""

_DEEPEST: Final = 10_000
"""Largest number of containers within each other that are being filled."""
_KEYS: Final = (str, int, float, bool, bytes, NoneType)
"""Types of keys that are kept. The hash of others can be slow, or too deep for the stack of C."""
_VALUES: Final = frozenset(
    [
        "INT",
        "BININT",
        "BININT1",
        "BININT2",
        "LONG",
        "LONG1",
        "LONG4",
        "STRING",
        "BINSTRING",
        "SHORT_BINSTRING",
        "BINBYTES",
        "SHORT_BINBYTES",
        "BINBYTES8",
        "BYTEARRAY8",
        "UNICODE",
        "SHORT_BINUNICODE",
        "BINUNICODE",
        "BINUNICODE8",
        "FLOAT",
        "BINFLOAT",
    ]
)
_CONSTANTS: Final = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
_DICTS: Final = ("collections OrderedDict", "collections defaultdict", "builtins dict", "__builtin__ dict")


class Global:
    """A class or function that a pickle names as `module name`. It is not imported."""

    __slots__ = ("name",)

    def __init__(self, name: str) -> None:
        self.name = name


class Placeholder:
    """An object of a pickle that was not built.

    Attributes:
        kind: its class, or the function that would have returned it, as `module name`; `object` if it is unknown.
        args: arguments of that call.
        state: attributes, as stored.
        items: items of a dict subclass.
    """

    __slots__ = ("args", "items", "kind", "state")

    def __init__(self, kind: Any, args: Any = ()) -> None:
        self.kind = kind.name if isinstance(kind, Global) else "object"
        self.args = args
        self.state: Any = None
        self.items: dict[Any, Any] = {}


_EMPTY: Final[dict[str, Callable[[], Any]]] = {
    "EMPTY_LIST": list,
    "EMPTY_DICT": dict,
    "EMPTY_SET": lambda: Placeholder(Global("builtins set")),
}


class Budget:
    """Work that may still be done for one file.

    A few bytes of a pickle can repeat work on an object that it has named, so whatever takes time or memory in
    proportion to an object counts.
    """

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

    def copy(self, content: str | bytes) -> None:
        """Count a copy of `content`; raise ValueError if the copies are larger than the file."""
        self.copied_bytes -= len(content)
        if self.copied_bytes < 0:
            raise ValueError("an object is repeated too often")


def read_pickle(
    file: io.BytesIO,
    *,
    persistent: Callable[[Any], Any],
    call: Callable[[str, tuple[Any, ...]], Any],
    budget: Budget,
) -> Any:
    """Return the object of the pickle at the position of `file`, which is then behind it.

    Args:
        file: its content is not trusted.
        persistent: returns the object for a persistent id.
        call: returns the result of the call of a global with arguments, or NotImplemented for a placeholder.
        budget: of the whole file.

    Raises CheckpointError for a pickle with too many operations; any exception for a damaged one.
    """
    stack: list[Any] = []
    outer: list[list[Any]] = []
    memo: dict[Any, Any] = {}

    def marked() -> list[Any]:
        nonlocal stack
        items, stack = stack, outer.pop()
        return items

    def built(function: Any, args: Any) -> Any:
        name = function.name if isinstance(function, Global) else ""
        if name in _DICTS:
            return _pairs(args, budget)
        if name == "copy_reg _reconstructor" or name == "copyreg _reconstructor":
            return Placeholder(args[0])
        if name == "_codecs encode" and isinstance(args, tuple) and isinstance(args[0], str):
            budget.copy(args[0])
            return args[0].encode("latin-1")  # how protocols 0 to 2 store bytes
        result = call(name, args) if isinstance(args, tuple) else NotImplemented
        return Placeholder(function, args) if result is NotImplemented else result

    for code, argument, _ in pickletools.genops(file):
        budget.spend()
        name = code.name
        if name in _VALUES:
            stack.append(argument)
        elif name in _CONSTANTS:
            stack.append(_CONSTANTS[name])
        elif name in ("BINGET", "GET", "LONG_BINGET"):
            stack.append(memo[argument])
        elif name in ("BINPUT", "PUT", "LONG_BINPUT"):
            memo[argument] = stack[-1]
        elif name == "MEMOIZE":
            memo[len(memo)] = stack[-1]
        elif name == "MARK":
            if len(outer) == _DEEPEST:
                raise ValueError("nested too deeply")
            outer.append(stack)
            stack = []
        elif name in ("TUPLE1", "TUPLE2", "TUPLE3"):
            count = int(name[-1])
            stack[-count:] = [tuple(stack[-count:])]
        elif name == "TUPLE":
            items = marked()  # replaces `stack`
            stack.append(tuple(items))
        elif name in _EMPTY:
            stack.append(_EMPTY[name]())
        elif name == "LIST":
            items = marked()  # replaces `stack`
            stack.append(items)
        elif name == "DICT":
            items = marked()
            stack.append(_dict_of(items))
        elif name == "FROZENSET":
            marked()
            stack.append(Placeholder(Global("builtins frozenset")))
        elif name in ("APPENDS", "ADDITEMS", "SETITEMS"):
            items = marked()
            _add(stack[-1], items, name == "SETITEMS")
        elif name == "APPEND":
            value = stack.pop()
            _add(stack[-1], [value], False)
        elif name == "SETITEM":
            value, key = stack.pop(), stack.pop()
            _add(stack[-1], [key, value], True)
        elif name == "GLOBAL":
            stack.append(Global(str(argument)))
        elif name == "STACK_GLOBAL":
            qualified, module = stack.pop(), stack.pop()
            if not isinstance(module, str) or not isinstance(qualified, str):
                raise ValueError("the name of a global is not text")
            stack.append(Global(f"{module[:200]} {qualified[:200]}"))
        elif name in ("REDUCE", "NEWOBJ"):
            args, function = stack.pop(), stack.pop()
            stack.append(built(function, args))
        elif name == "NEWOBJ_EX":
            _, args, function = stack.pop(), stack.pop(), stack.pop()
            stack.append(Placeholder(function, args))
        elif name == "BUILD":
            state = stack.pop()
            if isinstance(stack[-1], Placeholder):
                stack[-1].state = state
        elif name in ("INST", "OBJ"):
            items = marked()
            stack.append(
                Placeholder(Global(str(argument)), tuple(items)) if name == "INST" else Placeholder(*items[:1])
            )
        elif name in ("BINPERSID", "PERSID"):
            stack.append(persistent(stack.pop() if name == "BINPERSID" else argument))
        elif name == "POP":
            if stack:
                stack.pop()
            else:
                marked()
        elif name == "POP_MARK":
            marked()
        elif name == "DUP":
            stack.append(stack[-1])
        elif name == "STOP":
            return stack.pop()
        elif name not in ("PROTO", "FRAME"):
            raise ValueError(f"the operation {name} is not supported")
    raise ValueError("the pickle does not end")


def _key(value: Any) -> Any:
    return value if type(value) in _KEYS else Placeholder(None)


def _dict_of(items: list[Any]) -> dict[Any, Any]:
    return {_key(key): value for key, value in zip(items[::2], items[1::2], strict=True)}


def _pairs(args: Any, budget: Budget) -> dict[Any, Any]:
    """Return the dict that a class of dicts makes of its arguments: nothing, a default, or a list of pairs."""
    pairs = args[0] if isinstance(args, tuple) and args else ()
    pairs = pairs.items() if isinstance(pairs, dict) else pairs if isinstance(pairs, list | tuple) else ()
    budget.spend(len(pairs))
    return {_key(pair[0]): pair[1] for pair in pairs if isinstance(pair, list | tuple) and len(pair) == 2}


def _add(target: Any, items: list[Any], pairs: bool) -> None:
    """Add `items` to a list, or keys and values in turn to a dict; sets and list subclasses lose them."""
    if pairs:
        target = target.items if isinstance(target, Placeholder) else target
        if isinstance(target, dict):
            target.update(_dict_of(items))
    elif isinstance(target, list):
        target.extend(items)
