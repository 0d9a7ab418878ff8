"""Lines and tables on the screen. Names are printed as they are, never obeyed."""

from rich.console import Console
from rich.text import Text

from sft_dist.history.records import printable

WIDE = 160  # columns where there is no terminal: a log is not cut


def say(*lines: str) -> None:
    """Print lines as they are, unwrapped."""
    console = screen()
    for line in lines:
        console.print(Text(printable(line)), soft_wrap=True)


def screen() -> Console:
    console = Console(highlight=False, markup=False, emoji=False)
    return console if console.is_terminal else Console(highlight=False, markup=False, emoji=False, width=WIDE)
