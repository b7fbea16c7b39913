"""Speed and memory of a training step, of saving and loading, and of many adapters at once, against floor and PEFT.

    python benchmarks/step.py [--reps 25] [--quick] [--write-docs]

The floor is the frozen model: forward, and backward through activations alone to an input perturbation; no way of
training an adapter is faster. All candidates stand in one process and take turns; times are medians over rounds, and
so are ratios of times of the same round; processor time counts (wall time beside it shows what else the machine did).
Peak memory is measured in a process each. Writes benchmarks/results/step.json (not with --quick); --write-docs renews
the tables of docs/speed.md from that file.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # a thread that waits must not count as processor time

import peft
import torch
import transformers
from _candidates import (
    BATCH,
    CANDIDATES,
    COMPILED,
    RANK,
    SEQUENCE,
    SIZES,
    THREADS,
    VOCABULARY,
    base,
    lora_config,
    ours,
    theirs,
    tokens,
    wake,
)
from _times import Step, interleaved, medians, over, processor, ratio

import rankwise
from rankwise.adapters import Shelf, detach, thin_of

RESULTS = Path(__file__).parent / "results" / "step.json"
PAGE = Path(__file__).parents[1] / "docs" / "speed.md"
MARK = "<!-- below: written by benchmarks/step.py -->"


# Memory: each in a process of its own.


def peak(name: str) -> float:
    """MB by which three steps raise this process's peak above what it holds once the model is built."""
    step = CANDIDATES[name]()
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew: getrusage's starts at the parent's
    held = _resident("VmRSS")
    for _ in range(3):
        step()
    return (_resident("VmHWM") - held) / 1e3


def _resident(key: str) -> int:
    """Return a size of this process's memory in kB."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(key))
    return int(line.split()[1])


def peaks(names: Sequence[str]) -> dict[str, float]:
    """`peak` of each name, one process after the other: the median of five where a bar hangs on it."""
    command = [sys.executable, __file__, "--peak"]
    found = {}
    for name in names:
        runs = 5 if name in ("floor", "PEFT LoRA", "lora") else 1  # the allocator's luck
        done = [subprocess.run([*command, name], capture_output=True, text=True, check=True) for _ in range(runs)]
        found[name] = statistics.median(float(run.stdout.split()[-1]) for run in done)
    return found


# Adapters on the disk, and many at once.


def files(reps: int) -> dict[str, Any]:
    """Save and load an adapter, ours and PEFT's, on a base that is there already."""
    model, other = ours("lora"), theirs()
    with tempfile.TemporaryDirectory() as folder:
        count = iter(range(10_000))
        bases = [base() for _ in range(2)]

        def load_ours() -> None:
            detach(rankwise.load(bases[0], Path(folder) / "ours"))

        def load_theirs() -> None:
            peft.PeftModel.from_pretrained(bases[1], Path(folder) / "peft").unload()

        rankwise.save(model, Path(folder) / "ours")
        other.save_pretrained(Path(folder) / "peft")
        steps = {
            "save": lambda: rankwise.save(model, Path(folder) / f"ours-{next(count)}"),
            "save, PEFT": lambda: other.save_pretrained(Path(folder) / f"peft-{next(count)}"),
            "load and take off": load_ours,
            "load and take off, PEFT": load_theirs,
        }
        return {name: asdict(t) for name, t in medians(interleaved(steps, reps)).items()}


def another(most: int, reps: int) -> dict[str, Any]:
    """Milliseconds of processor time to hold the k-th adapter beside k - 1, ours on a shelf and PEFT's."""
    taken: dict[str, list[list[float]]] = {"ours": [], "PEFT": []}
    with tempfile.TemporaryDirectory() as folder:
        model, path = ours("lora"), Path(folder) / "ours"
        rankwise.save(model, path)
        theirs().save_pretrained(Path(folder) / "peft")
        for _ in range(reps):
            shelf = rankwise.shelf(base(), {})
            other = peft.PeftModel.from_pretrained(base(), Path(folder) / "peft", adapter_name="0")
            adds = {
                "ours": lambda k, shelf=shelf: shelve(shelf, str(k), path),
                "PEFT": lambda k, other=other: other.load_adapter(Path(folder) / "peft", adapter_name=str(k)),
            }
            for name, add in adds.items():
                taken[name].append([processor(partial(add, k)) for k in range(1, most + 1)])
    return {name: [statistics.median(column) for column in zip(*rows, strict=True)] for name, rows in taken.items()}


def shelve(shelf: Shelf, name: str, path: Path) -> None:
    """One more adapter from a folder."""
    from rankwise.saved import shelve

    shelve(shelf, name, path)


def mixed(rows: int, reps: int, adapters: int = 8) -> dict[str, Any]:
    """Decode one token a row, rows on `adapters` different adapters: the base alone, PEFT's mixed batch, ours."""
    batch = tokens(rows, 1)
    names = [str(row % adapters) for row in range(rows)]
    bare, other, model = base(), theirs(), ours("lora")
    shelf = Shelf(base())
    for i in range(adapters):
        wake(model)
        shelf.add(str(i), thin_of(model))
        other.add_adapter(str(i), lora_config())
    other.eval()

    def ours_mixed() -> None:
        with shelf.rows(names):
            shelf.base(input_ids=batch)

    steps: dict[str, Step] = {
        "base": lambda: bare(input_ids=batch),
        "PEFT": lambda: other(input_ids=batch, adapter_names=names),
        "ours": ours_mixed,
    }
    with torch.no_grad():
        return over(interleaved(steps, reps), "base")


# torch.compile.


def compiled(reps: int) -> dict[str, Any] | None:
    """Time steps as they are and under `torch.compile`; None where the machine has no compiler for it."""
    if not any(shutil.which(name) for name in (os.environ.get("CXX", "g++"), "clang++")):
        return None
    steps: dict[str, Step] = {}
    waits: dict[str, float] = {}
    for name, (plain, made) in COMPILED.items():
        steps[name], steps[f"{name}, compiled"] = plain(), made()
        start = time.perf_counter()
        steps[f"{name}, compiled"]()
        waits[name] = time.perf_counter() - start
    taken = interleaved(steps, reps)
    ratios = {name: ratio(taken, f"{name}, compiled", name) for name in COMPILED}
    over_peft = {other: ratio(taken, "lora, compiled", other) for other in ("PEFT LoRA", "PEFT LoRA, compiled")}
    return {"step": over(taken, "floor"), "over_plain": ratios, "first_step_seconds": waits, "lora_over": over_peft}


# Putting it together.


def measured(reps: int, *, quick: bool) -> dict[str, Any]:
    """Everything, as the file holds it."""
    names = [name for name in CANDIDATES if not (quick and name in ("mora, 100 tasks", "finetune"))]
    found: dict[str, Any] = {"machine": machine(), "setting": setting()}
    taken = interleaved({name: CANDIDATES[name]() for name in names}, reps)
    found["step"] = over(taken, "floor")
    found["lora_over_peft"] = ratio(taken, "lora", "PEFT LoRA")
    found["peak_mb"] = peaks(["floor", "PEFT LoRA", "lora"] if quick else names)
    found["compiled"] = None if quick else compiled(reps)
    found["files"] = files(3 if quick else 9)
    found["another"] = another(4 if quick else 16, 1 if quick else 5)
    found["decode"] = {f"{rows} rows": mixed(rows, 45) for rows in (8, 32)}
    return found


def setting() -> dict[str, Any]:
    """What was trained."""
    sizes = {**SIZES, "vocabulary": VOCABULARY, "sequence": SEQUENCE, "batch": BATCH, "rank": RANK}
    return {**sizes, "dtype": "float32", "sites": "7 projections", "optimiser": "AdamW", "threads": THREADS}


def machine() -> dict[str, Any]:
    """Where, in general words."""
    versions = {module.__name__: module.__version__ for module in (torch, transformers, peft)}
    cores = f"{os.cpu_count()} cores, {platform.machine()}, {torch.backends.cpu.get_cpu_capability()}, no GPU"
    return {"cores": cores, "system": platform.system(), "python": platform.python_version(), **versions}


BARS: Sequence[tuple[str, Callable[[dict[str, Any]], float], float]] = (
    ("lora, step over the floor", lambda r: r["step"]["lora"]["cpu_ratio"], 1.10),
    ("lora, step over PEFT's", lambda r: r["lora_over_peft"], 0.95),
    ("lora, extra memory over PEFT's", lambda r: extra(r, "lora") / extra(r, "PEFT LoRA"), 0.40),
    ("mora with one task's atoms, step over the floor", lambda r: r["step"]["mora, 1 task"]["cpu_ratio"], 1.20),
    ("mora with 10 tasks' atoms", lambda r: r["step"]["mora, 10 tasks"]["cpu_ratio"], 1.35),
    ("a shelf's last four adapters of 16 over its first four", lambda r: growth(r["another"]["ours"]), 1.2),
    ("decode, 8 adapters in 8 rows, over PEFT's", lambda r: mixed_ratio(r, "8 rows"), 0.70),
    ("decode, 8 adapters in 32 rows, over PEFT's", lambda r: mixed_ratio(r, "32 rows"), 0.70),
)
"""What is to be reached: name, its value in the results, the largest that will do."""


def extra(results: Mapping[str, Any], name: str) -> float:
    """MB over the floor's peak."""
    return results["peak_mb"][name] - results["peak_mb"]["floor"]


def growth(taken: Sequence[float]) -> float:
    """Median of the last four over that of the first four."""
    return statistics.median(taken[-4:]) / statistics.median(taken[:4])


def mixed_ratio(results: Mapping[str, Any], rows: str) -> float:
    """Our time over PEFT's."""
    return results["decode"][rows]["ours"]["cpu"] / results["decode"][rows]["PEFT"]["cpu"]


def tables(r: dict[str, Any]) -> str:
    """The results as Markdown."""
    where = ", ".join(
        str(value) if key in ("cores", "system") else f"{key} {value}" for key, value in r["machine"].items()
    )
    steps = [
        [name, f"{t['cpu']:.0f}", f"**{t['cpu_ratio']:.3f}**", f"{t['wall_ratio']:.3f}", mb(r, name)]
        for name, t in r["step"].items()
    ]
    decode = [
        [rows, *(f"{times[name]['cpu']:.1f}" for name in times), f"{mixed_ratio(r, rows):.2f}"]
        for rows, times in r["decode"].items()
    ]
    disk = [[name, f"{t['cpu']:.0f}", f"{t['wall']:.0f}"] for name, t in r["files"].items()]
    ks = [k for k in (1, 2, 4, 8, 16) if k <= len(r["another"]["ours"])]
    adding = [[name, *(f"{times[k - 1]:.0f}" for k in ks)] for name, times in r["another"].items()]
    reps = r["step"]["floor"]["reps"]
    bars = [
        [name, f"{value(r):.3f}", f"{bar:.2f}", "yes" if value(r) <= bar else "no"]
        for name, value, bar in BARS
        if not missing(value, r)
    ]
    return "\n\n".join(
        [
            f"Measured on {where}; {r['setting']['threads']} threads; {reps} repetitions.",
            "### What was to be reached",
            table(["", "measured", "at most", "reached"], bars),
            "### A training step",
            table(["", "CPU ms", "over the floor, CPU", "wall", "extra peak memory, MB"], steps),
            *(compile_tables(r["compiled"]) if r["compiled"] else ()),
            "### Decoding with 8 adapters in one batch, one token a row",
            table(["", "base, CPU ms", "PEFT, mixed batch", "ours, `shelf`", "ours over PEFT"], decode),
            "### Holding one more adapter, CPU ms for the k-th",
            table(["", *(f"k = {k}" for k in ks)], adding),
            "### Saving and loading",
            table(["", "CPU ms", "wall ms"], disk),
        ]
    )


def compile_tables(found: Mapping[str, Any]) -> list[str]:
    """What `compiled` measured, as Markdown."""
    steps = [
        [
            name,
            *(f"{found['step'][key]['cpu_ratio']:.3f}" for key in (name, f"{name}, compiled")),
            f"**{found['over_plain'][name]:.3f}**",
            f"{seconds:.0f}",
        ]
        for name, seconds in found["first_step_seconds"].items()
    ]
    return [
        "### The same step under `torch.compile`, CPU time over the floor's as it is",
        table(["", "as it is", "compiled", "compiled over as it is", "first step, seconds"], steps),
        "; ".join(f"`lora` compiled over {name}: {times:.3f}" for name, times in found["lora_over"].items()),
    ]


def missing(value: Callable[[dict[str, Any]], float], results: dict[str, Any]) -> bool:
    """Whether a quick run left out what `value` reads."""
    try:
        value(results)
    except KeyError:
        return True
    return False


def mb(results: Mapping[str, Any], name: str) -> str:
    """Extra peak memory as a cell."""
    return f"{extra(results, name):.0f}" if name in results["peak_mb"] else "-"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table of Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def write_docs(results: dict[str, Any]) -> None:
    """Renew what stands below the mark in docs/speed.md."""
    above = PAGE.read_text(encoding="utf-8").split(MARK)[0]
    PAGE.write_text(f"{above}{MARK}\n\n{tables(results)}\n", encoding="utf-8")


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--reps", type=int, default=25)
    parser.add_argument("--quick", action="store_true", help="3 repetitions, the larger candidates left out, no file")
    parser.add_argument("--write-docs", action="store_true", help="only write docs/speed.md, from the file")
    parser.add_argument("--peak", metavar="NAME", help="only measure the peak memory of one candidate")
    given = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(THREADS)
    if given.peak:
        print(peak(given.peak))
    elif given.write_docs:
        write_docs(json.loads(RESULTS.read_text(encoding="utf-8")))
    else:
        results = measured(3 if given.quick else given.reps, quick=given.quick)
        print(tables(results))
        if not given.quick:
            RESULTS.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
