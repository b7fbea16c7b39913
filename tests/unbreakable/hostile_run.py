"""Open hostile files, each in a process of its own that is watched, and say what came of it.

Run as `python hostile_run.py FOLDER [EVERY]`: prints one JSON line a case; EVERY n-th case only.
"""

from __future__ import annotations

import json
import os
import resource
import select
import shutil
import signal
import sys
import sysconfig
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hostile import CANARY, cases, png, sound_parquet

SECONDS, MEGABYTES = 2.0, 200
"""Processor time, and memory above what is declared, that opening may take."""
PATIENCE = 60
"""Seconds on the wall after which a case counts as stuck."""
RUNS = {"subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.fork", "os.forkpty", "pty.spawn", "os.spawn"}
NETWORK = {
    "socket.connect",
    "socket.getaddrinfo",
    "socket.gethostbyname",
    "socket.bind",
    "socket.sendto",
    "urllib.Request",
}
CHANGES = {
    "os.remove",
    "os.rename",
    "os.mkdir",
    "os.rmdir",
    "os.truncate",
    "os.link",
    "os.symlink",
    "os.chmod",
    "shutil.rmtree",
}


def roots() -> tuple[str, ...]:
    """Folders that Python and the libraries read for themselves."""
    paths = {sys.prefix, sys.base_prefix, *sysconfig.get_paths().values(), str(Path(__file__).parents[2] / "src")}
    paths.add(str(Path(__file__).parent))
    system = (
        "/proc/",
        "/sys/",
        "/dev/null",
        "/dev/urandom",
        "/usr/share/zoneinfo",
        "/usr/lib",
        "/lib",
        "/etc/localtime",
    )
    return (*(os.path.realpath(path) + "/" for path in paths), *system)


class Watch:
    """Notes what Python is asked to do while a case is open."""

    def __init__(self, place: Path) -> None:
        self.place, self.roots, self.on = os.path.realpath(place) + "/", roots(), False
        self.breaches: list[str] = []
        sys.addaudithook(self.see)

    def see(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not self.on:
            return
        if event in RUNS | NETWORK or event == "pickle.find_class":
            self.breaches.append(f"{event} {arguments!r}"[:200])
        elif event == "import" and "canary" in str(arguments[0]):
            self.breaches.append(f"imports {arguments[0]}")
        elif event == "open" and isinstance(arguments[0], str | bytes):
            self.opened(os.fsdecode(arguments[0]), arguments[1], arguments[2])
        elif event in CHANGES and isinstance(arguments[0], str | bytes) and not self.inside(os.fsdecode(arguments[0])):
            self.breaches.append(f"{event} {arguments[0]!r}"[:200])

    def inside(self, path: str) -> bool:
        return (os.path.realpath(path) + "/").startswith(self.place)

    def opened(self, path: str, mode: Any, flags: int) -> None:
        writes = isinstance(flags, int) and flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
        known = not writes and os.path.realpath(path).startswith(self.roots)
        if not self.inside(path) and not known:
            self.breaches.append(f"opens {path!r}")


def memory(key: str) -> int:
    """Bytes that this process holds (VmRSS) or has held at most (VmHWM)."""
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith(key))


def watched(opens: Callable[[Path], object], write: Callable[[Path], str], folder: Path) -> dict[str, Any]:
    """In a child: write the case, open it, and return what happened."""
    from rankwise.errors import RankwiseError

    target = folder / write(folder)
    os.chdir(folder)
    watch = Watch(folder)
    with open("/proc/self/clear_refs", "w") as clear:
        clear.write("5")  # forget the peak so far
    held, begun = memory("VmRSS"), time.process_time()
    watch.on = True
    try:
        opens(target)
        found = {"outcome": "read", "said": ""}
    except RankwiseError as error:
        watch.on = False
        found = {"outcome": "refused", "said": str(error)}
    except BaseException as error:
        watch.on = False
        where = traceback.extract_tb(error.__traceback__)[-1]
        found = {
            "outcome": "raised",
            "said": f"{type(error).__name__}: {str(error)[:200]} at {where.filename}:{where.lineno}",
        }
    watch.on = False
    found |= {"seconds": time.process_time() - begun, "bytes": memory("VmHWM") - held, "breaches": watch.breaches}
    return found


def attempt(case: Any, opens: Callable[[Path], object], folder: Path) -> dict[str, Any]:
    """Do it in a child that is killed when it takes too long or too much."""
    folder.mkdir()
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        os.close(reader)
        sink = os.open(os.devnull, os.O_RDWR)
        for number in (0, 1, 2):
            os.dup2(sink, number)
        limit = memory("VmSize") + (3 << 30) + case.declared
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        found = watched(opens, case.write, folder)
        with os.fdopen(writer, "w") as pipe:
            pipe.write(json.dumps(found))
        os._exit(0)
    os.close(writer)
    ready = select.select([reader], [], [], PATIENCE)[0]
    if not ready:
        os.kill(child, signal.SIGKILL)
    with os.fdopen(reader) as pipe:
        text = pipe.read()
    _, status = os.waitpid(child, 0)
    ended = f"stuck for {PATIENCE} s" if not ready else f"ended by {status}"
    found = json.loads(text) if text else {"outcome": ended, "said": "", "seconds": 0.0, "bytes": 0, "breaches": []}
    canary = [str(file) for file in folder.rglob("*canary*") if file.is_file()]
    shutil.rmtree(folder, ignore_errors=True)
    return {**found, "canary": canary}


def openers(model: Callable[[], Any]) -> dict[str, Callable[[Path], object]]:
    """How each kind of thing is opened: as a user's command does."""
    import rankwise
    from rankwise import api, saved
    from rankwise.cli.common import check_blocks, check_config, check_tasks
    from rankwise.learning.ledger import Ledger
    from rankwise.models import load_backbone

    def adapter(path: Path) -> None:
        if (path / "adapter.json").exists():
            check_blocks(path, [])
        rankwise.load(model(), path)

    def config(path: Path) -> None:
        check_config(path, [])
        api.resolve(path)

    def base(path: Path) -> None:
        backbone = load_backbone(str(path))
        backbone.features(backbone.encode(["the cat sits"]))

    def run(path: Path) -> None:
        check_tasks(path, ["digits-1"], "--task")
        saved.log(path)
        Ledger(path).last()
        ledger, learner = api.reopened(path)
        saved.past.restore_task_end(learner, ledger)
        if ledger.undoing() is not None:
            ledger.clean()
        saved.learnt(path)

    return {"adapter": adapter, "config": config, "rows": rows, "base": base, "run": run}


def rows(path: Path) -> None:
    """Read every row of every part."""
    from rankwise.streams.sources import choose_part, parts

    held = parts(path.name, root=path.parent)
    for name in held:
        found = choose_part(held, name, path.name, None, None)
        found.named()
        assert all(row is not None for row in found.inputs)


def sound_things(place: Path, model: Callable[[], Any]) -> None:
    """Make what is sound, of every kind, and warm up all that opens it."""
    import datasets
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    import rankwise

    adapted = rankwise.adapt(model(), "lora", rank=2)
    rankwise.save(adapted, place / "ours")
    rankwise.export(adapted, place / "peft")
    words = {word: i for i, word in enumerate(["?", "the", "cat", "sits"])}
    size = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    BertModel(BertConfig(vocab_size=len(words), max_position_embeddings=32, **size)).save_pretrained(place / "base")
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="?"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="?").save_pretrained(place / "base")
    stream = {"classes_per_task": 5, "train_limit": 8, "test_limit": 8, "validation": 0}
    train = {"steps": 1, "threads": 1, "device": "cpu"}
    rankwise.run(
        {"stream": stream, "train": train, "method": "lora", "adapter": {"rank": 2, "sites": ["q_proj"]}},
        out=place / "run",
    )
    datasets.disable_progress_bars()
    rows = {"input": ["OUTSIDE"] * 4, "target": ["OUTSIDE"] * 4}
    datasets.Dataset.from_dict(rows).save_to_disk(str(place / "saved"))
    (place / "it" / "cat").mkdir(parents=True)
    (place / "it" / "cat" / "a.png").write_bytes(png())


def main(folder: Path, every: int = 1, only: str = "") -> None:
    """Open all of them."""
    sys.dont_write_bytecode = True
    os.fsync = lambda descriptor: None  # what is written here need not outlive the machine
    import torch
    from torch import nn

    torch.set_num_threads(1)
    (folder / "lib").mkdir()
    (folder / "lib" / f"{CANARY}.py").write_text("open('canary was imported', 'w').close()\n")
    sys.path.append(str(folder / "lib"))

    def model() -> nn.Module:
        torch.manual_seed(1)
        return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 4))

    sound = folder / "outside"
    sound.mkdir()
    sound_things(sound, model)
    opens = openers(model)
    (sound / "rows.parquet").write_bytes(sound_parquet())
    for kind, name in {"adapter": "ours", "base": "base", "rows": "rows.parquet", "run": "run"}.items():
        opens[kind](sound / name)
    for kind, name in {"adapter": "peft", "rows": "saved", "config": "run/config.toml"}.items():
        opens[kind](sound / name)
    chosen = [case for case in cases(sound)[::every] if case.name.startswith(tuple(only.split(",")))]
    for number, case in enumerate(chosen):
        begun = time.time()
        found = attempt(case, opens[case.kind], folder / f"case{number}")
        found |= {"name": case.name, "must": case.refused, "declared": case.declared, "wall": time.time() - begun}
        print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), *map(int, sys.argv[2:3]), *sys.argv[3:4])
