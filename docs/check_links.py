"""Check a built site: every link within it leads somewhere, and what leads out is named.

python docs/check_links.py build/docs
"""

from __future__ import annotations

import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit


class _Page(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.anchors: set[str] = set()
        self.links: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        self.anchors |= {value for name in ("id", "name") if (value := found.get(name))}
        for name in ("href", "src"):
            link = found.get(name)
            if link is not None and not link.startswith("data:"):
                self.links.append(link)


def _anchors(page: _Page | None) -> set[str]:
    return page.anchors if page else set()


def check(site: Path) -> tuple[list[str], set[str]]:
    """Return what is wrong with a site's links, and those that lead out of it."""
    pages = {path: _Page(path.read_text()) for path in sorted(site.rglob("*.html"))}
    wrong, outside = [], set()
    for path, page in pages.items():
        for link in page.links:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                outside.add(link)
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            if target.is_dir():
                target /= "index.html"
            name = f"{path.relative_to(site)}: {link}"
            if not target.exists():
                wrong.append(f"{name}: no such file")
            elif parts.fragment and unquote(parts.fragment) not in _anchors(pages.get(target)):
                wrong.append(f"{name}: no such anchor")
    return wrong, outside


def main() -> int:
    """Print the findings; return the exit status, 0 if no link is broken."""
    wrong, outside = check(Path(sys.argv[1]).resolve())
    print("\n".join([*wrong, *(f"leads out, not checked: {link}" for link in sorted(outside))]))
    print(f"{len(wrong)} broken links")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
