"""Reading a shell script as far as advice on it needs: commands with their lines, and sbatch's options; nothing is run."""

import re
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

SHORT = {"N": "nodes", "n": "ntasks", "c": "cpus-per-task", "a": "array", "o": "output", "t": "time", "p": "partition", "J": "job-name"}
BEFORE = re.compile(
    r"(?:(?:if|then|else|elif|while|until|do|time|exec|nohup|env|command|!|\{)(?=\s)|\w+=(?:\"[^\"]*\"|'[^']*'|[^\s\"'])*(?=\s))\s*"
)
STARTED = re.compile(
    r"\s[\"']?(?:\S*/)?(?:bash|sh|python[\d.]*|torchrun|accelerate|deepspeed|env|singularity|apptainer|[^\s-]\S*\.(?:py|sh))[\"']?(?=\s)"
)
HEREDOC = re.compile(r"<<-?[ \t]*(?:'([^'\n]+)'|\"([^\"\n]+)\"|\\?([^\s'\"\\;&|<>()`$]+))")
ARITHMETIC = re.compile(r"\(\((?:[^()]|\((?:[^()]|\([^()]*\))*\))*\)\)")
"""`((...))`, in which `<<` shifts bits."""
OPENS = re.compile(r"(?:(?:then|else|do|!|function\s+\S+)\s+)*\{(?=\s|$)")
SEPARATORS = re.compile(r"&&|\|\||(?<![<>])&(?!>)|[;|()\n`]")


@dataclass(frozen=True)
class Option:
    """One of an `#SBATCH` line; late: behind the first command, where sbatch no longer reads."""

    line: int
    name: str
    value: str
    late: bool = False


@dataclass(frozen=True)
class Command:
    """A simple command; background: it ends in `&`."""

    line: int
    text: str
    background: bool = False

    @property
    def program(self) -> str:
        """Its first word, behind keywords and assignments."""
        rest = self.text
        while found := BEFORE.match(rest):
            rest = rest[found.end() :]
        return rest.split(maxsplit=1)[0].rpartition("/")[2] if rest else ""

    @property
    def own(self) -> str:
        """The command without the one that it starts: srun's own options."""
        found = STARTED.search(self.text)
        return self.text[: found.start()] if found else self.text

    @property
    def expanded(self) -> str:
        """What the shell that reads the script expands: not what is in single quotes, nor behind a backslash."""
        return re.sub(
            r"\\.|(\"(?:\\.|[^\"\\])*\")|'[^']*'",
            lambda found: re.sub(r"\\.", "", found[1]) if found[1] else "",
            self.text,
            flags=re.DOTALL,
        )


@dataclass(frozen=True)
class Script:
    options: tuple[Option, ...]
    commands: tuple[Command, ...]

    def option(self, name: str) -> Option | None:
        """The last one of that name, which is the one that counts."""
        return next((option for option in reversed(self.options) if option.name == name and not option.late), None)

    def running(self, *programs: str) -> list[Command]:
        return [command for command in self.commands if command.program in programs]

    def function(self, name: str) -> tuple[Command, ...]:
        """The commands between the braces of the function of that name; none if there is no such function here."""
        for index, command in enumerate(self.commands):
            if re.fullmatch(rf"function\s+{re.escape(name)}\s+\{{.*", command.text, re.DOTALL):
                return tuple(_inside(self.commands[index:]))
            if command.text in (name, f"function {name}") and (body := tuple(_inside(self.commands[index + 1 :]))):
                return body
        return ()

    @property
    def text(self) -> str:
        return "\n".join(command.text for command in self.commands)


def _inside(commands: Sequence[Command]) -> Iterator[Command]:
    deep = 0
    for command in commands:
        deep += (OPENS.match(command.text) is not None) - (command.text == "}")
        if deep == 0:
            return
        yield command


def read(text: str) -> Script:
    """A script, or a command line; comments and here-documents are passed over, continued lines joined."""
    lines = list(_lines(text))
    commands = tuple(command for number, line in lines if not line.startswith("#SBATCH") for command in _commands(number, line))
    first = min((command.line for command in commands), default=0)
    options = [option for number, line in lines if line.startswith("#SBATCH") for option in _options(number, line, 0 < first < number)]
    return Script(tuple(options), commands)


def _lines(text: str) -> Iterator[tuple[int, str]]:
    """(number of its first line, text) of every line that a shell would read as one, and of every `#SBATCH` line."""
    number, place, raw = 1, 0, text + "\n"
    while place < len(raw):
        begin, kept, ends = number, list[str](), list[str]()
        quote = ""
        while place < len(raw):
            letter = raw[place]
            if letter == "\n" and not quote:
                break
            piece = _piece(raw, place, quote, "".join(kept[-1:]))
            if not quote and piece.startswith("<<") and (found := HEREDOC.match(piece)):
                ends.append(found[1] or found[2] or found[3])
            if letter in "'\"" and quote in ("", letter):
                quote = "" if quote else letter
            directive = piece.startswith("#SBATCH") and not "".join(kept).strip()
            comment = letter == "#" and not quote and _begins_word("".join(kept[-1:]))
            kept.append(piece if directive or not comment else "")
            kept[-1] = " " if piece == "\\\n" else kept[-1]
            number += piece.count("\n")
            place += len(piece)
        number, place = number + 1, place + 1
        for end in ends:
            document = re.compile(rf"(?:.*\n)*?[ \t]*{re.escape(end)}[ \t\r]*\n").match(raw, place)
            if document:  # else it has no end, and is none: `let x=1<<n`
                number, place = number + document[0].count("\n"), document.end()
        if line := "".join(kept).strip():
            yield begin, line


def _piece(raw: str, place: int, quote: str, before: str) -> str:
    """The next letters that belong together: an escape, a comment, arithmetic, the head of a here-document, or one letter."""
    letter = raw[place]
    if letter == "\\" and quote != "'":
        return raw[place : place + 2]
    if quote:
        return letter
    if letter == "#" and _begins_word(before):
        return raw[place : raw.index("\n", place)]
    if letter == "(" and (found := ARITHMETIC.match(raw, place)):
        return found[0]
    if raw.startswith("<<", place) and not raw.startswith("<<<", place) and (found := HEREDOC.match(raw, place)):
        return found[0]
    return raw[place : place + 3] if raw.startswith("<<<", place) else letter


def _begins_word(before: str) -> bool:
    return not before or before in " \t;&|("


def _commands(number: int, line: str) -> Iterator[Command]:
    masked = re.sub(r"\\.|\"(?:\\.|[^\"\\])*\"|'[^']*'", lambda found: "x" * len(found[0]), line, flags=re.DOTALL)
    place = 0
    for found in [*SEPARATORS.finditer(masked), None]:
        end = found.start() if found else len(line)
        if text := line[place:end].strip():
            yield Command(number + line[: end - len(line[place:end].lstrip())].count("\n"), text, found is not None and found[0] == "&")
        place = found.end() if found else len(line)


def _options(number: int, line: str, late: bool) -> Iterator[Option]:
    try:
        words = shlex.split(line.removeprefix("#SBATCH"), comments=True)
    except ValueError:
        words = line.split()[1:]
    for index, word in enumerate(words):
        after = words[index + 1] if index + 1 < len(words) and not words[index + 1].startswith("-") else ""
        if word.startswith("--"):
            name, equals, value = word[2:].partition("=")
            yield Option(number, name, value if equals else after, late)
        elif word.startswith("-"):
            yield Option(number, SHORT.get(word[1:2], word[1:2]), word[2:].removeprefix("=") or after, late)
