"""Real English that every Python ships: the language reference behind the ``help()`` prompt."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pydoc_data.topics import topics

import torch
from torch import Tensor

UNKNOWN = "<unk>"
END = "<end>"  # closes a paragraph

_TOKEN = re.compile(r"[\w.]*\w(?:['\u2019-]\w+)*|[.,;:?!()]")
_PLAIN_WORD = re.compile(r"[a-z'\u2019-]+")
_SYMBOL = re.compile(r"[^\w\s.,;:'\"()\u201c\u201d*\u2019-]")
_BLOCK = 12  # paragraphs held out together, so that validation text is read in its context


@dataclass(frozen=True)
class Corpus:
    """Word ids of the two splits, and the vocabulary of the training split."""

    words: list[str]
    train: Tensor  # (tokens,)
    validation: Tensor  # (tokens,)

    @property
    def unknown(self) -> int:
        return self.words.index(UNKNOWN)

    @property
    def end(self) -> int:
        return self.words.index(END)


def paragraphs() -> Iterator[list[str]]:
    """Yield each prose paragraph as words: no grammar rules, no code, no paragraph twice."""
    seen = set()
    for topic in sorted(topics):
        for text in re.split(r"\n\s*\n", topics[topic]):
            text = " ".join(text.split()).lower()
            words = _TOKEN.findall(text)
            plain = sum(bool(_PLAIN_WORD.fullmatch(word)) for word in words)
            code = "::=" in text or ">>>" in text or len(_SYMBOL.findall(text)) > 0.1 * len(words)
            if plain >= 6 and plain > 0.68 * len(words) and not code and text not in seen:
                seen.add(text)
                yield [*words, END]


def load(min_count: int = 2) -> Corpus:
    """Split the text nine to one; words rarer than `min_count` in training become ``<unk>``."""
    splits: tuple[list[str], list[str]] = ([], [])
    for index, words in enumerate(paragraphs()):
        splits[index // _BLOCK % 10 == 5].extend(words)
    counts = Counter(splits[0])
    words = [UNKNOWN] + [word for word, count in counts.most_common() if count >= min_count]
    ids = {word: index for index, word in enumerate(words)}
    train, validation = (torch.tensor([ids.get(word, 0) for word in split]) for split in splits)
    return Corpus(words, train, validation)


def columns(tokens: Tensor, batch: int) -> Tensor:
    """Cut one long text into `batch` texts side by side: (tokens,) to (tokens // batch, batch)."""
    steps = tokens.numel() // batch
    return tokens[: steps * batch].view(batch, steps).t().contiguous()


def readable(words: list[str]) -> str:
    """Join words to a text with the usual spaces around punctuation."""
    text = " ".join(words).replace(END, "¶")
    text = re.sub(r" ([.,;:?!)])", r"\1", text)
    return re.sub(r"\( ", "(", text)
