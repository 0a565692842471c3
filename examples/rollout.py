"""Train a policy with a memory on rollouts of many episodes, in one call instead of a loop.

Each episode shows a signal once, at its beginning, and asks for it at its end; episodes end after
random numbers of steps, and the next begins at once. The policy is an LSTM. While it acts, ``step``
runs it; when it learns from a rollout (T, N), ``resets`` tells the layer where episodes began, so
that one call replaces a loop over cells that multiplies the state with zeros where it must.

    python examples/rollout.py --out rollout.png
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

import fused_rnn

State = tuple[Tensor, Tensor]
_SIGNALS = 4


class Recall:
    """N copies of a task: say at the end of an episode what was shown at its beginning.

    What is seen: the signal in the first step, noise after it, and whether an answer is due.
    """

    def __init__(self, n: int, longest: int, seed: int) -> None:
        self._n, self._longest = n, longest
        self._random = torch.Generator().manual_seed(seed)
        self._left = torch.zeros(n, dtype=torch.int64)
        self._signal = torch.zeros(n, dtype=torch.int64)

    def observe(self) -> tuple[Tensor, Tensor]:
        """Return what is seen (N, signals + 1), and where an episode has just begun (N,)."""
        begins = self._left == 0
        drawn = torch.randint(4, self._longest + 1, (self._n,), generator=self._random)
        shown = torch.randint(_SIGNALS, (self._n,), generator=self._random)
        self._left = torch.where(begins, drawn, self._left)
        self._signal = torch.where(begins, shown, self._signal)
        noise = 0.1 * torch.randn(self._n, _SIGNALS, generator=self._random)
        signal = nn.functional.one_hot(self._signal, _SIGNALS) * begins.unsqueeze(1)
        due = (self._left == 1).unsqueeze(1)
        return torch.cat([signal + noise, due], 1), begins

    def act(self, actions: Tensor) -> Tensor:
        """Take actions (N,), return rewards (N,): 1 for a right answer where one was due."""
        due = self._left == 1
        self._left -= 1
        return ((actions == self._signal) & due).float()


class Rollout(NamedTuple):
    """What happened in T steps of N episodes after episodes."""

    seen: Tensor  # (T, N, signals + 1)
    resets: Tensor  # (T, N): an episode begins
    actions: Tensor  # (T, N)
    rewards: Tensor  # (T, N)
    state: State  # before the first step


class Policy(nn.Module):
    """Scores the actions, given what was seen since the episode began."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.rnn = fused_rnn.LSTM(_SIGNALS + 1, hidden)
        self.actor = nn.Linear(hidden, _SIGNALS)

    def forward(self, rollout: Rollout) -> Tensor:
        """Return scores (T, N, actions) of a whole rollout, in one call."""
        output, _ = self.rnn(rollout.seen, rollout.state, resets=rollout.resets)
        return self.actor(output)


@torch.no_grad()
def roll_out(policy: Policy, task: Recall, steps: int, state: State) -> tuple[Rollout, State]:
    """Act for some steps; the layer runs one of them at a time."""
    columns: list[list[Tensor]] = [[], [], [], []]
    first = state
    for _ in range(steps):
        seen, begins = task.observe()
        state = tuple(s.masked_fill(begins.view(1, -1, 1), 0) for s in state)
        output, state = policy.rnn.step(seen, state)
        actions = torch.distributions.Categorical(logits=policy.actor(output)).sample()
        for column, value in zip(columns, (seen, begins, actions, task.act(actions)), strict=True):
            column.append(value)
    return Rollout(*map(torch.stack, columns), first), state


def loss_of(scores: Tensor, rollout: Rollout) -> Tensor:
    """Return the loss whose gradient is REINFORCE's (Williams 1992), rewards less their mean.

    An action is rewarded in the step it is due, so that no reward needs to be carried back.
    """
    due = rollout.seen[..., -1].bool()
    advantage = rollout.rewards[due] - rollout.rewards[due].mean()
    policy = torch.distributions.Categorical(logits=scores[due])
    surprise = -policy.log_prob(rollout.actions[due])
    return (advantage * surprise).mean() - 0.01 * policy.entropy().mean()


def by_cells(policy: Policy, cell: nn.LSTMCell, rollout: Rollout) -> Tensor:
    """Return the scores of a rollout as one does without resets: a loop over torch.nn's cell."""
    h, c = (s[0] for s in rollout.state)
    keep = (~rollout.resets).float().unsqueeze(-1)
    outputs = []
    for seen, kept in zip(rollout.seen, keep, strict=True):
        h, c = cell(seen, (h * kept, c * kept))
        outputs.append(h)
    return policy.actor(torch.stack(outputs))


def compare(steps: int, n: int, hidden: int, rounds: int, seed: int) -> tuple[float, float]:
    """Return the seconds of an update in one call and by the loop, after comparing gradients."""
    policy, cell = Policy(hidden), nn.LSTMCell(_SIGNALS + 1, hidden)
    cell.load_state_dict(
        {name.removesuffix("_l0"): value for name, value in policy.rnn.state_dict().items()}
    )
    zeros = torch.zeros(1, n, hidden)
    rollout, _ = roll_out(policy, Recall(n, 12, seed), steps, (zeros, zeros))
    ways: list[tuple[Callable[[], Tensor], nn.Module]] = [
        (lambda: policy(rollout), policy.rnn),
        (lambda: by_cells(policy, cell, rollout), cell),
    ]

    def update(way: int) -> tuple[Tensor, ...]:
        scores, module = ways[way]
        return torch.autograd.grad(loss_of(scores(), rollout), list(module.parameters()))

    torch.testing.assert_close(update(0), update(1), rtol=1e-3, atol=1e-5)
    seconds: tuple[list[float], list[float]] = ([], [])
    for _ in range(rounds):
        for way, taken in enumerate(seconds):
            start = time.perf_counter()
            update(way)
            taken.append(time.perf_counter() - start)
    return statistics.median(seconds[0]), statistics.median(seconds[1])


def train(options: argparse.Namespace) -> list[float]:
    """Train a policy; return the share of right answers in each rollout."""
    policy, task = Policy(options.hidden), Recall(options.tasks, 12, options.seed)
    optimizer = torch.optim.Adam(policy.parameters(), lr=1e-2)
    zeros = torch.zeros(1, options.tasks, options.hidden)
    state, right = (zeros, zeros), []
    for update in range(1, options.updates + 1):
        rollout, state = roll_out(policy, task, options.steps, state)
        loss = loss_of(policy(rollout), rollout)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(policy.parameters(), 1.0)
        optimizer.step()
        right.append((rollout.rewards.sum() / rollout.seen[..., -1].sum()).item())
        if update % max(1, options.updates // 6) == 0:
            print(f"update {update}: {right[-1]:.0%} of the answers are right", flush=True)
    return right


def draw(right: Sequence[float], seconds: tuple[float, float], what: str, path: Path) -> None:
    """Draw the learning, and the time of an update on ``what``."""
    if find_spec("matplotlib") is None:
        print("matplotlib is not installed: no picture", file=sys.stderr)
        return
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4), layout="constrained")
    learning, speed = figure.subplots(1, 2, width_ratios=(3, 2))
    learning.plot(range(1, len(right) + 1), right, label="the policy")
    learning.axhline(1 / _SIGNALS, color="grey", linestyle=":", label="guessing")
    learning.set(
        title="The policy learns to remember the signal",
        xlabel="updates of the policy",
        ylabel="share of right answers",
        ylim=(0, 1.02),
    )
    learning.xaxis.get_major_locator().set_params(integer=True)
    learning.legend()
    ways = ["fused_rnn.LSTM,\none call with resets", "torch.nn.LSTMCell\nin a loop"]
    speed.bar_label(speed.bar(ways, [1e3 * s for s in seconds]), fmt="%.1f ms")
    speed.margins(y=0.1)
    speed.set_title(f"The loop takes {seconds[1] / seconds[0]:.1f} times as long")
    speed.set_xlabel(what)
    speed.set_ylabel("ms per update, median")
    figure.savefig(path)
    print(f"wrote {path}")


def main(arguments: Sequence[str] | None = None) -> tuple[list[float], tuple[float, float]]:
    """Train, then compare both ways to run an update; return what was drawn."""
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    sizes = {
        "updates": (120, "of the policy"),
        "hidden": (32, "size of the policy's layer"),
        "tasks": (32, "N, tasks side by side"),
        "steps": (64, "T, of a rollout"),
        "wide": (256, "size of the layer where speeds are compared"),
        "rounds": (7, "of the comparison"),
        "seed": (1, "of all that is random"),
    }
    for name, (default, text) in sizes.items():
        parser.add_argument(f"--{name}", type=int, default=default, help=text)
    parser.add_argument("--out", type=Path, default=Path("rollout.png"), help="the picture")
    options = parser.parse_args(arguments)

    torch.manual_seed(options.seed)
    right = train(options)
    steps, n = 2 * options.steps, 2 * options.tasks
    seconds = compare(steps, n, options.wide, options.rounds, options.seed)
    what = f"{steps} steps of {n} tasks, {options.wide} hidden units"
    print(f"an update (forward and backward) on {what}, median of {options.rounds} rounds:")
    print(f"  one call with resets  {1e3 * seconds[0]:8.1f} ms")
    print(f"  loop over LSTMCell    {1e3 * seconds[1]:8.1f} ms")
    print(f"  the loop takes {seconds[1] / seconds[0]:.1f} times as long as the call")
    draw(right, seconds, what, options.out)
    return right, seconds


if __name__ == "__main__":
    main()
