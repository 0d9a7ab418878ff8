"""How a command ends that does not end well: its exit code, what the screen says, and what a launcher finds."""

import json
import os
import socket
import sys
import time
import traceback
from pathlib import Path

import click

from sft_dist.errors import SftError
from sft_dist.pulse import Pulse


def end(raised: BaseException, pulse: Pulse) -> int:
    """Tell and record an error; returns the exit code of design.md."""
    error = _translated(raised)
    code = _exit_code(error)
    if code:
        _record(error, code, pulse)
        _show(error, trained=pulse.attempt is not None)
    _let_go(raised)
    return code


def _translated(error: BaseException) -> BaseException:
    if isinstance(error, SftError | click.exceptions.ClickException | SystemExit) or "torch" not in sys.modules:
        return error
    from sft_dist.machine import translate

    return translate(error)


def _let_go(error: BaseException | None) -> None:
    """Empty the frames that an error holds. They keep data workers alive, which ignore the signal that Python would end
    them with, so that the process would wait for them for ever."""
    while error is not None:
        traceback.clear_frames(error.__traceback__)
        error = error.__cause__ or error.__context__


def _exit_code(error: BaseException) -> int:
    if isinstance(error, SftError | click.exceptions.ClickException):
        return error.exit_code
    if isinstance(error, click.exceptions.Exit):
        return error.exit_code
    if isinstance(error, SystemExit):
        return error.code if isinstance(error.code, int) else int(error.code is not None)
    return 1


def _show(error: BaseException, trained: bool) -> None:
    """trained: a run has begun an attempt, which it can go on from; other commands have nothing to go on from."""
    rank = os.environ.get("RANK")
    where = f" (rank {rank} on {socket.gethostname()})" if rank else ""
    if isinstance(error, SftError):
        problems = "\n".join(f"  - {problem}" for problem in error.problems)
        kind = {2: "cannot run this", 78: "this machine cannot run this", 75: "interrupted from outside"}.get(error.exit_code, "stopped")
        if not _others_say_it(error):
            click.echo(f"sft-dist: {kind}{where}\n{problems}", err=True)
    elif isinstance(error, click.exceptions.ClickException):
        error.show()
    elif isinstance(error, click.exceptions.Abort):
        onward = "; the last checkpoint is intact, and the same command goes on from it" if trained else ""
        click.echo(f"sft-dist: interrupted{where}{onward}", err=True)
    elif not isinstance(error, SystemExit):
        click.echo(f"sft-dist: stopped{where}", err=True)
        traceback.print_exception(error)


def _others_say_it(error: SftError) -> bool:
    """Rank 0 speaks for all where all raise the same; before the ranks know of each other, the first one of each machine does."""
    rank, local_rank = os.environ.get("RANK", "0"), os.environ.get("LOCAL_RANK", "0")
    return rank != "0" if error.everywhere else local_rank != "0" and "torch" not in sys.modules


def _record(error: BaseException, code: int, pulse: Pulse) -> None:
    """Leave the error where torchrun's agent looks for it, so that its summary names rank, type and message; and in the attempt's folder."""
    from sft_dist import attempts  # the config with it, which `--help` must not build

    rank, node = _told("RANK"), _told("GROUP_RANK")
    cause = error.__cause__ if isinstance(error, click.exceptions.Abort) else None  # click's word for a KeyboardInterrupt
    failure = attempts.failure_of(cause or error, code, rank, pulse.beat, node)
    try:
        if path := os.environ.get("TORCHELASTIC_ERROR_FILE"):
            extra = {"py_callstack": "".join(traceback.format_exception(error)), "timestamp": str(int(time.time()))}
            Path(path).write_text(json.dumps({"message": {"message": f"{failure.type}: {failure.message}", "extraInfo": extra}}))
        if pulse.attempt:
            attempts.write_failure(pulse.attempt, failure)
    except (OSError, SftError) as problem:  # on a full disk the error itself still reaches the screen
        click.echo(f"sft-dist: the error could not be recorded: {problem}", err=True)


def _told(variable: str) -> int:
    """A number from the launcher; 0 where there is none, or what `World.from_env` refuses: the error that is recorded may be just that."""
    told = os.environ.get(variable, "")
    return int(told) if told.isdecimal() else 0
