"""Variants of the cells as layers have them: options, parameters, and what torch.nn lacks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from torch import Tensor, nn

from fused_rnn.backends import transforms
from fused_rnn.scans.noise import masks_for
from fused_rnn.variants import Variant, extra_sizes, from_options, variant_of
from fused_rnn.variants.names import SIGMOID

__all__ = ["OPTIONS", "PARAMETERS", "MaybeVaried", "Varied"]

# Those that name a variant, with what they are where they are off.
OPTIONS: dict[str, Any] = {
    "recurrent_dropout": 0.0,
    "zoneout": 0.0,
    "layer_norm": False,
    "norm_eps": 1e-5,
    "reset_after": True,
    "recurrent_activation": "sigmoid",
    "activation": "tanh",
    "use_peepholes": False,
    "input_forget": False,
    "cell_clip": None,
    "proj_clip": None,
    "num_heads": 1,
}
# How the names of the parameters begin that torch.nn has not.
PARAMETERS = "ln_", "peephole_"


class MaybeVaried(nn.Module):
    """What layers and cells that may be variants of themselves have in common."""

    # The variant's name in training mode, and in eval mode; on the class, as most have no options.
    _variants: tuple[str, str] | None = None

    def _name(self, variant: Variant) -> None:
        self._variants = variant.name(), variant._replace(recurrent_dropout=0.0).name()

    def _variant(self) -> Variant | None:
        return None if self._variants is None else variant_of(self._variants[0])

    def _lacking(self) -> str:
        """Return the options that torch.nn has not, in words: "layer_norm and no zoneout"."""
        variant = self._variant()
        return " and no ".join(() if variant is None else variant.changed)

    def reset_parameters(self) -> None:
        """Draw the weights anew; norms begin with gains of one and biases of zero."""
        super().reset_parameters()  # type: ignore[misc]
        for name, parameter in self._parameters.items():
            if name.startswith("ln_") and parameter is not None:
                nn.init.constant_(parameter, 0.0 if name.startswith("ln_c_bias") else 1.0)

    def extra_repr(self) -> str:
        """Return torch.nn's, and the options that make a variant."""
        variant = self._variant()
        options = {} if variant is None else _as_given(variant)
        return super().extra_repr() + "".join(f", {k}={v!r}" for k, v in options.items())

    def _mask_expected(self) -> bool:
        """Return whether a single step has to be given a mask: it knows of no sequence."""
        variant = self._variant()
        return self.training and variant is not None and variant.recurrent_dropout > 0


class Varied(MaybeVaried, nn.RNNBase):
    """The part of LSTM, GRU and RNN that makes them variants of themselves."""

    _torch: ClassVar[type[nn.RNNBase]]

    if TYPE_CHECKING:
        nonlinearity: Any

    def _vary(self, options: dict[str, Any]) -> None:
        """Become the variant that these options make, with parameters of its own."""
        cell = self.mode.lower()
        variant = from_options(
            self._torch.__name__, cell, self.hidden_size, self.proj_size, **options
        )
        if not variant.changed:
            return
        self._name(variant)
        made = [self._vary_row(variant, k, names) for k, names in enumerate(self._all_weights)]
        self._flat_weights_names = [name for names in self._all_weights for name in names]
        self._init_flat_weights()
        if any(made):  # else the weights for a seed are the plain layer's
            self.reset_parameters()

    def _vary_row(self, variant: Variant, k: int, names: list[str]) -> bool:
        """Make the parameters that are a variant's own or of other shape; return if any are."""
        layer, reverse = divmod(k, 2 if self.bidirectional else 1)
        size, heads = self.hidden_size, variant.num_heads
        rows, width = variant.gates * size, self.proj_size or size
        anew: dict[str, tuple[int, ...]] = {
            f"{name}_l{layer}{'_reverse' if reverse else ''}": (times * size,)
            for name, times in extra_sizes(variant).items()
        }
        names += anew
        if heads > 1:
            anew[names[1]] = heads, rows // heads, width // heads
        elif variant.input_forget:
            anew[names[1]] = rows, width
        if variant.input_forget:
            anew[names[0]] = rows, self._parameters[names[0]].shape[1]
            anew |= dict.fromkeys(names[2:4] if self.bias else (), (rows,))
        like: Tensor = self._parameters[names[0]]  # type: ignore[assignment]
        for name, shape in anew.items():
            self.register_parameter(name, nn.Parameter(like.new_empty(shape)))
        return bool(anew)

    def _cell_name(self) -> str:
        """Return what the layers' scans are of: a plain cell's name, or a variant's."""
        if self._variants is None:
            return self.mode.lower()
        return self._variants[0 if self.training else 1]

    def recurrent_mask(self, n: int) -> Tensor | None:
        r"""Draw the mask of ``recurrent_dropout`` that :meth:`step` takes, one for all steps.

        Args:
            n: how many sequences

        Returns:
            zeros and ones of shape :math:`(\text{num\_layers}, N, H_{out})`, in the weights' dtype
            and on their device; ``None`` in eval mode, or without ``recurrent_dropout``

        Examples::

            >>> rnn = fused_rnn.GRU(10, 20, recurrent_dropout=0.25)
            >>> state, mask = None, rnn.recurrent_mask(3)
            >>> for x in torch.randn(5, 3, 10):
            ...     output, state = rnn.step(x, state, mask=mask)
        """
        variant = self._variant()
        if variant is None or not self._mask_expected():
            return None
        like: Tensor = self._parameters[self._all_weights[0][0]]  # type: ignore[assignment]
        size = self.proj_size or self.hidden_size
        return masks_for(like, variant.recurrent_dropout, self.num_layers, n, size)

    def flatten_parameters(self) -> None:
        """Do as torch.nn's, which is for cuDNN: there is none for variants."""
        if self._variants is None:
            super().flatten_parameters()

    def _refuse_torch(self, input: Any, hx: Any, reason: str) -> None:
        """Raise where a variant cannot be left to torch.nn, in its words if it refuses too."""
        variant = variant_of(self._cell_name())
        if variant is None:
            return
        like: Any = self._parameters.get(self._all_weights[0][0], self._flat_weights[0])
        more = {"nonlinearity": self.nonlinearity} if self._torch is nn.RNN else {}
        if self.proj_size:
            more["proj_size"] = self.proj_size
        twin = self._torch(
            self.input_size, self.hidden_size, self.num_layers, bias=self.bias,
            batch_first=self.batch_first, bidirectional=self.bidirectional,
            device="meta", dtype=like.dtype, **more,
        )  # fmt: skip
        if not transforms.jit_traces():
            twin.to_empty(device=like.device)(input, hx)
        raise RuntimeError(
            f"{self._torch.__name__}: {reason}, and torch.nn's own forward, which runs such calls, "
            f"has no {self._lacking()}"
        )


def _as_given(variant: Variant) -> dict[str, Any]:
    """Return the options that are on, as a user would write them."""
    given: dict[str, Any] = {}
    for name in variant.changed:
        value = getattr(variant, name)
        if name == "zoneout":
            value = value[0] if value[0] == value[1] or variant.cell != "lstm" else value
        elif name == "recurrent_activation" and value != SIGMOID:
            value = "hard_sigmoid" if value[1:] == (1 / 6, 0.5) else value
        given[name] = True if name == "layer_norm" else value
        if name == "layer_norm" and variant.layer_norm != OPTIONS["norm_eps"]:
            given["norm_eps"] = variant.layer_norm
    return given
