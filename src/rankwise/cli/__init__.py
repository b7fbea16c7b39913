"""The command `rankwise`: one command a file, each a function whose docstring is its help.

Nothing heavy is imported here or at the top of a command's file, so that help and the errors of a mistyped line come at
once. Exit codes: 0 done, 1 failed, 2 misused, 130 stopped by the user.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import Annotated

from cyclopts import App, CycloptsError, UnknownCommandError, UnusedCliTokensError
from cyclopts import Parameter as Option

from rankwise import __version__
from rankwise.cli.claims import claims
from rankwise.cli.common import STOPPED
from rankwise.cli.compare import compare
from rankwise.cli.demo import demo
from rankwise.cli.evaluate import evaluate
from rankwise.cli.export import export
from rankwise.cli.log import log
from rankwise.cli.merge import merge
from rankwise.cli.methods import methods
from rankwise.cli.path import path
from rankwise.cli.report import report
from rankwise.cli.resume import resume
from rankwise.cli.run import run
from rankwise.cli.schema import schema
from rankwise.cli.show import show
from rankwise.cli.sweep import sweep
from rankwise.cli.undo import undo
from rankwise.errors import RankwiseError, UsageError, masked, nearest
from rankwise.files import remedy

FAILED, MISUSED = 1, 2
NO_MEMORY = ("out of memory", "can't allocate memory", "can't start new thread")
SMALLER = "nothing saved is lost: give a smaller train.batch_size or a larger train.accumulate, or free memory"

HELP = """Teach a pretrained model a stream of tasks with low-rank updates.

Example: rankwise demo"""

app = App(name="rankwise", help=HELP, version=__version__, help_format="plaintext", suppress_keyboard_interrupt=False)
RUNS = (demo, run, resume, log, evaluate, path, undo, merge, export)
MANY = (sweep, compare, report, claims)
LISTS = (methods, show, schema)
COMMANDS = (*RUNS, *MANY, *LISTS)
NAMES = tuple(command.__name__ for command in COMMANDS)
for number, command in enumerate(COMMANDS):
    app.command(command, sort_key=number)

program = app.meta
program.suppress_keyboard_interrupt = False
QUIET = {"exit_on_error": False, "print_error": False, "result_action": "return_none"}


@program.default
def launch(
    *tokens: Annotated[str, Option(show=False, allow_leading_hyphen=True)],
    import_: Annotated[tuple[str, ...], Option(name="--import", negative=(), show_default=False)] = (),
) -> None:
    """Run one command, after importing the user's own modules.

    Args:
        tokens: The command and its words.
        import_: A module of yours whose METHOD (or METHODS) the command then knows; may be given again and again.

    """
    if import_:
        from rankwise import papers

        for module in import_:
            papers.add(module)
    app(tokens, **QUIET)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line (default: this process's own) and return its exit code; an error is a line on stderr."""
    tokens = list(sys.argv[1:] if arguments is None else arguments)
    try:
        refuse_unknown(tokens)  # here, as the library answers --help before it looks at the command
        program(tokens, **QUIET)
        sys.stdout.flush()  # a reader that has gone away is noticed here, not when the interpreter ends
    except CycloptsError as error:
        return complain(misuse(error), MISUSED)
    except RankwiseError as error:
        return complain(str(error), error.exit_code)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
    except OSError as error:
        return complain(f"{error}; {remedy(error)}", FAILED)
    except (MemoryError, RuntimeError) as error:
        if not is_memory(error):
            raise
        return complain(f"memory ran out: {str(error) or 'no more to be had'}; {SMALLER}", FAILED)
    except KeyboardInterrupt as stop:
        print(str(stop) or "stopped; what was written is whole, the same command goes on", file=sys.stderr)
        return STOPPED
    return 0


def refuse_unknown(tokens: Sequence[str]) -> None:
    """Raise UsageError if the first word is no command."""
    if tokens and not tokens[0].startswith("-") and tokens[0] not in NAMES:
        raise UsageError(unknown(tokens[0]))


def unknown(word: str) -> str:
    """Return what is wrong with a word where a command stands."""
    what, known = ("option", ("--help", "--version")) if word.startswith("-") else ("command", NAMES)
    return f"Unknown {what}: {word}; {nearest(word, known)}"


def is_memory(error: Exception) -> bool:
    """Say whether memory, on the processor or a GPU, ran out; torch says so in its own words."""
    return isinstance(error, MemoryError) or any(words in str(error) for words in NO_MEMORY)


def complain(message: str, code: int) -> int:
    """Print each line of `message` to stderr as an error, tokens and passwords left out, and return `code`."""
    for line in masked(message).splitlines():
        print(f"error: {line}", file=sys.stderr)
    return code


def misuse(error: CycloptsError) -> str:
    """Return what was wrong with the words of the command line, in one line, with the remedy."""
    chain = " ".join(("rankwise", *(error.command_chain or ())))
    tokens = error.unused_tokens or []
    if isinstance(error, UnknownCommandError) and tokens:
        return unknown(tokens[0])
    if isinstance(error, UnusedCliTokensError):
        return f"{chain}: unexpected {' '.join(map(repr, tokens))}; see `{chain} --help`"
    text = " ".join(str(error).split())
    return text if "Did you mean" in text else f"{text.rstrip('.')}; see `{chain} --help`"
