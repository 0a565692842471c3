"""Every example in the documentation runs: the code of README.md and docs/, the docstrings'."""

import doctest
import re
from functools import partial
from importlib import import_module, util
from pathlib import Path

import pytest
import torch

import fused_rnn
from benchmarks import tables
from fused_rnn import backends
from fused_rnn.backends import tuned
from fused_rnn.backends.measured import Table

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
PAGES = {
    path.relative_to(ROOT).as_posix(): path.read_text()
    for path in [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]
}
# A block of Python, and what it prints where a block of text comes right after it.
BLOCK = re.compile(
    r"^```python\n(.*?)^```$(?:\n\n(?:It prints:\n\n)?^```text\n(.*?)^```$)?",
    re.DOTALL | re.MULTILINE,
)
CODE = {name: blocks for name, text in PAGES.items() if (blocks := BLOCK.findall(text))}
MODULES = [
    "modules", "layers.beyond", "layers.step", "functional", "backends", "convert", "explain",
    "tune",
]  # fmt: skip
NEEDED = {"docs/graphs.md": "onnxscript"}


def test_there_are_blocks():
    assert set(CODE) >= {"README.md", "docs/start.md", "docs/swapping.md", "docs/beyond.md"}
    assert sum(map(len, CODE.values())) == sum(t.count("```python\n") for t in PAGES.values())


@pytest.fixture
def _nothing_measured(monkeypatch):
    """What a page measures is not to choose for other tests."""
    monkeypatch.setattr(tuned, "_measured", Table())
    yield
    monkeypatch.undo()
    backends._forget()


@pytest.mark.usefixtures("_nothing_measured")
@pytest.mark.parametrize("page", CODE)
def test_code_of_a_page(page, monkeypatch, tmp_path, capsys):
    """From top to bottom, as a reader types it."""
    needed = NEEDED.get(page)
    if needed is not None and util.find_spec(needed) is None:
        pytest.skip(f"{needed} is not installed")
    monkeypatch.chdir(tmp_path)  # some write files
    # What inductor makes of a layer, tests/graph/ asks; it takes half a minute.
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))
    names = {"__name__": "__main__"}
    for code, printed in CODE[page]:
        capsys.readouterr()
        exec(compile(code, page, "exec"), names)
        if printed:
            assert capsys.readouterr().out == printed


@pytest.mark.parametrize("name", MODULES)
def test_docstrings(name: str):
    module = import_module(f"fused_rnn.{name}")
    names = {"fused_rnn": fused_rnn, "torch": torch, "nn": torch.nn}
    result = doctest.testmod(module, extraglobs=names)
    assert result.attempted > 0
    assert result.failed == 0


def test_make_targets_that_are_named_exist():
    commands = re.findall(r"(?:^    |`)make ([^`#\n]+)", "\n".join(PAGES.values()), re.MULTILINE)
    named = {word for c in commands for word in c.split() if re.fullmatch(r"[a-z-]+", word)}
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert named >= {"demo", "test", "bench", "docs"}
    assert named <= targets


def links(text: str) -> list[str]:
    """Return the links of a page that stay in the project, without their anchors."""
    found = re.findall(r"\]\(([^)#:\s]+)(?:#[^)]*)?\)|{download}`[^`<]*<([^>]+)>`", text)
    return [link or download for link, download in found]


@pytest.mark.parametrize("page", PAGES)
def test_files_that_a_page_names_exist(page):
    folder = (ROOT / page).parent
    made = "../build/"
    missing = [link for link in links(PAGES[page]) if not (folder / link).exists()]
    assert [link for link in missing if not link.startswith(made)] == []


def test_every_page_is_in_the_contents():
    contents = "\n".join(re.findall(r"```{toctree}\n(.*?)```", PAGES["docs/index.md"], re.DOTALL))
    pages = {path.relative_to(ROOT / "docs").with_suffix("").as_posix()
             for path in (ROOT / "docs").rglob("*.md")}  # fmt: skip
    assert pages - {"index"} == set(re.findall(r"^(?:.* <)?([\w/]+)>?$", contents, re.MULTILINE))


def test_figures_of_the_readme_are_those_of_the_newest_run():
    run = next(run for run in tables.full_runs().values() if "gpu" not in run.machine)
    shown = [line for line in README.splitlines() if re.search(r"\d+\.\d+x", line)]
    assert len(shown) == 4
    assert set(shown) <= set(tables.summary(run))
    assert run.machine["cpu"] in README
    assert f"{['', 'one', 'two'][run.settings['threads']]} cores" in README


def test_the_readme_is_short():
    assert len(README.split()) <= 900


@pytest.mark.parametrize("page", [name for name in PAGES if name.startswith("docs/")])
def test_no_speed_is_typed_in(page):
    """Figures are made from the result files."""
    assert re.findall(r"\d(?:\.\d+)?x\b|\d times faster", PAGES[page]) == []


def from_docs(name: str):
    """Import a file of docs/, which is no package."""
    spec = util.spec_from_file_location(name, ROOT / "docs" / f"{name}.py")
    module = util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_check_of_links_finds_what_is_broken(tmp_path):
    (tmp_path / "inside").mkdir()
    (tmp_path / "index.html").write_text(
        "<h1 id='top'><a href='#top'></a><a href='#bottom'></a><a href='inside/page.html#here'></a>"
        "<a href='inside/page.html#there'></a><img src='picture.png'><a href='https://far.away'></a>"
    )
    (tmp_path / "inside" / "page.html").write_text("<p id='here'><a href='../index.html#top'></a>")
    wrong, outside = from_docs("check_links").check(tmp_path)
    assert wrong == [
        "index.html: #bottom: no such anchor",
        "index.html: inside/page.html#there: no such anchor",
        "index.html: picture.png: no such file",
    ]
    assert outside == {"https://far.away"}


def test_links_of_a_file_of_the_root_are_those_of_its_page():
    pytest.importorskip("sphinx", reason="sphinx is not installed: make docs installs it")
    made = from_docs("made_pages")
    readme = made._file(ROOT / "README.md")
    assert "[install](install.md)" in readme
    assert "[the result files](measuring.md)" in readme
    assert "(docs/" not in readme


@pytest.mark.parametrize("part", ["summaries", "cases", "options", "samples", "growth"])
def test_tables_and_pictures_are_made(part, tmp_path, monkeypatch):
    pytest.importorskip("sphinx", reason="sphinx is not installed: make docs installs it")
    pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    made = from_docs("made_pages")
    monkeypatch.setattr(made, "_PICTURES", tmp_path)
    text = "\n".join(made._PARTS[part]())
    runs = {
        "options": tables.option_runs,
        "samples": tables.sample_runs,
        "growth": tables.growth_runs,
    }.get(part, tables.full_runs)()
    assert all(Path(name).stem in text for name in runs)
    assert runs or "No result of this kind" in text
    drawn = runs if part in ("summaries", "growth") else ()
    assert {path.stem for path in tmp_path.iterdir()} == {Path(name).stem for name in drawn}
