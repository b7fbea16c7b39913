"""The verbs, from Python. Everything public here is importable from `rankwise`."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from torch import nn

from rankwise import papers
from rankwise.adapters import (
    Branch,
    Change,
    Gate,
    Init,
    attach,
    detach,
    fold,
    forget_edits,
    grow,
    store,
    unwrapped,
)
from rankwise.adapters.branch import own_settings
from rankwise.adapters.inits import INITS
from rankwise.config import AdapterSettings, Config, merged, parse, parse_record, read_config
from rankwise.errors import StorageError, UsageError, masked, nearest
from rankwise.learning.bases import base_under, refuse_other, refuse_unfit
from rankwise.learning.learner import Learner
from rankwise.learning.ledger import Ledger
from rankwise.learning.processes import Processes
from rankwise.learning.recipe import Method, fitting
from rankwise.learning.results import finish
from rankwise.learning.run import Watch
from rankwise.learning.run import run as learn
from rankwise.models import Backbone, fingerprint, load_backbone
from rankwise.objectives import OBJECTIVES
from rankwise.reporting.page import left_behind
from rankwise.storage import write_folder
from rankwise.strategies import STRATEGIES, Strategy
from rankwise.streams import build
from rankwise.surgery.peft import from_peft, is_peft, origin, to_peft

FIRST_BLOCK = "1"
"""Label of the block that `adapt` starts."""


@dataclass(frozen=True)
class Run:
    """A finished run."""

    path: Path
    """Its directory."""
    results: dict[str, Any]
    """What results.json holds."""
    model: nn.Module
    """The model as it was left, adapter on."""
    report: Path | None = None
    """The page of the run, report.html in its directory; None: it could not be written."""


def methods() -> list[dict[str, Any]]:
    """Return one record a method: slug, title, paper, axis, identities, mergeable, peft, parameters, refuses."""
    return [papers.method(slug).record() for slug in papers.slugs()]


def adapt(
    base: nn.Module,
    method: str = "lora",
    *,
    rank: int | None = None,
    sites: str | Sequence[str] | None = None,
    seed: int = 0,
    data: object = None,
    gate: Mapping[str, Any] | None = None,
    **settings: Any,
) -> nn.Module:
    """Put the adapter of `method` on any torch module, in place; the base stops learning, the new block learns.

    Args:
        base: the module; it is changed and returned.
        method: a slug of `methods()`.
        rank: ranks of the block; None: the method's own choice, 8 for most.
        sites: "all-linear" or names, see `rankwise.adapters.pick_sites`; None: the method's own choice.
        seed: of the starting values.
        data: examples, for methods that start from data; none does yet.
        gate: settings of the method's gate, as under [adapter.gate] of a config.
        settings: other fields of [adapter]: layers, exclude, scale, dropout, init, form.

    A method's dynamics and strategies are no part of a module: a UserWarning names those that it is without.

    Raises:
        UsageError: an unknown method, setting or site, a method without an adapter, or no module to put it on; `base`
            is as it was then.

    >>> model = adapt(nn.Sequential(nn.Linear(4, 3)), "lora", rank=2)
    >>> [tuple(p.shape) for p in model.parameters() if p.requires_grad]
    [(2, 4), (3, 2)]
    """
    chosen = papers.method(method)
    if chosen.live != "adapter":
        raise UsageError(f"method {method!r} has no adapter to put on a model; it needs rankwise.run")
    if data is not None:
        raise UsageError(f"method {method!r} does not start from data; leave data out")
    refuse_unfit(base)
    named = {"rank": rank, "sites": sites, "gate": gate}
    given = {**settings, **{key: value for key, value in named.items() if value is not None}}
    adapter = parse(AdapterSettings, merged(chosen.defaults.get("adapter", {}), given), "adapt")
    if adapter.growth is not None:
        raise UsageError("growth belongs to a run, where tasks follow each other; leave it out of adapt")
    if adapter.dynamics:
        raise UsageError("dynamics act in rankwise.run, which owns the optimiser; leave them out of adapt")
    places = chosen.places(base, adapter)
    branch = branch_of(chosen, adapter)
    record = {"fingerprint": fingerprint(base)} if branch.init.residual else {}  # before it is edited
    attach(base, places, branch, {"method": method, "seed": seed, **record})
    grow(base, [Change("append", FIRST_BLOCK, adapter.rank)], seed)
    if absent := chosen.elsewhere():
        warnings.warn(f"adapt puts on the adapter of {method!r} alone; {absent}", stacklevel=2)
    return base


def save(model: nn.Module, path: str | Path) -> None:
    """Write the adapter of `model` as a folder of safetensors and JSON that names the base it belongs to.

    Tensors of the base that learn too, or have moved since it was adapted (a head, running statistics), come along.

    Raises:
        UsageError: no adapter is on it, or a weight that the method has edited learns besides.

    """
    model = unwrapped(model)
    write_folder(Path(path), store.files(model, base_under(model)), kind=store.KIND)


def load(base: nn.Module, path: str | Path) -> nn.Module:
    """Put a saved adapter (a rankwise folder, or a PEFT LoRA checkpoint) on `base`, in place, and return it.

    Raises:
        StorageError: the folder is damaged, or says it was learnt on other weights than `base` has.
        DataError: a PEFT checkpoint uses what is not read, or fits another model.
        ConflictError: `base` carries an adapter already.

    """
    path = Path(path)
    refuse_unfit(base)
    if is_peft(path):
        named = origin(path)
        if "fingerprint" in named and "quantize" not in named:  # a LoRA of a 4-bit base may go onto the whole one
            refuse_other(path, named, base)
        return from_peft(base, path)
    saved = store.read(path)
    refuse_other(path, saved.record["base"], base)
    chosen = papers.method(saved.record["method"])
    adapter = parse(AdapterSettings, saved.record["branch"], f"{path}/adapter.json")
    store.install(base, replace(branch_of(chosen, adapter), scale=adapter.scale), saved)
    return base


def merge(model: nn.Module, *, blocks: Sequence[str] | None = None) -> nn.Module:
    """Fold the adapter (only `blocks` of it, if named) into the base's weights, in place; return the plain module.

    Parameters of the base that learnt before it was adapted learn again.

    Raises:
        UsageError: no such block, the method's update depends on the input, or a weight cannot take it.

    """
    model = unwrapped(model)
    fold(model, blocks)
    forget_edits(model)
    return detach(model)


def export(
    model: nn.Module, path: str | Path, *, to: str = "peft", base_name: str = "", words: bytes | None = None
) -> None:
    """Write the adapter for another program; to = "peft" gives a LoRA checkpoint that stock PEFT and vLLM load.

    `words` takes the place of the card, for who knows more of what was learnt than the module does.
    """
    if to != "peft":
        raise UsageError(f"export to {to!r} does not exist; {nearest(to, ['peft'])}")
    model = unwrapped(model)
    to_peft(model, Path(path), {"name": masked(base_name), **base_under(model)}, words)


def branch_of(method: Method, settings: AdapterSettings) -> Branch:
    """Make the method's branch from [adapter], refusing unknown keys."""
    where = f"of method {method.slug!r}"
    known = own_settings(method.form)
    for key in settings.form:
        if key not in known:
            raise UsageError(f"adapter.form {where}: unknown key {key!r}; {nearest(key, known)}")
    form = parse_record(method.form, settings.form, f"adapter.form {where}")
    gate: Gate = parse_record(method.gate, settings.gate, f"adapter.gate {where}")
    scale = method.scaling(settings.scale, settings.rank)
    init = init_of(method, settings.init)
    return fitting(method, replace(form, gate=gate, scale=scale, dropout=settings.dropout, init=init))


def init_of(method: Method, name: str | None) -> Init:
    """Return the start called `name`: a common one, or the one a method brings along; None: the method's own."""
    if name is None or name == method.init.name:
        return method.init
    if name in INITS:
        return INITS[name]
    brought = {slug: papers.method(slug).init for slug in papers.slugs()}
    brought = {slug: init for slug, init in brought.items() if init.name not in INITS}
    if name not in brought:
        raise UsageError(f"adapter.init = {name!r}: no such init; {nearest(name, [*INITS, *brought])}")
    return brought[name]


def part_of(kind: str) -> type[Strategy]:
    """Return the part called `kind`: a strategy, or the dynamics of a method."""
    if kind in STRATEGIES:
        return STRATEGIES[kind]
    if kind in papers.slugs() and (own := papers.method(kind).dynamics) is not None:
        return own
    brought = {slug: part for slug in papers.slugs() if (part := papers.method(slug).dynamics) is not None}
    if kind not in brought:
        raise UsageError(f"strategy {kind!r} does not exist; {nearest(kind, [*STRATEGIES, *brought])}")
    return brought[kind]


def parts_of(config: Config, method: Method) -> list[Strategy]:
    """Make the parts of a run: its strategies in the order of their names, then the dynamics."""
    made = [_part(settings, config.seed, "strategy") for settings in config.strategy]
    made.sort(key=lambda part: part.name)  # additions commute but for rounding: the same bits in any order
    names = [part.name for part in made]
    if len(set(names)) < len(names):
        raise UsageError(f"strategy: {names} names a kind twice; give each once")
    dynamics = dynamics_of(config.adapter, method)
    return [*made, *([_part(dynamics, config.seed, "adapter.dynamics")] if dynamics else [])]


def dynamics_of(settings: AdapterSettings, method: Method) -> dict[str, Any]:
    """Return the settings of the dynamics with their kind: the one configured, or the method's own; {} for none."""
    own = {} if method.dynamics is None else {"kind": method.dynamics.name}
    found = {**own, **settings.dynamics}
    if found and "kind" not in found:
        raise UsageError(f"adapter.dynamics: method {method.slug!r} has none of its own; name one with kind = ...")
    return found


def _part(settings: Mapping[str, Any], seed: int, where: str) -> Strategy:
    if "kind" not in settings:
        raise UsageError(f"{where}: 'kind' is missing; add kind = ...")
    part = part_of(settings["kind"])
    values = {key: value for key, value in settings.items() if key != "kind"}
    return part(parse_record(part.Settings, values, f"{where} {part.name!r}"), seed)


def resolve(
    source: str | Path | Mapping[str, Any] | None = None, overrides: Sequence[str] = ()
) -> tuple[Config, Method]:
    """Return the complete config of a run, method defaults under the user's values, and its method."""
    if not isinstance(source, str | Path | Mapping | None):
        raise UsageError(f"a config is the path of a TOML file or a mapping, not {source!r:.80}")
    raw = read_config(source if source is not None else {}, overrides)
    where = str(source) if isinstance(source, str | Path) else "config"
    given = parse(Config, raw, where)
    method = papers.method(given.method)
    config = parse(Config, merged(method.defaults, raw), where)
    branch, dynamics = branch_of(method, config.adapter), dynamics_of(config.adapter, method)
    made = branch.record()
    adapter = {"init": made["init"], "gate": dict(vars(branch.gate)), "form": made["form"]}
    if dynamics:
        adapter["dynamics"] = _filled(dynamics, config.seed, "adapter.dynamics")
    parts = [_filled(settings, config.seed, "strategy") for settings in config.strategy]
    whole = merged(config.model_dump(exclude_none=True), {"adapter": adapter, "strategy": parts})
    return parse(Config, whole, where), method


def _filled(settings: Mapping[str, Any], seed: int, where: str) -> dict[str, Any]:
    """Return the settings of a part, complete."""
    part = _part(settings, seed, where)
    values = {key: value for key, value in asdict(part.settings).items() if value is not None}
    return {"kind": part.name, **values}


def run(
    config: str | Path | Mapping[str, Any] | None = None,
    *,
    out: str | Path | None = None,
    overrides: Sequence[str] = (),
    watch: Watch | None = None,
    data: Mapping[str, Any] | None = None,
) -> Run:
    """Learn the stream that `config` (a TOML file or a mapping) describes, and write everything to `out`.

    Args:
        config: what to run; left-out keys take the method's defaults, then the schema's.
        out: the run's directory; must not hold a run yet. Default: runs/<stream>-<method>-seed<seed>.
        overrides: "key=value" texts laid over the config, as the command's --set takes them.
        watch: is told what goes on.
        data: in-memory data sets that the config names as "memory:<name>".

    Raises:
        UsageError: the config is wrong; nothing was started.
        RankwiseError: anything else that went wrong; `resume` continues from the last snapshot.

    """
    complete, method = resolve(config, overrides)
    root = Path(config).parent if isinstance(config, str | Path) else Path()
    complete = _whole_paths(complete, root)
    ledger = Ledger(Path(out) if out is not None else default_folder(complete))
    learner = learner_of(complete, method, data)
    with _writing(learner, ledger):
        if learner.processes.first:
            ledger.open(complete, learner.stream.record, base_record(learner.backbone))
        return _go(learner, ledger, watch or Watch())


def resume(path: str | Path, *, watch: Watch | None = None, data: Mapping[str, Any] | None = None) -> Run:
    """Continue an interrupted run from its newest whole snapshot, to the bit; a finished run is only written out again.

    Raises:
        StorageError: no run is there, or the base or data have changed since it was started.

    """
    ledger, learner = reopened(path, data)
    with _writing(learner, ledger):
        return _go(learner, ledger, watch or Watch())


def reopened(path: str | Path, data: Mapping[str, Any] | None = None) -> tuple[Ledger, Learner]:
    """Put the parts of a saved run together again, on the base and data it was started with; see `resume`."""
    ledger = Ledger(Path(path))
    if not (ledger.path / "config.toml").is_file():
        raise StorageError(f"{path}: no run there (config.toml is missing); start one with `rankwise run`")
    learner = learner_of(*resolve(ledger.path / "config.toml"), data)
    ledger.refuse_changed(learner.stream.record, base_record(learner.backbone))
    return ledger, learner


def learner_of(config: Config, method: Method, data: Mapping[str, Any] | None = None) -> Learner:
    """Load base and stream and put the parts of a run together; nothing is trained or written."""
    processes = Processes.start(config.train)
    stream = build(config.stream, config.seed, data=data)
    backbone = backbone_of(config)
    if stream.modality != backbone.modality:
        raise UsageError(
            f"model {backbone.name!r} reads {backbone.modality}, stream {stream.name!r} holds {stream.modality}; "
            "change one of them"
        )
    objective = OBJECTIVES[config.objective.kind].made(config.objective, backbone, stream, config.seed)
    branch, parts = branch_of(method, config.adapter), parts_of(config, method)
    return Learner(config, method, branch, backbone, stream, objective, parts, processes)


def backbone_of(config: Config) -> Backbone:
    """Load the base of a run: with its language head where the objective asks for answers in words."""
    answers = OBJECTIVES[config.objective.kind].answers(config.objective)
    return load_backbone(**config.model.model_dump(), answers=answers)


def default_folder(config: Config) -> Path:
    """Return a folder under runs/ that is not taken yet."""
    stem = f"{config.stream.name}-{config.method}-seed{config.seed}"
    names = [stem, *(f"{stem}-{i}" for i in range(2, 10_000))]
    return next(path for name in names if not (path := Path("runs") / name).exists())


def _go(learner: Learner, ledger: Ledger, watch: Watch) -> Run:
    progress = learn(learner, ledger, watch)
    results = finish(learner, progress, ledger, base_record(learner.backbone))
    page = left_behind(ledger.path, watch) if learner.processes.first else None
    return Run(ledger.path, results, learner.backbone.module, page)


def _writing(learner: Learner, ledger: Ledger) -> AbstractContextManager[None]:
    return ledger.locked() if learner.processes.first else nullcontext()


def base_record(backbone: Backbone) -> dict[str, str]:
    """Return what a run and its adapter say of the base they belong to."""
    quantize = {} if backbone.quantize is None else {"quantize": backbone.quantize}
    form = {} if backbone.language is None else {"form": backbone.language.form}
    return {"name": backbone.name, "fingerprint": backbone.fingerprint, **quantize, **form}


def _whole_paths(config: Config, root: Path) -> Config:
    """Make file names in a config independent of the folder it lies in."""
    raw = config.model_dump(exclude_none=True)
    for table in (raw["stream"], *raw["stream"].get("tasks", ())):
        for key in ("train", "test"):
            if key in table and not table[key].startswith(("hub:", "memory:")):
                table[key] = str((root / table[key]).resolve())
    if (root / raw["model"]["name"]).is_dir():
        raw["model"]["name"] = str((root / raw["model"]["name"]).resolve())
    return parse(Config, raw, "config")
