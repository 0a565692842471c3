"""What editors and type checkers see of a function, where another one runs."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from inspect import signature
from types import CellType, FunctionType
from typing import Any, ParamSpec, TypeVar, cast

__all__ = ["constructor", "like"]

Parameters = ParamSpec("Parameters")
Method = TypeVar("Method", bound=Callable[..., Any])


def like(method: Method) -> Callable[[Callable[..., Any]], Method]:
    """Have type checkers take a function for one like ``method``, overloads included."""
    return lambda function: cast("Method", function)


def constructor(
    torchs: Callable[..., None], base: type
) -> Callable[[Callable[Parameters, None]], Callable[Parameters, None]]:
    """Run the constructor of a torch.nn layer where another one is declared.

    The declared one is what editors, type checkers and :func:`inspect.signature` see, and its body
    is not used. What runs is torch.nn's, with the arguments as they come, so that all that is wrong
    with them is said in its words. ``device`` and ``dtype`` may stand where they are declared to:
    torch.nn's GRU and RNN take what stands there for the size of a projection.

    Args:
        base: the class after which torch.nn's constructor goes on, with ``super()``
    """
    # A function that says super() remembers the class it was written in, and works in no other.
    run = FunctionType(
        torchs.__code__,
        torchs.__globals__,
        torchs.__name__,
        torchs.__defaults__,
        (CellType(base),),
    )

    def decorate(declared: Callable[Parameters, None]) -> Callable[Parameters, None]:
        names = list(signature(declared).parameters)[1:]  # without self
        device = len(names) if "proj_size" in names else names.index("device")

        @wraps(declared)
        def construct(self: Any, *args: Any, **kwargs: Any) -> None:
            if len(args) > device:
                declared(self, *args, **kwargs)  # for Python's own error if they do not fit
                kwargs |= dict(zip(names[device:], args[device:], strict=False))
                args = args[:device]
            run(self, *args, **kwargs)

        return cast("Callable[Parameters, None]", construct)

    return decorate
