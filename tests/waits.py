"""Points where a run waits, so that whoever looks late still finds it there: to be killed, to be asked to stop, or to be let go."""

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

GO = "SFT_TEST_GO"
"""Names a file in the environment of a run: once it is there, nothing waits any more."""
WAITS = "this process waits"


def wait(asked: Callable[[], bool] = lambda: False) -> None:
    """Until it is asked, or let go."""
    print(WAITS, flush=True)
    while not asked() and not (GO in os.environ and Path(os.environ[GO]).exists()):
        time.sleep(0.02)


def wait_in(step: int) -> None:
    """Let this process wait in a training step (1-based), before it has a batch, until it is asked to stop or let go."""
    from sft_dist import loop

    train_step = loop.train_step

    def waiting(*arguments: Any) -> Any:
        _, _, engine, _, done, request, *_ = arguments
        if done + 1 == step:
            engine.pulse.at("save")  # of all phases the one that watchdogs leave the most time for
            wait(lambda: request.made)
        return train_step(*arguments)

    loop.train_step = waiting
