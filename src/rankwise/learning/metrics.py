"""What a stream's accuracy matrix says, one named function for each convention in use.

`R[t][j]` is the score on task j after learning task t (rows and columns count from 0 in code, from 1 in the formulas).
T = rows = tasks learned so far, N = columns = tasks in the stream, T <= N. `None` marks a cell that was not measured.
A matrix is rectangular, or lower triangular (row t holds its first t + 1 cells; the rest counts as `None`).
Scores may have any unit (share, percent, ROUGE); every result has the same unit. Higher scores are taken as better.

A result is `None` where the formula needs a cell that is `None` or a task that does not exist (forgetting after one
task), never NaN. Cells on and below the diagonal are needed wherever the formula names them; cells above it count where
they were measured. Averages weigh tasks equally (macro), except `seen_accuracy`, which weighs test samples (micro).

Peers use the same word for different formulas, so every convention has its own name here:

| word | function | used by |
|---|---|---|
| forgetting | `forgetting_best_minus_last` | the survey's FM, Chaudhry et al. 2018; our key `forgetting` |
| forgetting | `forgetting_first_minus_last` | avalanche (stream average); = - backward transfer |
| forgetting | `forgetting_best_ever_minus_last` | mammoth, LAMDA-PILOT: the best includes the last row, so >= 0 |
| forgetting | `trace_bwt` | TRACE as reported by MoRA: gains do not cancel losses, mean over all T tasks |
| average | `final_average`, `average_incremental` | AA, AIA (the survey) |
| average | `seen_accuracy`, `seen_accuracy_incremental` | A_T and A-bar of PILOT: over samples, not tasks |
| average | `xtail_average` | ZSCL, X-TAIL: mean of all cells |
| forward transfer | `forward_transfer_zero_shot` | GEM, mammoth; our key `forward_transfer` |
| forward transfer | `forward_transfer_from_scratch` | the survey |
| forward transfer | `xtail_transfer` | ZSCL, X-TAIL |

The survey: Wang, Zhang, Su, Zhu, TPAMI 46(8) 2024, arXiv 2302.00487. GEM: Lopez-Paz & Ranzato 2017, arXiv 1706.08840.
ZSCL: Zheng et al. 2023, arXiv 2303.06628. X-TAIL: Xu et al. 2024, arXiv 2406.18868. TRACE: Wang et al. 2023,
arXiv 2310.06762. Chaudhry et al. 2018: arXiv 1801.10112. Riemer et al. 2019: arXiv 1810.11910.
"""

from __future__ import annotations

import math
import numbers
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from rankwise.errors import DataError

Matrix = Sequence[Sequence[float | None]]
Vector = Sequence[float | None]
_Table = list[list[float | None]]


def final_average(R: Matrix) -> float | None:
    """AA_T = 1/T sum_{j<=T} a_{T,j}: mean score on the learned tasks after the last one (survey)."""
    return _average(_checked(R), len(R))


def average_at(R: Matrix, k: int) -> float | None:
    """AA_k = 1/k sum_{j<=k} a_{k,j}: mean score on the first k tasks after learning k of them, k = 1..T."""
    table = _checked(R)
    if not 1 <= k <= len(table):
        raise DataError(f"average_at: k = {k} but R has {len(table)} rows; give the number of tasks learned, from 1")
    return _average(table, k)


def average_incremental(R: Matrix) -> float | None:
    """AIA_T = 1/T sum_{k<=T} AA_k: mean of the averages after each learned task (survey)."""
    table = _checked(R)
    return _mean(_average(table, k) for k in range(1, len(table) + 1))


def learning_accuracy(R: Matrix) -> float | None:
    """LA = 1/T sum_j a_{j,j}: mean score on each task just after learning it (Riemer et al. 2019)."""
    return _mean(row[j] for j, row in enumerate(_checked(R)))


def seen_accuracy(R: Matrix, sizes: Sequence[int]) -> float | None:
    """A_T = sum_{j<=T} n_j a_{T,j} / sum_{j<=T} n_j: score over all test samples of learned tasks (PILOT; micro).

    `sizes` holds n_j, the test samples of each of the N tasks. Equals `final_average` when all sizes are equal.
    """
    table = _checked(R)
    return _seen(table, _checked_sizes(sizes, table), len(table))


def seen_accuracy_incremental(R: Matrix, sizes: Sequence[int]) -> float | None:
    """A-bar = 1/T sum_{k<=T} A_k with A_k as in `seen_accuracy` (PILOT's incremental average, micro within a step)."""
    table = _checked(R)
    counts = _checked_sizes(sizes, table)
    return _mean(_seen(table, counts, k) for k in range(1, len(table) + 1))


def forgetting_per_task(R: Matrix) -> list[float | None]:
    """f_{j,T} = max_{i<T} a_{i,j} - a_{T,j} for j = 1..T-1 (survey). Negative where the last row is a task's best."""
    table = _checked(R)
    return [_minus(_best(table, j, len(table) - 1), table[-1][j]) for j in range(len(table) - 1)]


def forgetting_best_minus_last(R: Matrix) -> float | None:
    """FM_T = 1/(T-1) sum_{j<T} (max_{i<T} a_{i,j} - a_{T,j}) (survey; Chaudhry et al. 2018).

    The maximum runs over all earlier rows, also those before task j was learned where they were measured, so lost
    zero-shot ability counts. FM >= -BWT; negative after backward transfer. `None` for one task.
    """
    return _mean(forgetting_per_task(R))


def forgetting_first_minus_last(R: Matrix) -> float | None:
    """1/(T-1) sum_{j<T} (a_{j,j} - a_{T,j}): loss since each task was learned (avalanche). Equals -BWT."""
    table = _checked(R)
    return _mean(_minus(table[j][j], table[-1][j]) for j in range(len(table) - 1))


def forgetting_best_ever_minus_last(R: Matrix) -> float | None:
    """1/(T-1) sum_{j<T} (max_{i<=T} a_{i,j} - a_{T,j}) (mammoth, PILOT): the maximum includes the last row, so >= 0."""
    table = _checked(R)
    return _mean(_minus(_best(table, j, len(table)), table[-1][j]) for j in range(len(table) - 1))


def backward_transfer(R: Matrix) -> float | None:
    """BWT = 1/(T-1) sum_{j<T} (a_{T,j} - a_{j,j}) (GEM). Negative = forgetting."""
    table = _checked(R)
    return _mean(_minus(table[-1][j], table[j][j]) for j in range(len(table) - 1))


def forward_transfer_zero_shot(R: Matrix, zero_shot: Vector) -> float | None:
    """FWT = 1/(T-1) sum_{j=2..T} (a_{j-1,j} - b_j) (GEM): what earlier tasks give a task before it is learned.

    `zero_shot` holds b_j for all N tasks: the scores of the model before any learning. Needs cells above the diagonal.
    """
    table = _checked(R)
    start = _checked_vector("zero_shot", zero_shot, table)
    return _mean(_minus(table[j - 1][j], start[j]) for j in range(1, len(table)))


def forward_transfer_from_scratch(R: Matrix, scratch: Vector) -> float | None:
    """FWT = 1/(T-1) sum_{j=2..T} (a_{j,j} - a~_j) (survey): gain over learning each task alone.

    `scratch` holds a~_j for all N tasks: the score of a freshly initialised model (with adapters: a fresh adapter)
    trained on task j only.
    """
    table = _checked(R)
    alone = _checked_vector("scratch", scratch, table)
    return _mean(_minus(table[j][j], alone[j]) for j in range(1, len(table)))


def intransigence(R: Matrix, reference: Vector) -> float | None:
    """IM = 1/T sum_k (a*_k - a_{k,k}) (survey; Chaudhry et al. 2018): what could no longer be learned; lower is better.

    `reference` holds a*_k for all N tasks: the score on task k of a model trained jointly on tasks 1..k.
    """
    table = _checked(R)
    joint = _checked_vector("reference", reference, table)
    return _mean(_minus(joint[k], table[k][k]) for k in range(len(table)))


def xtail_transfer(R: Matrix) -> float | None:
    """Transfer = mean_{i=2..N} mean_{t<i} a_{t,i} (ZSCL, X-TAIL): zero-shot ability left before a data set is learned.

    The mean over rows comes first for each data set; a score of exactly 0 counts. `None` unless T = N.
    """
    table = _complete(R)
    return _mean(_mean(row[i] for row in table[:i]) for i in range(1, len(table)))


def xtail_average(R: Matrix) -> float | None:
    """Average = 1/N^2 sum_{t,i} a_{t,i} (ZSCL, X-TAIL): mean of all cells, learned or not. `None` unless T = N."""
    return _mean(cell for row in _complete(R) for cell in row)


def xtail_last(R: Matrix) -> float | None:
    """Last = 1/N sum_i a_{N,i} (ZSCL, X-TAIL): mean of the last row (not of the diagonal). `None` unless T = N."""
    return _mean(cell for row in _complete(R)[-1:] for cell in row)


def trace_op(R: Matrix) -> float | None:
    """OP_T = 1/T sum_{j<=T} a_{T,j} (TRACE's overall performance): the same formula as `final_average`."""
    return final_average(R)


def trace_bwt(R: Matrix) -> float | None:
    """1/T sum_{j<=T} max(a_{j,j} - a_{T,j}, 0) (TRACE as reported by MoRA): a positive number of lost points.

    Gains do not cancel losses, and the mean runs over all T tasks, of which the last contributes 0. 0 for one task.
    """
    table = _checked(R)
    lost = [_minus(table[j][j], table[-1][j]) for j in range(len(table))]
    return _mean(None if drop is None else max(drop, 0.0) for drop in lost)


def summary(
    R: Matrix,
    zero_shot: Vector | None = None,
    sizes: Sequence[int] | None = None,
    reference: Vector | None = None,
    scratch: Vector | None = None,
) -> dict[str, float | None]:
    """Return every number of `results.json` that follows from R; `None` where it cannot be known.

    `forgetting` is best minus last (the survey's FM); `forward_transfer` is GEM's (needs `zero_shot`). `reference`
    feeds `intransigence`, `scratch` feeds `forward_transfer_from_scratch`, `sizes` (test samples a task) feeds the
    micro averages.
    Joint training fills only the last row: the averages of that row (`final_average`, `trace_op`, `last` and
    `seen_accuracy`) are known, the rest is `None`.
    """
    return {
        "final_average": final_average(R),
        "average_incremental": average_incremental(R),
        "learning_accuracy": learning_accuracy(R),
        "seen_accuracy": None if sizes is None else seen_accuracy(R, sizes),
        "seen_accuracy_incremental": None if sizes is None else seen_accuracy_incremental(R, sizes),
        "forgetting": forgetting_best_minus_last(R),
        "forgetting_best_minus_last": forgetting_best_minus_last(R),
        "forgetting_first_minus_last": forgetting_first_minus_last(R),
        "forgetting_best_ever_minus_last": forgetting_best_ever_minus_last(R),
        "backward_transfer": backward_transfer(R),
        "forward_transfer": None if zero_shot is None else forward_transfer_zero_shot(R, zero_shot),
        "forward_transfer_from_scratch": None if scratch is None else forward_transfer_from_scratch(R, scratch),
        "intransigence": None if reference is None else intransigence(R, reference),
        "transfer": xtail_transfer(R),
        "xtail_average": xtail_average(R),
        "last": xtail_last(R),
        "trace_op": trace_op(R),
        "trace_bwt": trace_bwt(R),
    }


def diagnostics_change(rows: Sequence[Sequence[Mapping[str, Sequence[float]]]]) -> dict[str, list[float | None]]:
    """Return, by name, how far what the branches reported on each task has moved since it was learnt.

    rows[t][j]: name -> values, reported on task j after learning task t. The change is sum_i |last_i - first_i|, values
    that a later row has more of counting from 0; for shares of a mixture, twice the share that was routed elsewhere.
    """
    names = sorted({name for row in rows for cell in row for name in cell})
    return {name: [_moved(rows, j, name) for j in range(len(rows[0]))] for name in names}


def _moved(rows: Sequence[Sequence[Mapping[str, Sequence[float]]]], j: int, name: str) -> float | None:
    if j >= len(rows) or name not in rows[j][j] or name not in rows[-1][j]:
        return None
    first, last = list(rows[j][j][name]), list(rows[-1][j][name])
    first += [0.0] * (len(last) - len(first))
    return sum(abs(b - a) for a, b in zip(first, last, strict=True))


class Interval(NamedTuple):
    """The mean of n values with its confidence interval, in their unit; `low` and `high` are `None` for one value."""

    mean: float
    low: float | None
    high: float | None
    n: int


def mean_interval(values: Vector, level: float = 0.95) -> Interval | None:
    """Return mean +- t_{level, n-1} s / sqrt(n) (Student's interval over seeds, s with n - 1).

    `None` if a value is `None` or none is given.

    >>> [round(x, 3) for x in mean_interval([0.70, 0.72, 0.74])[:3]]
    [0.72, 0.67, 0.77]
    """
    if not 0.0 < level < 1.0:
        raise DataError(f"mean_interval: level = {level!r}; give a share between 0 and 1, e.g. 0.95")
    known = [_checked_cell(f"values[{i}]", value) for i, value in enumerate(values)]
    mean, n = _mean(known), len(known)
    if mean is None:
        return None
    if n == 1:
        return Interval(mean, None, None, n)
    squares = math.fsum((value - mean) ** 2 for value in known if value is not None)
    half = t_quantile(level, n - 1) * math.sqrt(squares / (n - 1) / n)
    return Interval(mean, mean - half, mean + half, n)


def t_quantile(level: float, freedom: int) -> float:
    """Return t with P(|x| <= t) = level for Student's t with v = `freedom` >= 1; bisection on atan(t / sqrt(v)).

    >>> round(t_quantile(0.95, 2), 3)
    4.303
    """
    low, high = 0.0, math.pi / 2
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if _t_share(middle, freedom) < level else (low, middle)
    return math.sqrt(freedom) * math.tan(low)


def _t_share(angle: float, freedom: int) -> float:
    """P(|x| <= sqrt(v) tan(angle)): the finite series for whole v (Abramowitz & Stegun 26.7.3 and 26.7.4)."""
    odd = freedom % 2
    power = math.cos(angle) if odd else 1.0
    term, total = power, power if freedom > 1 else 0.0
    for i in range(2 + odd, freedom - 1, 2):
        term *= math.cos(angle) ** 2 * (i - 1) / i
        total += term
    return 2 / math.pi * (angle + math.sin(angle) * total) if odd else math.sin(angle) * total


def _mean(values: Iterable[float | None]) -> float | None:
    """The mean, or None for nothing or for anything undefined."""
    cells = list(values)
    known = [cell for cell in cells if cell is not None]
    return math.fsum(known) / len(known) if known and len(known) == len(cells) else None


def _minus(a: float | None, b: float | None) -> float | None:
    return None if a is None or b is None else a - b


def _average(table: _Table, k: int) -> float | None:
    return _mean(table[k - 1][:k]) if k else None


def _best(table: _Table, j: int, rows: int) -> float | None:
    """The best of column j in the first `rows` rows; None if a row since task j was learned lacks it."""
    if rows <= j or any(row[j] is None for row in table[j:rows]):
        return None
    return max(cell for row in table[:rows] if (cell := row[j]) is not None)


def _seen(table: _Table, sizes: Sequence[int], k: int) -> float | None:
    known = [(cell, size) for cell, size in zip(table[k - 1][:k], sizes, strict=False) if cell is not None] if k else []
    return math.fsum(cell * size for cell, size in known) / sum(sizes[:k]) if known and len(known) == k else None


def _complete(R: Matrix) -> _Table:
    """The matrix of a finished stream (T = N), or no rows."""
    table = _checked(R)
    return table if table and len(table) == len(table[0]) else []


def _checked(R: Matrix) -> _Table:
    """The matrix as full rows of floats and None. Raises DataError naming the cell or row that cannot be used."""
    widths = [len(row) for row in R]
    width = max(widths, default=0)
    if widths != [width] * len(R) and widths != list(range(1, len(R) + 1)):
        raise DataError(f"R: rows have {widths} cells; give every row one cell a task (None where not measured)")
    if len(R) > width:
        raise DataError(f"R: {len(R)} rows but {width} columns; a row is a learned task, so there are at most as many")
    rows = [[_checked_cell(f"R[{t}][{j}]", cell) for j, cell in enumerate(row)] for t, row in enumerate(R)]
    return [row + [None] * (width - len(row)) for row in rows]


def _checked_cell(where: str, cell: object) -> float | None:
    if cell is None:
        return None
    number = float(cell) if isinstance(cell, numbers.Real) and not isinstance(cell, bool) else math.nan
    if not math.isfinite(number):
        raise DataError(f"{where} = {cell!r} is not a finite number; use None for a score that does not exist")
    return number


def _checked_vector(name: str, vector: Vector, table: _Table) -> list[float | None]:
    width = len(table[0]) if table else len(vector)
    if len(vector) != width:
        raise DataError(f"{name}: {len(vector)} values for {width} tasks; give one a task (None where not measured)")
    return [_checked_cell(f"{name}[{j}]", value) for j, value in enumerate(vector)]


def _checked_sizes(sizes: Sequence[int], table: _Table) -> list[int]:
    width = len(table[0]) if table else len(sizes)
    if len(sizes) != width:
        raise DataError(f"sizes: {len(sizes)} values for {width} tasks; give the number of test samples of each task")
    for j, size in enumerate(sizes):
        if isinstance(size, bool) or not isinstance(size, numbers.Integral) or size < 1:
            raise DataError(f"sizes[{j}] = {size!r}; give the number of test samples of task {j}, at least 1")
    return [int(size) for size in sizes]
