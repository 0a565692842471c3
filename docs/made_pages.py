"""Parts of pages that have their home elsewhere: files of the root, figures of committed runs.

A page that is named in ``_FILES`` is that file. In any page a comment ``<!-- made: NAME -->`` makes
room for what ``_PARTS[NAME]`` returns: tables and pictures of the files in benchmarks/results/.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sphinx.application import Sphinx

from benchmarks import growth, growth_plot, plots, tables

_ROOT = Path(__file__).parents[1]
_PICTURES = _ROOT / "build" / "docs-pictures"
_NOTHING = "No result of this kind has been committed yet."
_FILES = {
    "contributing": _ROOT / "CONTRIBUTING.md",
    "changelog": _ROOT / "CHANGELOG.md",
    "measuring": _ROOT / "benchmarks" / "results" / "README.md",
}


def _summaries() -> list[str]:
    lines = []
    for name, run in tables.full_runs().items():
        picture = _PICTURES / f"{Path(name).stem}.svg"
        plots.plot(run, picture)
        lines += [f"## {Path(name).stem}", "", tables.machine(vars(run)) + ".", ""]
        lines += [*tables.summary(run), "", *_picture(picture.name)]
        wrong = tables.wrong(run)
        if len(wrong) > 2:
            lines += [f"### Where torch.nn computes something wrong ({len(wrong) - 2})", "", *wrong]
            lines += ["", "Its time is that of the wrong result.", ""]
        slower = tables.losses(run)
        lines += [f"### Where it is slower ({len(slower) - 2})", "", *slower, ""]
        lines += [f"Everything, with spreads: [the JSON](../benchmarks/results/{name}).", ""]
    return lines


def _picture(name: str, shows: str = "times faster than torch.nn, case by case") -> list[str]:
    """Return a picture that leads to itself, as large as one likes."""
    return [
        f"```{{image}} ../build/docs-pictures/{name}",
        f":alt: {shows}",
        f":target: _images/{name}",
        "```",
        "",
    ]


def _cases() -> list[str]:
    lines = []
    for name, run in tables.full_runs().items():
        lines += [f"## {Path(name).stem}", "", *tables.cases(run)]
    return lines


def _options() -> list[str]:
    return _documents(tables.option_runs(), tables.options)


def _samples() -> list[str]:
    return _documents(tables.sample_runs(), tables.samples)


def _growth() -> list[str]:
    lines = []
    for name, document in tables.growth_runs().items():
        picture = _PICTURES / f"{Path(name).stem}.svg"
        growth_plot.plot(growth.read(document), document, picture)
        lines += [f"## {Path(name).stem}", "", *_picture(picture.name, "GFLOP/s along each size")]
        lines += _documents({name: document}, tables.growth)
    return lines or [_NOTHING]


def _documents(
    runs: dict[str, dict[str, Any]], table: Callable[[dict[str, Any]], list[str]]
) -> list[str]:
    lines = []
    for name, document in runs.items():
        lines += [tables.machine(document) + f" ([the JSON](../benchmarks/results/{name})):", ""]
        lines += table(document)
    return lines or [_NOTHING]


_PARTS: dict[str, Callable[[], list[str]]] = {
    "summaries": _summaries,
    "cases": _cases,
    "options": _options,
    "samples": _samples,
    "growth": _growth,
}


def _file(path: Path) -> str:
    """Return a file's text, its links as they are seen from docs/; a folder is no link there."""

    def seen_from_docs(match: re.Match[str]) -> str:
        text, target, anchor = match.groups(default="")
        there = (path.parent / target).resolve()
        pages = {of: f"{page}.md" for page, of in _FILES.items()}
        if there.is_dir():
            return text
        if there in pages:
            return f"[{text}]({pages[there]}{anchor})"
        if there.is_relative_to(_ROOT / "docs"):
            return f"[{text}]({there.relative_to(_ROOT / 'docs')}{anchor})"
        if not there.exists():
            return match[0]
        return f"{{download}}`{text.strip('`')} <../{there.relative_to(_ROOT)}>`"

    return re.sub(r"\[([^\]]+)\]\(([^)#:\s]+)(#[^)\s]*)?\)", seen_from_docs, path.read_text())


def _read(app: Sphinx, page: str, source: list[str]) -> None:
    """Replace a page, or its comments, by what is made."""
    path = _FILES.get(page)
    if path is not None and path.exists():
        source[0] = _file(path)
        app.env.note_dependency(str(path))
    for name, make in _PARTS.items():
        comment = f"<!-- made: {name} -->"
        if comment in source[0]:
            source[0] = source[0].replace(comment, "\n".join(make()))


def setup(app: Sphinx) -> dict[str, bool]:
    """Have every page read through :func:`_read`."""
    app.connect("source-read", _read)
    return {"parallel_read_safe": False, "parallel_write_safe": True}
