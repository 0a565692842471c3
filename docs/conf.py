"""How the documentation site is built; `make docs` does it."""

from __future__ import annotations

import sys
from pathlib import Path

# The project, and what lies beside this file.
sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parent)]

import fused_rnn  # noqa: E402

project = "fused_rnn"
author = "The fused_rnn authors"
release = version = fused_rnn.__version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "made_pages",
    "mathml",
]
html_math_renderer = "mathml"
myst_heading_anchors = 3
exclude_patterns = ["**/README.md"]

html_theme = "furo"
html_title = f"fused_rnn {release}"
html_static_path = ["static"]
html_css_files = ["site.css"]
html_copy_source = html_show_sourcelink = html_show_copyright = False

autodoc_member_order = "bysource"
autodoc_class_signature = "mixed"
autodoc_typehints_format = "short"
# What torch.nn's modules bring along is documented there.
autodoc_default_options = {"inherited-members": False}
napoleon_use_ivar = True
napoleon_use_rtype = False

# Names of other projects, which are not looked up: a build needs no network. A parameter is
# no attribute.
nitpick_ignore_regex = [
    ("py:.*", r"(torch|nn|collections|typing|contextlib|types|os)(\..*)?"),
    ("py:.*", r"(Any|Callable|Sequence|Iterator|Tensor|Module|PackedSequence|Protocol|NamedTuple)"),
    ("py:.*", "PathLike"),
    ("py:.*", r"(fused_rnn\.(convert|quantize)\.)?(Row|Report|Model|TracebackType|Self|optional)"),
    ("py:attr", r"(model|module)"),
    ("py:class", r"fused_rnn\.layers\.(step\.State|beyond\.PackedStates)"),  # type variables
    ("py:class", r"fused_rnn\.backends\.base\.VariantInputs"),
]
