"""Every command that writes, small enough to be failed a thousand times: what was there before, and what to do next.

The commands are the real ones (`rankwise.cli.main`); what takes long and writes nothing is made once: the base is a
layer of 64 x 6, the stream has forty digits, a claim is a number, a plot is a word.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import hashlib
import io
import json
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import transformers.modeling_utils
from torch import Tensor, nn
from transformers import ViTConfig, ViTModel

import rankwise
from rankwise import api, claims, cli, demo, models, papers, saved
from rankwise.claims.harness import measuring, page
from rankwise.claims.harness.claim import Claim, Threshold
from rankwise.config import load as load_config
from rankwise.config import to_toml
from rankwise.errors import StorageError
from rankwise.files import TEMPORARY
from rankwise.learning import ledger
from rankwise.learning.run import Watch
from rankwise.models import Backbone, fingerprint
from rankwise.reporting import page as reports
from rankwise.storage import ASIDE, MANIFEST, read_folder

CLOCKED = ("time", "wall_seconds", "seconds", "peak_memory_bytes")
"""What may differ between two runs of one config."""
WRITER = (transformers.modeling_utils, "safe_save_file")
"""Writes past the calls of Python: see `Disk.ruling`."""
Act = Callable[[Path], tuple[int, str]]
"""Does something in a folder; returns the exit code and what was said on stderr."""
View = dict[str, Any]


@dataclass(frozen=True)
class Scene:
    """One command in one situation."""

    name: str
    before: Path | None
    """What is there before, copied; None: nothing."""
    act: Act
    """The command."""
    after: Mapping[str, tuple[Act, View | None]]
    """What may be done next, by name, and what must be there then; None: what the command leaves.

    What is called `again` is done only after the command did not return 0: it would do something further.
    """
    writers: tuple[tuple[Any, str], ...] = ()


def command(*words: str) -> Act:
    """Return the command as a function of the folder that stands for HERE in its words."""

    def act(folder: Path) -> tuple[int, str]:
        heard = io.StringIO()
        with contextlib.chdir(folder), contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(heard):
            code = cli.main([word.replace("HERE", str(folder)) for word in words])
        return code, heard.getvalue()

    return act


def view(folder: Path) -> View:
    """Return what a reader finds below `folder`, by path: saved folders and files, clocks left out."""
    found: View = {}
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        name = path.name.removesuffix(ASIDE).removeprefix(".") if path.name.endswith(ASIDE) else path.name
        if TEMPORARY in name or name == ".lock" or (name != path.name and (folder / name).exists()):
            continue
        if path.is_file():
            found[name] = content(path)
        elif (path / MANIFEST).is_file():
            found[name] = saved_folder(folder / name, json.loads((path / MANIFEST).read_text())["kind"])
        else:
            found |= {f"{name}/{inner}": value for inner, value in view(path).items()}
    return found


def saved_folder(path: Path, kind: str) -> Any:
    """Return what a saved folder holds, or that it is not whole."""
    try:
        return {part: content(file) for part, file in read_folder(path, kind=kind).items()}
    except StorageError as error:
        return f"not whole: {str(error).partition(path.name)[2]}"


def content(path: Path) -> Any:
    """Return what a file says, without clocks: JSON values, whole events, else a hash."""
    data = path.read_bytes()
    if path.suffix == ".jsonl":
        lines = data.splitlines()[: data.count(b"\n")]
        return [unclocked(json.loads(line)) for line in lines]
    with contextlib.suppress(ValueError):
        if path.suffix == ".json":
            return unclocked(json.loads(data))
    return hashlib.sha256(data).hexdigest()


def unclocked(value: Any) -> Any:
    """Leave out what clocks decide."""
    if isinstance(value, dict):
        return {key: unclocked(inner) for key, inner in value.items() if key not in CLOCKED}
    return [unclocked(inner) for inner in value] if isinstance(value, list) else value


def leftovers(folder: Path) -> list[str]:
    """Return what writers left behind."""
    return [path.name for path in folder.rglob(".*") if TEMPORARY in path.name or path.name.endswith(ASIDE)]


# The small world.


class Little(nn.Module):
    """64 pixels to 6 features."""

    def __init__(self) -> None:
        """Draw the weights."""
        super().__init__()
        self.layer = nn.Linear(64, 6)

    def forward(self, pixel_values: Tensor) -> Any:
        """Return a record like that of a model of transformers."""
        return SimpleNamespace(last_hidden_state=self.layer(pixel_values))


def little() -> Backbone:
    """Make the base."""
    with torch.random.fork_rng():
        torch.manual_seed(7)
        module = Little().eval().requires_grad_(False)

    def encode(inputs: Any) -> dict[str, Tensor]:
        return {"pixel_values": torch.as_tensor(inputs).float().reshape(len(inputs), -1)[:, :64] / 255}

    def pool(output: Any, mask: Tensor | None) -> Tensor:
        return output.last_hidden_state.tanh()

    return Backbone("little", module, "image", 6, fingerprint(module), encode, pool, ("pixel_values",))


@contextlib.contextmanager
def small_world(folder: Path) -> Iterator[None]:
    """Load each base and each stream once; scratch files of libraries go below `folder`."""
    bases, streams, real_load, real_build = {"little": little()}, {}, models.load_backbone, api.build

    def load(name: str, **settings: Any) -> Backbone:
        key = "little" if name.startswith("embedded:") else Path(name).name
        if key not in bases:
            bases[key] = real_load(name, **settings)
        return replace(bases[key], module=copy.deepcopy(bases[key].module))

    def build(settings: Any, seed: int, data: Any = None) -> Any:
        key = settings.model_dump_json(), seed
        if key not in streams:
            streams[key] = real_build(settings, seed)
        return streams[key]

    parsed = functools.cache(lambda tokens: cli.app.parse_args(tokens, print_error=False, exit_on_error=False))

    def program(tokens: list[str], **_: Any) -> None:
        act, words, _ = parsed(tuple(tokens))
        act(*words.args, **words.kwargs)

    sizes = (Threshold("size", "<=", 1.0),)
    claim = Claim("made", "1", "one", "nowhere", "Small.", sizes, lambda seed: {"size": seed / 9}, seeds=2)
    for_show = demo.Size(steps=1, lr=3e-3, validation=4, limit=8)
    with contextlib.ExitStack() as stack:
        for owner, name, value in (
            (api, "load_backbone", load),
            (saved, "load_backbone", load),
            (api, "build", build),
            (cli, "program", program),
            (papers, "_plugins", functools.cache(papers._plugins)),
            (ledger, "environment", functools.cache(ledger.environment)),
            (load_config, "TypeAdapter", functools.cache(load_config.TypeAdapter)),
            (claims, "slugs", lambda: ["made"]),
            (claims, "claims_of", lambda slug: (claim,)),
            (measuring, "claims_of", lambda slug: (claim,)),
            (page, "slugs", lambda: ["made"]),
            (reports, "page_of_run", lambda record: "<html>one run</html>"),
            (reports, "page_of_runs", lambda *_: ("<html>several runs</html>", [])),
            (demo, "FAST", for_show),
            (tempfile, "tempdir", str(folder)),
        ):
            stack.callback(setattr, owner, name, getattr(owner, name))
            setattr(owner, name, value)
        yield


class Stop(Watch):
    """Ends a run after so many steps."""

    def __init__(self, steps: int) -> None:
        """Count down from `steps`."""
        self.steps = steps

    def stepped(self, done: int, loss: float) -> None:
        """Count."""
        self.steps -= 1
        if not self.steps:
            raise KeyboardInterrupt


TRAIN = {"steps": 2, "batch_size": 4, "device": "cpu", "threads": 1, "snapshot_seconds": 0, "log_every": 1}
STREAM = {"name": "digits", "classes_per_task": 5, "train_limit": 10, "test_limit": 5, "validation": 5}
VARIANTS: Mapping[str, Mapping[str, Any]] = {
    "mora": {"method": "mora", "adapter": {"rank": 2}},
    "osft": {"method": "osft", "adapter": {"dynamics": {"frozen": "importance", "examples": 4}}},
    "finetune": {"method": "finetune"},
    "replay": {"method": "lora", "strategy": [{"kind": "replay", "size": 4, "batch_size": 2}], "adapter": {"rank": 2}},
    "adalora": {"method": "adalora"},
    "joint": {"method": "joint"},
}
"""What is learnt: blocks a task, an edited base, the whole base, a memory, ranks that change, one task for all."""


def scenes(home: Path) -> Iterator[Scene]:
    """Make the scenes, with what is there before each, below `home`."""
    for base in ("vit", "little"):
        with torch.random.fork_rng():
            torch.manual_seed(7)
            vit = ViTConfig(
                hidden_size=8,
                num_hidden_layers=1,
                num_attention_heads=2,
                intermediate_size=8,
                image_size=8,
                patch_size=4,
            )
            ViTModel(vit, add_pooling_layer=False).save_pretrained(home / base)
    for name, table in VARIANTS.items():
        yield from _runs(home, name, {"model": {"name": str(home / "little")}, **table})
    yield from _saved(home)
    yield from _others(home)


def _runs(home: Path, name: str, table: Mapping[str, Any]) -> Iterator[Scene]:
    """Yield the commands that write a run's directory."""
    config = home / f"{name}.toml"
    text = to_toml(api.resolve({"stream": STREAM, "train": TRAIN, **table})[0])
    config.write_text(text)
    start, resume = command("run", str(config), "--out", "HERE/run"), command("resume", "HERE/run")

    def go_on(folder: Path) -> tuple[int, str]:
        return (resume if (folder / "run" / "config.toml").is_file() else start)(folder)

    yield Scene(f"run {name}", None, start, {"resume": (go_on, None)})
    torn = home / f"{name}-torn"
    steps = 3 if table["method"] != "joint" else 2
    with contextlib.suppress(KeyboardInterrupt):
        rankwise.run(config, out=torn / "run", watch=Stop(steps))
    newest = sorted((torn / "run" / "checkpoints").glob("step-*"))[-1]
    with (newest / "state.safetensors").open("r+b") as file:
        file.truncate(20)
    yield Scene(f"resume {name}", torn, resume, {"resume": (resume, None)})
    whole = home / f"{name}-whole"
    whole.mkdir()
    start(whole)
    yield Scene(f"resume {name} again", whole, resume, {"resume": (resume, None)})
    undo = command("undo", "HERE/run")
    done = {"again": (undo, None), "resume": (resume, view(whole))}
    yield Scene(f"undo {name}", whole, undo, done)
    if table["method"] != "joint":
        once = shutil.copytree(whole, home / f"{name}-once")
        undo(once)
        yield Scene(f"undo {name} twice", once, undo, done)


def _saved(home: Path) -> Iterator[Scene]:
    """Yield the commands that write a new folder from a run."""
    config = {"stream": STREAM, "train": TRAIN, "method": "lora", "model": {"name": str(home / "vit")}}
    learnt, other = home / "learnt", home / "other"
    for seed, folder in enumerate((learnt, other)):
        rankwise.run({**config, "seed": seed}, out=folder / "run")
    for verb in ("merge", "export"):
        make = command(verb, "HERE/run", "--out", "HERE/made")
        yield Scene(verb, learnt, make, {"same": (unless("made", make), None)}, (WRITER,))
    first = saved.learnt(learnt / "run")[0].module
    second = saved.learnt(other / "run")[0].module
    rankwise.save(first, other / "made")

    def save(folder: Path) -> tuple[int, str]:
        try:
            rankwise.save(second, folder / "made")
        except StorageError as error:
            return 1, f"error: {error}\n"
        except KeyboardInterrupt:
            return cli.STOPPED, "stopped; call it again\n"
        return 0, ""

    yield Scene("save", None, save, {"same": (save, None)})
    yield Scene("save over", other, save, {"same": (save, None)})
    path = command("path", "HERE/run", "--alphas", "2", "--plot", "HERE/line.svg")
    yield Scene("path", learnt, path, {"same": (path, None)})
    report = command("report", "HERE/run", "--plots", "HERE/plots")
    yield Scene("report", learnt, report, {"same": (report, None)})
    redrawn = shutil.copytree(learnt, home / "redrawn")
    (redrawn / "line.svg").write_text("an older plot")
    yield Scene("path over", redrawn, path, {"same": (path, None)})


def unless(name: str, act: Act) -> Act:
    """Return `act`, done only where `name` is not there yet: a new folder is asked for, and it may be complete."""
    return lambda folder: (0, "") if (folder / name).exists() else act(folder)


def _others(home: Path) -> Iterator[Scene]:
    """Yield the commands that write many runs, and the page of claims."""
    config = home / "sweep.toml"
    table = {
        "method": "lora",
        "stream": STREAM,
        "train": {**TRAIN, "steps": 1},
        "model": {"name": str(home / "little")},
    }
    config.write_text(to_toml(api.resolve(table)[0]))
    grid = ("--grid", "train.lr=[0.01, 0.1]", "--seeds", "1", "--tune-tasks", "1")
    sweep = command("sweep", str(config), *grid, "--out", "HERE/sweep")
    yield Scene("sweep", None, sweep, {"same": (sweep, None)})
    show = command("demo", "--fast", "--out", "HERE/demo")
    yield Scene("demo", None, show, {"same": (show, None)})
    claim = command("claims", "--write", "--jobs", "1")
    yield Scene("claims", None, claim, {"same": (claim, None)})
    old = home / "claims-old"
    old.mkdir()
    claim(old)
    shutil.rmtree(old / "runs")
    for page_ in ("claims.json", "CLAIMS.md"):
        (old / page_).write_text((old / page_).read_text().replace("Small", "Smaller"))
    yield Scene("claims over", old, claim, {"same": (claim, None)})
