"""What the benchmarks share: contestants that take turns, facts of the machine, tables and plots.

Every script runs its contestants in one process, round after round, in an order that rotates. A library that
can be used in several ways is given the quickest: all its ways are timed before the first round. Ratios are
taken within rounds, so that what slows the machine for a while slows both sides.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

RESULTS = Path(__file__).parent / "results"
PACKAGES = (
    *("torch", "torchvision", "timm", "kornia", "albumentations", "opencv-python-headless", "numba"),
    *("simplejpeg", "pillow", "numpy", "trickbag"),
)
Work = Callable[[], int]
"""Does a piece of work, and says how many images it was."""


@dataclass
class Contestant:
    """A library, or one way to use it.

    Attributes:
        name: of the row.
        ways: settings to choose from, by their description; the quickest one takes part.
        ours: True for trickbag.
        unequal: what it does less, or other, than the rest; empty for equal work.
    """

    name: str
    ways: Mapping[str, Work]
    ours: bool = False
    unequal: str = ""


@dataclass
class Row:
    """What was measured of a contestant in one case.

    Attributes:
        name, way, ours, unequal: as in ``Contestant``.
        rates: images a second, by round.
        tried: images a second of each way, in the short trial, or why it failed.
        more: other numbers.
    """

    name: str
    way: str
    ours: bool
    unequal: str
    rates: list[float] = field(default_factory=list)
    tried: dict[str, Any] = field(default_factory=dict)
    more: dict[str, Any] = field(default_factory=dict)


def arguments(about: str | None, *, repeats: int = 7, seconds: float = 1.0) -> argparse.ArgumentParser:
    """Options that every script has."""
    parser = argparse.ArgumentParser(description=(about or "").splitlines()[0])
    parser.add_argument("--data", help="images, as `trickbag train` takes them; without it they are made up")
    parser.add_argument("--repeats", type=int, default=repeats, help=f"rounds (default {repeats})")
    parser.add_argument("--seconds", type=float, default=seconds, help="least length of a turn")
    parser.add_argument("--out", type=Path, help="folder of results (default: benchmarks/results)")
    parser.add_argument("--quick", action="store_true", help="tiny settings: see whether it runs at all")
    return parser


def parsed(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """The options, where ``--quick`` has had its say."""
    options = parser.parse_args()
    if options.quick:
        options.repeats, options.seconds = 2, 0.02
    if options.out is None:
        options.out = Path(tempfile.gettempdir()) / "trickbag-benchmarks" if options.quick else RESULTS
    options.out.mkdir(parents=True, exist_ok=True)
    return options


def one_core() -> None:
    """Keep this process on one core, and every library to one thread."""
    import torch

    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    torch.set_num_threads(1)
    try:
        import cv2

        cv2.setNumThreads(0)
    except ImportError:
        pass


def race(
    contestants: Sequence[Contestant], options: argparse.Namespace, clock: Callable[[], float]
) -> list[Row]:
    """Time contestants in turns.

    Args:
        contestants: who takes part.
        options: ``repeats`` and ``seconds``.
        clock: ``time.process_time`` for work on one core, else ``time.perf_counter``.
    """
    import torch

    rows, works = [], []
    with torch.no_grad():
        for one in contestants:
            row = Row(one.name, "", one.ours, one.unequal)
            works.append(_quickest(one, row, options, clock))
            rows.append(row)
        for number in range(options.repeats):
            for k in range(len(rows)):
                k = (k + number) % len(rows)
                work = works[k]
                if work is not None:
                    work()
                    rows[k].rates.append(_rate(work, options.seconds, clock))
    for row in rows:
        middle = f"{statistics.median(row.rates):>12,.0f} images/s" if row.rates else "failed"
        print(f"    {row.name:34} {middle}  {row.way}", flush=True)
    return rows


def _quickest(
    one: Contestant, row: Row, options: argparse.Namespace, clock: Callable[[], float]
) -> Work | None:
    rates: dict[str, float] = {}
    for way, work in one.ways.items():
        try:
            work()
            rates[way] = _rate(work, options.seconds / 2, clock)
        except Exception as error:  # One way that a version cannot go does not end the benchmark.
            row.tried[way] = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
            print(f"    {one.name}, {way}: {row.tried[way]}", file=sys.stderr)
    row.tried |= {way: round(rate, 2) for way, rate in rates.items()}
    if not rates:
        return None
    row.way = max(rates, key=lambda way: rates[way])
    return one.ways[row.way]


def _rate(work: Work, seconds: float, clock: Callable[[], float]) -> float:
    gc.collect()
    images, began, cpu = 0, time.perf_counter(), clock()
    while True:
        images += work()
        if time.perf_counter() - began >= seconds:
            return images / max(clock() - cpu, 1e-9)


def middle(values: Sequence[float]) -> dict[str, Any]:
    """Median, quartiles and all values."""
    low, mid, high = (float(x) for x in np.percentile(values, (25, 50, 75)))
    return {"median": digits(mid), "quartiles": [digits(low), digits(high)], "rounds": [*map(digits, values)]}


def ratio(ours: Sequence[float], theirs: Sequence[float]) -> dict[str, float]:
    """Median of the ratios within rounds, with a 95 % bootstrap interval (2,000 resamples of the rounds)."""
    pairs = np.array([a / b for a, b in zip(ours, theirs, strict=True)])
    draws = np.random.default_rng(0).integers(len(pairs), size=(2000, len(pairs)))
    low, high = np.percentile(np.median(pairs[draws], axis=1), (2.5, 97.5))
    return {"ratio": digits(np.median(pairs)), "low": digits(low), "high": digits(high)}


def digits(value: float, count: int = 4) -> float:
    """``value`` to some significant digits."""
    return float(f"{value:.{count}g}")


def case_of(title: str, rows: Iterable[Row]) -> dict[str, Any]:
    """A table as plain data: a rate for each row, and how many times that our rows are."""
    rows = list(rows)
    table = []
    for row in rows:
        entry: dict[str, Any] = {"name": row.name, "way": row.way, "ours": row.ours}
        if row.unequal:
            entry["unequal"] = row.unequal
        if row.rates:
            entry["images_per_second"] = middle(row.rates)
            if not row.ours:
                entry["times"] = {o.name: ratio(o.rates, row.rates) for o in rows if o.ours and o.rates}
        if row.more:
            entry["more"] = row.more
        if len(row.tried) > 1 or not row.rates:
            entry["tried"] = row.tried
        table.append(entry)
    return {"case": title, "rows": table}


def machine(threads: int | str, device: str = "cpu") -> dict[str, Any]:
    """Facts of the machine, without its name."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    facts: dict[str, Any] = {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "cores_used": cores,
        "threads": threads,
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
    }
    if device == "cuda":
        import torch

        facts["gpu"], facts["cuda"] = torch.cuda.get_device_name(), torch.version.cuda
    return facts


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def versions() -> dict[str, str]:
    """Versions of the packages that are there."""
    found = {}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def command() -> str:
    """What was called, with the last parts of paths only."""
    words = [Path(word).name if os.sep in word else word for word in sys.argv[1:]]
    return " ".join(["python", f"benchmarks/{Path(sys.argv[0]).name}", *words])


def report(
    name: str,
    what: str,
    cases: Sequence[Mapping[str, Any]],
    options: argparse.Namespace,
    *,
    data: str,
    threads: int | str = 1,
    device: str = "cpu",
    unit: str = "images/s",
    notes: Sequence[str] = (),
) -> None:
    """Write ``NAME.json``, ``NAME.md`` and ``NAME.svg``.

    Args:
        name: of the files.
        what: one sentence: what is measured, in which unit.
        cases: from :func:`case_of`.
        options: from :func:`parsed`.
        data: name of the data set.
        threads: threads that were used.
        device: ``cpu`` or ``cuda``.
        unit: of the rates.
        notes: what a reader must know.
    """
    result = {
        "what": what,
        "command": command(),
        "machine": machine(threads, device),
        "versions": versions(),
        "data": data,
        "repeats": options.repeats,
        "seconds_a_turn": options.seconds,
        "notes": list(notes),
        "cases": list(cases),
    }
    save(name, result, options)
    (options.out / f"{name}.md").write_text(as_markdown(result, unit), encoding="utf-8")
    plot(result, options.out / f"{name}.svg", unit)


def save(name: str, result: Mapping[str, Any], options: argparse.Namespace) -> None:
    """Write ``NAME.json``."""
    path = options.out / f"{name}.json"
    path.write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    print(f"wrote {path.name} to {options.out.name}/")


def heading(result: Mapping[str, Any]) -> list[str]:
    """What was measured, where and how."""
    facts, packages = result["machine"], result["versions"]
    place = f"{facts['processor']}, {facts['cores_used']} of {facts['cores']} cores"
    place += f", threads: {facts['threads']}"
    place += f", {facts['gpu']}" if "gpu" in facts else ""
    return [
        result["what"],
        "",
        f"`{result['command']}` · data: {result['data']}",
        "",
        f"{place}; Python {facts['python']}, " + ", ".join(f"{k} {v}" for k, v in packages.items()),
    ]


def as_markdown(result: Mapping[str, Any], unit: str) -> str:
    """The tables, to paste."""
    lines = heading(result)
    for case in result["cases"]:
        ours = [row["name"] for row in case["rows"] if row["ours"] and "images_per_second" in row]
        head = ["", f"{unit} (quartiles)", *(f"{name} is × as fast" for name in ours), "how"]
        lines += ["", f"### {case['case']}", "", line(head), line(["---"] * len(head))]
        for row in case["rows"]:
            name = f"**{row['name']}**" if row["ours"] else row["name"]
            how = row["way"] + (f"; not the same work: {row['unequal']}" if "unequal" in row else "")
            if "images_per_second" not in row:
                lines.append(line([name, "failed", *("" for _ in ours), how]))
                continue
            rate = row["images_per_second"]
            low, high = rate["quartiles"]
            times = [times_of(row.get("times", {}).get(one)) for one in ours]
            spread = f"{number(rate['median'])} ({number(low)}–{number(high)})"
            lines.append(line([name, spread, *times, how]))
    if result["notes"]:
        lines += ["", *(f"- {note}" for note in result["notes"])]
    return "\n".join(lines) + "\n"


def line(cells: Iterable[str]) -> str:
    """A row of a Markdown table."""
    return f"| {' | '.join(cells)} |"


def number(value: float) -> str:
    """A number for people, three digits or whole thousands."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def times_of(times: Mapping[str, float] | None) -> str:
    """A ratio for people, with its interval."""
    return f"{times['ratio']:.3g} [{times['low']:.3g}, {times['high']:.3g}]" if times else ""


def plot(result: Mapping[str, Any], path: Path, unit: str) -> None:
    """Bars on a logarithmic axis, a panel a case, with the ratio to each peer; needs matplotlib."""
    try:
        import matplotlib as mpl
    except ImportError:
        print("no matplotlib: no plot", file=sys.stderr)
        return
    mpl.use("svg")
    mpl.rcParams |= {"svg.hashsalt": "trickbag", "svg.fonttype": "none", "font.size": 9}
    from matplotlib import pyplot
    from matplotlib.ticker import NullFormatter

    cases = [[row for row in case["rows"] if "images_per_second" in row] for case in result["cases"]]
    heights = [0.5 + 0.28 * len(rows) for rows in cases]
    figure, panels = pyplot.subplots(
        len(cases), 1, figsize=(8, sum(heights) + 0.4), squeeze=False, height_ratios=heights
    )
    for panel, case, rows in zip(panels[:, 0], result["cases"], cases, strict=True):
        rates = [row["images_per_second"]["median"] for row in rows]
        colors = ["#d1495b" if row["ours"] else "#c8ccd4" if "unequal" in row else "#66758c" for row in rows]
        panel.barh(range(len(rows)), rates, color=colors, height=0.72)
        panel.set_yticks(range(len(rows)), [row["name"] for row in rows])
        panel.invert_yaxis()
        panel.set_xscale("log")
        panel.xaxis.set_minor_formatter(NullFormatter())
        panel.set_xlim(min(rates) / 2, max(rates) * 6)
        panel.set_title(case["case"], loc="left", fontsize=10, fontweight="bold")
        panel.spines[["top", "right", "left"]].set_visible(False)
        panel.tick_params(left=False)
        for place, (row, rate) in enumerate(zip(rows, rates, strict=True)):
            best = max((t["ratio"] for t in row.get("times", {}).values()), default=0)
            text = number(rate) + (f"   (trickbag × {best:.3g})" if best else "")
            panel.text(rate * 1.08, place, text, va="center", fontsize=8)
    panels[-1, 0].set_xlabel(unit)
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None}, bbox_inches="tight")
    pyplot.close(figure)
    # matplotlib ends lines with spaces, which checks of repositories dislike.
    path.write_text("".join(f"{row.rstrip()}\n" for row in path.read_text().splitlines()))
