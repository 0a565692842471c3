"""Why ``isinstance(layer, torch.nn.LSTM)`` holds for a layer that does not descend from it.

TorchDynamo refuses every instance of torch.nn.LSTM, GRU and RNN, so that the layers descend from
torch.nn.RNNBase. But isinstance() also asks an object for its ``__class__``, and there a layer
answers with a proxy class, which descends from the layer's own class and from torch.nn's. There is
never an object of it: who calls it, derives from it or assigns to it does so with the layer's own
class. That is what parametrizations, FSDP2 and replicate do with a module's ``__class__``.
"""

from __future__ import annotations

import copyreg
import inspect
import sys
from functools import cache
from typing import TYPE_CHECKING, Any, ClassVar, SupportsIndex

from torch import nn

__all__ = ["Proxied", "rebuild"]

_PROXY = "_fused_rnn_proxy"  # where a class keeps its proxy, which is to live no longer than it


class _Silent:
    """What a proxy inherits from first: the class it stands for is not to hear of a subclass."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        pass


class _ProxyType(type):
    """The type of the proxies."""

    _own: type

    def __new__(
        mcls, name: str, bases: tuple[type, ...], namespace: dict[str, Any], **kwargs: Any
    ) -> Any:
        """Make the class that somebody derives from a proxy."""
        # Python would find ours, who calls type() here.
        namespace.setdefault("__module__", sys._getframe(1).f_globals.get("__name__"))
        return type(name, tuple(map(own_class, bases)), namespace, **kwargs)

    def __call__(cls, *args: Any, **kwargs: Any) -> Any:
        return cls._own(*args, **kwargs)

    def __setattr__(cls, name: str, value: Any) -> None:
        setattr(cls._own, name, value)

    def __delattr__(cls, name: str) -> None:
        delattr(cls._own, name)

    @property
    def __bases__(cls) -> tuple[type, ...]:  # type: ignore[override]
        # Where parametrizations end, the first of them is what the class was before.
        return *cls._own.__bases__, cls._own._torch  # type: ignore[attr-defined]

    @property
    def __signature__(cls) -> inspect.Signature:
        return inspect.signature(cls._own)

    def __instancecheck__(cls, instance: Any) -> bool:
        return isinstance(instance, cls._own)

    def __subclasscheck__(cls, subclass: type) -> bool:
        # Not issubclass(): an abc asks all classes that descend from it, this one among them.
        return type.__subclasscheck__(cls._own, subclass)

    def __eq__(cls, other: object) -> bool:
        return isinstance(other, type) and cls._own is own_class(other)

    def __hash__(cls) -> int:
        return hash(cls._own)


def own_class(cls: type) -> type:
    """Return the class that a proxy stands for; any other class as it is."""
    return cls._own if isinstance(cls, _ProxyType) else cls


def _make_proxy(own: type, torchs: type) -> Any:
    names = {name: getattr(own, name) for name in ("__module__", "__qualname__", "__doc__")}
    bases = _Silent, own, torchs
    # Not by a metaclass of the user's, which might take note of it.
    return type.__new__(_type_of_proxies(type(own)), own.__name__, bases, {**names, "_own": own})


@cache
def _type_of_proxies(metaclass: type[type]) -> type[type]:
    """Return the type of proxies of the classes that are of the type ``metaclass``."""
    made: Any = _ProxyType
    if metaclass is not type:
        made = type(_ProxyType.__name__, (_ProxyType, metaclass), {})
    copyreg.pickle(made, _reduce)  # a proxy cannot be found by its name, which is that of the class
    return made


def _reduce(proxy: _ProxyType) -> tuple[Any, ...]:
    return own_class, (proxy._own,)


class Proxied(nn.Module):
    """A module that passes for an instance of ``_torch``, from which it does not descend."""

    _torch: ClassVar[type[nn.Module]]

    if not TYPE_CHECKING:  # to which the constructor is what there is

        def __new__(cls, *args: Any, **kwargs: Any) -> Any:
            """Make a module of its own class: of a proxy there is none."""
            new, own = super().__new__, own_class(cls)
            return new(own) if new is object.__new__ else new(own, *args, **kwargs)

        @property
        def __class__(self) -> type:
            own = type(self)
            # It has been assigned while the module was of a class that knows no proxies.
            if isinstance(own, _ProxyType):
                own = own_class(own)
                object.__dict__["__class__"].__set__(self, own)
            # Dynamo refuses by isinstance too, but by another function than the one that answers
            # the isinstance() of a program that is traced.
            caller = sys._getframe(1)
            dynamo = caller.f_globals.get("__name__", "").startswith("torch._dynamo.variables.")
            if dynamo and not caller.f_code.co_name.endswith("isinstance"):
                return own
            proxy = vars(own).get(_PROXY)
            # It may be copied from another class, or have been pickled along with a class by value.
            if not isinstance(proxy, _ProxyType) or proxy._own is not own:
                proxy = _make_proxy(own, own._torch)
                type.__setattr__(own, _PROXY, proxy)
            return proxy

        @__class__.setter
        def __class__(self, cls: type) -> None:
            object.__dict__["__class__"].__set__(self, own_class(cls))

    def __reduce_ex__(self, protocol: SupportsIndex) -> Any:
        """Do as any object does, by a function that does not compare with ``__class__``."""
        reduced = super().__reduce_ex__(max(protocol.__index__(), 2))
        if isinstance(reduced, tuple) and getattr(reduced[0], "__name__", None) == "__newobj__":
            return rebuild, *reduced[1:]
        return reduced


def rebuild(cls: type[nn.Module], *args: Any) -> nn.Module:
    """Make a module for unpickling, without a constructor."""
    return cls.__new__(cls, *args)
