from __future__ import annotations

import json
import signal
import tomllib

import pytest
from fresh import python

from rankwise.cli import main
from rankwise.cli.common import loading


def test_run_prints_matrix_summary_and_folder(finished) -> None:
    assert finished.done.returncode == 0, finished.done.stderr
    out = finished.done.stdout
    results = json.loads((finished.folder / "results.json").read_text())
    first = f"1 digits-1  {results['matrix'][0][0]:>8.2f}         -         -         -         -"
    assert first in out.splitlines()
    summary = out.split("summary\n")[1].splitlines()[1].split()
    assert summary[:2] == ["lora", f"{results['final_average']:.2f}"]
    assert summary[2] == f"{round(results['forgetting_first_minus_last'], 2):.2f}"
    assert out.splitlines()[-1] == f"run directory: {finished.folder}"


def test_progress_goes_to_stderr_as_lines(finished) -> None:
    lines = finished.done.stderr.splitlines()
    starts = [line for line in lines if line.startswith("task ")]
    assert starts == [f"task {i}/5  digits-{i}: 3 steps" for i in range(1, 6)]
    assert sum(line.startswith("  after digits-") for line in lines) == 5


def test_overrides_reach_the_run(finished) -> None:
    written = tomllib.loads((finished.folder / "config.toml").read_text())
    assert (written["seed"], written["method"], written["train"]["steps"]) == (3, "lora", 3)


def test_json_is_results_json_and_nothing_else(finished, tmp_path, capsys) -> None:
    code = main(["run", str(finished.config), "--set=train.steps=1", "--out", str(tmp_path / "r"), "--json"])
    printed = json.loads(capsys.readouterr().out)
    assert code == 0
    assert printed == json.loads((tmp_path / "r" / "results.json").read_text())
    assert printed["steps"] == 5


def test_a_taken_folder_is_refused_and_left_alone(finished, capsys) -> None:
    before = {path: path.stat().st_mtime_ns for path in finished.folder.rglob("*") if path.name != ".lock"}
    assert main(["run", str(finished.config), "--out", str(finished.folder)]) == 2
    error = capsys.readouterr().err
    assert f"error: {finished.folder} holds a run already; `rankwise resume {finished.folder}`" in error
    assert "Traceback" not in error
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_resume_of_a_finished_run_says_the_same(finished, capsys) -> None:
    saved = json.loads((finished.folder / "results.json").read_text())
    assert main(["resume", str(finished.folder), "--json"]) == 0
    again = json.loads(capsys.readouterr().out)
    assert again["matrix"] == saved["matrix"]
    assert again["final_average"] == saved["final_average"]


def test_ctrl_c_says_how_to_continue_and_resume_does(finished, start, tmp_path, capsys) -> None:
    folder = tmp_path / "a run"
    process = start(
        "run", finished.config, "--set", "train.steps=30", "--set", "stream.classes_per_task=5", "--out", folder
    )
    for line in process.stderr:
        if line.startswith("task 2/2"):
            process.send_signal(signal.SIGINT)
            break
    out, err = process.communicate(timeout=120)
    assert process.returncode == 130
    assert (out, err.splitlines()[-1]) == ("", f"stopped; continue with `rankwise resume '{folder}'`")
    assert "Traceback" not in err
    assert not (folder / "results.json").exists()
    assert main(["resume", str(folder), "--json"]) == 0
    results = json.loads(capsys.readouterr().out)
    assert results["steps"] == 60
    assert all(score is not None for score in results["matrix"][-1])


def test_stopped_before_anything_was_written(finished, tmp_path, monkeypatch, capsys) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("rankwise.api.run", interrupted)
    assert main(["run", str(finished.config), "--out", str(tmp_path / "r")]) == 130
    assert capsys.readouterr().err == "stopped; nothing was written yet\n"


SWALLOWED = """
import signal, sys
from rankwise.cli import main

class Finalised:
    def __del__(self):
        signal.raise_signal(signal.SIGINT)
        for _ in range(100):  # an exception of the handler would be raised, and dropped, here
            pass

class Presses:
    def find_spec(self, name, *_):
        if name == "rankwise.api":
            Finalised()

signal.signal(signal.SIGINT, signal.default_int_handler)  # where the tests run in the background it is ignored
sys.meta_path.insert(0, Presses())
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.parametrize("command", ["run", "resume"])
def test_ctrl_c_that_a_finaliser_hears_while_libraries_load_stops_it(finished, tmp_path, command) -> None:
    words = {"run": [finished.config, "--out", tmp_path / "r"], "resume": [finished.folder]}[command]
    done = python("-c", SWALLOWED, command, *map(str, words))
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "stopped; nothing was written yet\n")
    assert not (tmp_path / "r").exists()


def test_ctrl_c_is_heard_as_before_once_the_work_begins() -> None:
    before = signal.getsignal(signal.SIGINT)
    with loading():
        pass
    assert signal.getsignal(signal.SIGINT) is before


@pytest.mark.parametrize("override", ["adapter.gate.top_kk=4", 'model.name="embedded:vti"', "seed=-1"])
def test_what_only_the_heavy_parts_know_is_refused_all_the_same(finished, tmp_path, capsys, override) -> None:
    folder = tmp_path / "r"
    line = ["run", str(finished.config), "--set", 'method="mora"', "--set", override, "--out", str(folder)]
    assert main(line) == 2
    assert capsys.readouterr().err.startswith("error: ")
    assert not (folder / "config.toml").exists()
