"""What a run says: the table and its verdicts on stdout, everything in JSON."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from .cases import DTYPE_TITLES, DTYPES, GATES, KINDS, Case, Shape
from .harness import CaseResult, PeerResult
from .kernels import KernelResult
from .peers import BASELINE, OURS, PEERS
from .text import BOLD, RED, Paint, bar_table, duration, ratio, skips
from .timing import Timing
from .units import unit
from .verdicts import Verdict, geometric_mean

_SCHEMA = 1


@dataclass
class Run:
    """Everything that one run measured, and what it was measured on."""

    machine: dict[str, Any]
    versions: dict[str, str]
    commit: str | None
    settings: dict[str, Any]
    rates: dict[str, dict[str, Any]] = field(default_factory=dict)
    results: list[CaseResult] = field(default_factory=list)
    verdicts: list[Verdict] = field(default_factory=list)
    created: str = ""
    seconds: float = 0.0
    kernels: list[KernelResult] = field(default_factory=list)  # GPU only

    @property
    def sgemm_gflops(self) -> float:
        """The better of the rates at the start and at the end: the stricter yardstick."""
        return max(rates["sgemm_gflops"] for rates in self.rates.values())

    def matmul_gflops(self, dtype: str, threads: int | None = None) -> float:
        """Return the rate of matrix products of a dtype, as for sgemm; on one thread if asked."""
        at = [r.get("one_thread", {}) if threads else r for r in self.rates.values()]
        rates = (r.get("matmul_gflops", {}).get(dtype) for r in at)
        return max((rate for rate in rates if rate), default=self.sgemm_gflops)

    def unit_fraction(self, result: CaseResult) -> float | None:
        """Return the share of its unit's rate that ours ran at, or None where that is not known."""
        seconds, level = result.seconds(OURS), result.level
        if seconds is None or level is None or "gpu" in self.machine:
            return None
        dtype, products = unit(level, result.case)
        rate = self.matmul_gflops(dtype, result.case.threads)
        return products * result.case.flops / seconds / 1e9 / rate

    @property
    def copy_gbytes(self) -> float:
        return max(rates["copy_gbytes"] for rates in self.rates.values())

    @property
    def ordered(self) -> list[CaseResult]:
        """The results in the report's order: by kind, then by cell."""
        return [result for _, group in self.groups for result in group]

    @property
    def groups(self) -> list[tuple[str, list[CaseResult]]]:
        """The results by kind, dtype and threads, each group under its title, by cell."""
        found: dict[tuple[int, int, int], list[CaseResult]] = {}
        kinds, dtypes, cells = list(KINDS), list(DTYPES), list(GATES)
        for r in self.results:
            key = kinds.index(r.case.kind), dtypes.index(r.case.dtype), r.case.threads or 0
            found.setdefault(key, []).append(r)
        by_cell = lambda r: cells.index(r.case.cell)  # noqa: E731
        groups = [sorted(found[key], key=by_cell) for key in sorted(found)]
        return [(_title(group[0].case), group) for group in groups]


def write_json(run: Run, path: Path) -> None:
    """Write the whole run as JSON."""
    document = {
        "schema": _SCHEMA,
        "created": run.created,
        "seconds": run.seconds,
        "commit": run.commit,
        "machine": run.machine,
        "versions": run.versions,
        "settings": run.settings,
        "rates": run.rates,
        "bar": [asdict(verdict) | {"met": verdict.met} for verdict in run.verdicts],
        **({"kernels": [asdict(kernel) for kernel in run.kernels]} if run.kernels else {}),
        "cases": [_case_json(result, run) for result in run.ordered],
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document, indent=1) + "\n")


def _case_json(result: CaseResult, run: Run) -> dict[str, Any]:
    case = result.case
    return {
        "id": case.id,
        "cell": case.cell,
        "kind": case.kind,
        "dtype": case.dtype,
        **({"threads": case.threads} if case.threads else {}),
        "shape": asdict(case.shape),
        "tokens": case.tokens,
        "flops": case.flops,
        "compulsory_bytes": case.compulsory_bytes,
        "failure": result.failure,
        "other_work": result.other_work,
        "speedup": result.speedup(),
        "peers": {name: _peer_json(peer, result, run) for name, peer in result.peers.items()},
    }


def _peer_json(peer: PeerResult, result: CaseResult, run: Run) -> dict[str, Any]:
    found: dict[str, Any] = {"skipped": peer.skipped}
    if peer.timing is not None:
        case, seconds = result.case, peer.timing.median_s
        gflops = case.flops / seconds / 1e9
        found |= peer.timing.as_dict() | {
            "gflops": gflops,
            "sgemm_fraction": gflops / run.matmul_gflops(case.products_dtype, case.threads),
            "copy_fraction": case.compulsory_bytes / seconds / 1e9 / run.copy_gbytes,
        }
    if peer is result.peers.get(OURS) and (share := run.unit_fraction(result)) is not None:
        found["unit_fraction"] = share
    if peer.activation_bytes is not None:
        found["activation_bytes"] = peer.activation_bytes
    return found | {"error": peer.error, "peak_bytes": peer.peak_bytes, "notes": peer.notes}


def read_json(path: Path) -> Run:
    """Return the run that :func:`write_json` wrote."""
    document = json.loads(path.read_text())
    if document.get("schema") != _SCHEMA:
        raise ValueError(f"{path.name}: no run of schema {_SCHEMA}")
    described = ("machine", "versions", "commit", "settings", "rates", "created", "seconds")
    return Run(
        **{name: document[name] for name in described},
        results=[_case_of(entry) for entry in document["cases"]],
        verdicts=[Verdict(**_fields(Verdict, entry)) for entry in document["bar"]],
        kernels=[KernelResult(**entry) for entry in document.get("kernels", ())],
    )


def _case_of(entry: dict[str, Any]) -> CaseResult:
    described = {"dtype": entry["dtype"], "threads": entry.get("threads")}
    case = Case(entry["cell"], entry["kind"], Shape(**entry["shape"]), **described)
    peers = {}
    for name, found in entry["peers"].items():
        timing = Timing(**_fields(Timing, found)) if "median_s" in found else None
        peers[name] = PeerResult(**_fields(PeerResult, found), timing=timing)
    return CaseResult(case, peers, entry["failure"], entry["other_work"])


def _fields(kind: type, entry: dict[str, Any]) -> dict[str, Any]:
    """Return what is a field of a dataclass, without what was computed from the fields."""
    return {field.name: entry[field.name] for field in fields(kind) if field.name in entry}


def render(run: Run, colour: bool = False) -> str:
    """Return the report as text: machine, cases by kind, the bar, and who wins where."""
    paint = Paint(colour)
    lines = [*_heading(run), ""]
    for title, group in run.groups:
        lines += [paint(title, BOLD), _COLUMNS, *(_row(r, run, paint) for r in group)]
        lines += [_group_mean(group), ""]
    lines += [_LEGEND, "", *bar_table(run.verdicts, paint), ""]
    lines += [*_glance(run, paint), *skips(run.results)]
    return "\n".join(lines)


_COLUMNS = (
    f"  {'case':<28}{'torch.nn':>9}{'+-':>5} {'fused_rnn':>9}{'+-':>5}{'speed-up':>10}"
    f"{'vs onnx':>9}{'vs loop':>9}{'GFLOP/s':>9}{'unit':>6}{'copy':>6}{'memory':>8}"
    f"{'error':>9}{'torch.nn':>9}  {'level'}"
)
_LEGEND = """\
speed-up   torch.nn's median time over fused_rnn's: above 1 is faster, "<" marks a loss
vs onnx    the same over onnxruntime; vs loop: over the torch.compile'd loop of cells
+-         interquartile range, of the median
unit       fused_rnn's share of the rate above of the unit that its level multiplies on: float32
           vectors, or bfloat16 tiles, of which a float32 product takes several
copy       its share of the copy rate, for the least traffic
memory     fused_rnn's peak over torch.nn's
error      largest against float64, of the tensor's largest element: fused_rnn's, then torch.nn's"""


def _title(case: Case) -> str:
    dtype = "" if case.dtype == "fp32" else f", {DTYPE_TITLES[case.dtype]}"
    return KINDS[case.kind] + dtype + (", one thread" if case.threads == 1 else "")


def _heading(run: Run) -> list[str]:
    machine, versions = run.machine, run.versions
    caches = " ".join(f"{level} {size}" for level, size in machine["caches"].items())
    packages = ", ".join(f"{name} {version}" for name, version in versions.items())
    cores = f"{machine['cores']} cores, {caches}, {machine['torch_simd']}"
    lines = [
        f"{machine['cpu']}, {cores}; {run.settings['threads']} threads",
        f"{packages}; commit {run.commit or 'none'}",
    ]
    for moment, rates in run.rates.items():
        lines.append(
            f"{moment}: sgemm {rates['sgemm_gflops']} GFLOP/s ({rates['sgemm_best']}), "
            f"copy {rates['copy_gbytes']} GB/s" + _other_rates(rates)
        )
    disturbed = sum(result.disturbed for result in run.results)
    if disturbed:
        lines.append(
            f"WARNING: other work disturbed {disturbed} of {len(run.results)} cases, marked "
            '"disturbed": their figures and every mean are rough'
        )
    if run.settings["quick"]:
        lines.append("--quick: few cases, few rounds; the bar is for the full run")
    return lines


def _other_rates(rates: dict[str, Any]) -> str:
    said = [
        f"{dtype} {rate}{where}"
        for where, at in (("", rates), (" on one thread", rates.get("one_thread", {})))
        for dtype, rate in at.get("matmul_gflops", {}).items()
        if where or dtype != "fp32"
    ]
    return f"; products {', '.join(said)} GFLOP/s" if said else ""


def _row(result: CaseResult, run: Run, paint: Paint) -> str:
    case = result.case
    label = f"  {case.cell + ' ' + str(case.shape):<28}"
    if result.failure:
        return label + paint(f"FAILED: {result.failure}", RED)
    ours = result.peers[OURS]
    text = label + _timed(result.peers[BASELINE]) + " " + _timed(ours)
    for name, width in ((BASELINE, 10), ("onnxruntime", 9), ("compiled loop", 9)):
        text += ratio(result.speedup(name), width, paint)
    if ours.timing is None:
        return text
    gflops = case.flops / ours.timing.median_s / 1e9
    copy = case.compulsory_bytes / ours.timing.median_s / 1e9 / run.copy_gbytes
    share = run.unit_fraction(result)
    text += (
        f"{gflops:>9.1f}{gflops / run.sgemm_gflops if share is None else share:>6.0%}{copy:>6.0%}"
    )
    theirs = result.peers[BASELINE]
    peaks = ours.peak_bytes, theirs.peak_bytes
    memory = f"{peaks[0] / peaks[1]:.2f}" if peaks[0] and peaks[1] else ""
    text += f"{memory:>8}{ours.error or 0:>9.0e}{theirs.error or 0:>9.0e}"
    text += f"  {result.level or ''}"
    backend = ours.notes.get("backend", "native")
    if backend != "native":
        text += f"  ran on {backend}"
    if "wrong" in theirs.notes:
        text += paint(f"  torch.nn is wrong: {theirs.notes['wrong']}", RED)
    return text.rstrip() + (paint("  disturbed", RED) if result.disturbed else "")


def _timed(peer: PeerResult) -> str:
    if peer.timing is None:
        return f"{'-':>9}{'':>5}"
    return f"{duration(peer.timing.median_s):>9}{peer.timing.spread:>5.0%}"


def _group_mean(group: Sequence[CaseResult]) -> str:
    text = f"  {'geometric mean':<57}"
    for name, width in ((BASELINE, 10), ("onnxruntime", 9), ("compiled loop", 9)):
        mean = geometric_mean(value for r in group if (value := r.speedup(name)) is not None)
        text += ratio(mean, width, Paint(False))
    return text.rstrip()


def _glance(run: Run, paint: Paint) -> list[str]:
    lines = [paint("At a glance", BOLD)]
    for name in (peer.name for peer in PEERS if peer.name != OURS):
        ratios = {r.case.id: value for r in run.ordered if (value := r.speedup(name))}
        if not ratios:
            lines.append(f"  {name}: not compared")
            continue
        losses = {case: value for case, value in ratios.items() if value < 1}
        lines.append(
            f"  against {name}: faster in {len(ratios) - len(losses)} of {len(ratios)} cases, "
            f"{geometric_mean(ratios.values()):#.3g}x in the geometric mean"
        )
        lines += [
            paint(f"    loses {case}  {value:#.3g}x", RED)
            for case, value in sorted(losses.items(), key=lambda item: item[1])
        ]
    failed = [result.case.id for result in run.ordered if result.failure]
    if failed:
        lines.append(paint(f"  FAILED: {', '.join(failed)}", RED))
    return lines
