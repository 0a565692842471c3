"""Formulas as MathML, which browsers show by themselves: no script is fetched for it."""

from __future__ import annotations

import re
from typing import Any

from docutils import nodes
from docutils.utils.math.latex2mathml import tex2mathml
from sphinx.application import Sphinx


def _mathml(node: nodes.Element, block: bool = False) -> str:
    # Within \text an underscore is one, escaped or not; docutils would show the backslash.
    source = re.sub(r"\\text\{[^}]*\}", lambda text: text[0].replace("\\_", "_"), node.astext())
    return tex2mathml(source, as_block=block)


def _inline(translator: Any, node: nodes.math) -> None:
    translator.body.append(_mathml(node))
    raise nodes.SkipNode


def _block(translator: Any, node: nodes.math_block) -> None:
    translator.body.append(f"<p>{_mathml(node, block=True)}</p>")
    raise nodes.SkipNode


def setup(app: Sphinx) -> dict[str, bool]:
    """Register the renderer."""
    app.add_html_math_renderer("mathml", (_inline, None), (_block, None))
    return {"parallel_read_safe": True, "parallel_write_safe": True}
