"""A word-level language model on plain ``torch.nn``: nothing here knows of fused_rnn."""

from __future__ import annotations

import torch
from torch import Tensor, nn

CELLS = {"lstm": nn.LSTM, "gru": nn.GRU, "rnn": nn.RNN}

State = Tensor | tuple[Tensor, Tensor] | None


class LanguageModel(nn.Module):
    """Embedding, recurrent layers, and a decoder that shares the embedding's weight."""

    def __init__(
        self, cell: str, words: int, embedding: int, hidden: int, layers: int, dropout: float
    ) -> None:
        super().__init__()
        self.dropout = nn.Dropout(dropout)
        self.embedding = nn.Embedding(words, embedding)
        between = dropout if layers > 1 else 0.0
        self.rnn = CELLS[cell](embedding, hidden, layers, dropout=between)
        self.narrow = nn.Linear(hidden, embedding, bias=False)
        self.decoder = nn.Linear(embedding, words)
        nn.init.uniform_(self.embedding.weight, -0.1, 0.1)
        nn.init.zeros_(self.decoder.bias)
        self.decoder.weight = self.embedding.weight

    def forward(self, words: Tensor, state: State = None) -> tuple[Tensor, State]:
        """Score the next word: (T, N) ids to (T, N, words) logits, and the state after them."""
        features, state = self.rnn(self.dropout(self.embedding(words)), state)
        return self.decoder(self.narrow(self.dropout(features))), state


def detach(state: State) -> State:
    """Cut the graph, as truncated back-propagation through time does between two batches."""
    if isinstance(state, tuple):
        return state[0].detach(), state[1].detach()
    return None if state is None else state.detach()


@torch.no_grad()
def generate(
    model: LanguageModel,
    prompt: list[int],
    count: int,
    banned: int,
    seed: int,
    temperature: float = 0.8,
) -> list[int]:
    """Continue `prompt` by `count` words, one at a time, carrying the state; never `banned`."""
    model.eval()
    generator = torch.Generator().manual_seed(seed)
    words = list(prompt)
    logits, state = model(torch.tensor(words).view(-1, 1))
    for _ in range(count):
        scores = logits[-1, 0] / temperature
        scores[banned] = -torch.inf
        word = torch.multinomial(scores.softmax(0), 1, generator=generator)
        words.append(int(word))
        logits, state = model(word.view(1, 1), state)
    return words
