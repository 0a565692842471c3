"""What a run on a GPU says: a line for each case, the kernels, and a short table last."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from .bar import Verdict, geometric_mean, verdict_of
from .cases import KINDS
from .harness import CaseResult
from .kernels import KernelResult
from .peers import BASELINE, OURS
from .peers_cuda import ALTERNATING, CUDA_PEERS, LOOP, PERSISTENT, STEPWISE, TORCHRL, TRITON
from .report import Run
from .text import RED, Paint, bar_table, duration, ratio, skips

_OF_COPY = 0.85  # asked of the gate kernels where N * H is at least 2^20

_COLUMNS = (
    f"  {'case':<30}{'torch.nn':>10}{'+-':>5}{'fused_rnn':>11}{'+-':>5}{'us/step':>9}"
    f"{'speed-up':>10}{'vs loop':>9}{'vs alt.':>9}{'matmul':>8}{'memory':>8}"
    f"{'kept':>7}{'error':>9}{'torch.nn':>9}"
)
_LEGEND = f"""\
speed-up   torch.nn's median time (cuDNN) over fused_rnn's: above 1 is faster, "<" marks a loss
vs loop    the same over {LOOP}; vs alt.: over {ALTERNATING}
us/step    fused_rnn's time for one step of one layer and direction
matmul     fused_rnn's share of the measured matmul rate of the dtype
memory     fused_rnn's peak over torch.nn's; kept: likewise what forward keeps for backward
error      largest against float64, of the tensor's largest element: fused_rnn's, then torch.nn's"""


def judge_cuda(results: Sequence[CaseResult], kernels: Sequence[KernelResult]) -> list[Verdict]:
    """Return every row of the bar for a GPU, then the rows that are reported without one."""
    timed = [result for result in results if result.failure is None]

    def speed(title: str, over: str, worst: float | None = None, kinds: str = "") -> Verdict:
        chosen = [r for r in timed if not kinds or r.case.kind in kinds.split()]
        return verdict_of(title, chosen, lambda r: r.speedup(over), worst_bar=worst)

    rates = [k for k in kernels if k.copy_fraction is not None]
    worst = min(rates, key=lambda k: k.copy_fraction or 0.0, default=None)
    return [
        Verdict(
            "gate kernels, of the copy rate, N * H >= 2^20",
            len(rates),
            worst=None if worst is None else worst.copy_fraction,
            worst_bar=_OF_COPY,
            worst_case=None if worst is None else f"{worst.cell} {worst.dtype} {worst.kernel}",
            unit="%",
        ),
        speed(f"every case over {LOOP}", LOOP, 1.0),
        speed(f"every case over {ALTERNATING}", ALTERNATING, 1.0),
        verdict_of(
            f"{TRITON} over {TORCHRL}", timed, lambda r: r.speedup(TORCHRL, TRITON), worst_bar=1.0
        ),
        verdict_of(f"{STEPWISE} over {LOOP}", timed, lambda r: r.speedup(LOOP, STEPWISE)),
        verdict_of(f"{PERSISTENT} over torch.nn", timed, lambda r: r.speedup(BASELINE, PERSISTENT)),
        *(speed(f"{kind} over torch.nn", BASELINE, kinds=kind) for kind in KINDS),
    ]


def render_cuda(run: Run, colour: bool = False) -> str:
    """Return the report as text; the short table is its end."""
    paint = Paint(colour)
    lines = [*_heading(run), ""]
    for kind, title in KINDS.items():
        group = [result for result in run.ordered if result.case.kind == kind]
        if group:
            lines += [title, _COLUMNS, *(_row(r, run, paint) for r in group), ""]
    lines += [_LEGEND, "", *_kernels(run), "", *skips(run.results), ""]
    lines += [*bar_table(run.verdicts, paint), "", *_glance(run, paint)]
    return "\n".join(lines)


def _heading(run: Run) -> list[str]:
    gpu, packages = run.machine["gpu"], ", ".join(f"{k} {v}" for k, v in run.versions.items())
    lines = [
        f"{gpu['name']} ({gpu['capability']}, {gpu['multiprocessors']} multiprocessors), "
        f"CUDA {gpu['cuda']}, cuDNN {gpu['cudnn']}; {run.machine['cpu']}",
        f"{packages}; commit {run.commit or 'none'}",
    ]
    for moment, rates in run.rates.items():
        products = ", ".join(f"{k} {v / 1e3:.0f}" for k, v in rates["matmul_gflops"].items())
        lines.append(f"{moment}: matmul TFLOP/s {products}; copy {rates['copy_gbytes']:.0f} GB/s")
    return lines


def _row(result: CaseResult, run: Run, paint: Paint) -> str:
    case = result.case
    label = f"  {case.cell + ' ' + case.label:<30}"
    if result.failure:
        return label + paint(f"FAILED: {result.failure}", RED)
    theirs, ours = result.peers[BASELINE], result.peers[OURS]
    for peer, width in ((theirs, 10), (ours, 11)):
        if peer.timing is None:
            return label + f"not timed: {peer.skipped}"
        label += f"{duration(peer.timing.median_s):>{width}}{peer.timing.spread:>5.0%}"
    seconds = ours.timing.median_s
    steps = case.shape.T * case.shape.layers * case.shape.directions
    label += f"{seconds / steps * 1e6:>9.2f}"
    for name, width in ((BASELINE, 10), (LOOP, 9), (ALTERNATING, 9)):
        label += ratio(result.speedup(name), width, paint)
    label += f"{case.flops / seconds / 1e9 / run.matmul_gflops(case.dtype):>8.1%}"
    for a, b in ((ours.peak_bytes, theirs.peak_bytes),
                 (ours.activation_bytes, theirs.activation_bytes)):  # fmt: skip
        label += f"{f'{a / b:.2f}' if a and b else '':>{8 if a is ours.peak_bytes else 7}}"
    label += f"{ours.error or 0:>9.0e}{theirs.error or 0:>9.0e}"
    backend = ours.notes.get("backend", "native")
    return label + (f"  ran on {backend}" if backend != "native" else "")


def _kernels(run: Run) -> list[str]:
    lines = ["gate kernels alone, of the copy rate"]
    for k in run.kernels:
        name = f"  {k.cell} {k.dtype} {k.pass_} {k.kernel}"
        if k.median_s is None or k.copy_fraction is None:
            lines.append(f"{name:<40} {k.skipped}")
        else:
            rate = k.compulsory_bytes / k.median_s / 1e9
            lines.append(f"{name:<40}{duration(k.median_s):>9} {rate:>6.0f} GB/s "
                         f"{k.copy_fraction:>6.0%}")  # fmt: skip
    return lines


def _glance(run: Run, paint: Paint) -> list[str]:
    """Return the short table: for each dtype and each peer, how often faster and by how much."""
    lines = [f"{'At a glance: fused_rnn over':<30}{'dtype':>6}{'faster in':>14}{'geomean':>9}"
             f"{'worst':>9}  in"]  # fmt: skip
    for peer in (p.name for p in CUDA_PEERS if p.name != OURS):
        for dtype in dict.fromkeys(r.case.dtype for r in run.ordered):
            found = _speedups(run, peer, lambda r, d=dtype: r.case.dtype == d)
            if found:
                values = [value for value, _ in found]
                wins, (worst, where) = sum(v >= 1 for v in values), min(found)
                mean = geometric_mean(values) or 0.0
                text = f"  {peer:<28}{dtype:>6}{f'{wins} of {len(values)}':>14}{mean:>8.2f}x"
                tail = f"{worst:>8.2f}x  {where}"
                lines.append(text + (paint(tail, RED) if worst < 1 else tail))
    failed = [result.case.id for result in run.ordered if result.failure]
    return lines + ([paint(f"FAILED: {', '.join(failed)}", RED)] if failed else [])


def _speedups(run: Run, peer: str, which: Callable[[CaseResult], bool]) -> list[tuple[float, str]]:
    return [(v, r.case.id) for r in run.ordered if which(r) and (v := r.speedup(peer)) is not None]
