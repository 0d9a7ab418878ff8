"""Reading a shell script as far as advice on it needs: commands with their lines, and sbatch's options; nothing is run."""

import re
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

SAME = {"tasks-per-node": "ntasks-per-node"}
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
EXPANDED = re.compile(r"\\([$`\\])|\$(?=[\w{(])")
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
class Document:
    """A here-document, as the command reads it: what its shell fills in has lost its `$`. line: of its first line."""

    line: int
    text: str


@dataclass(frozen=True)
class Script:
    """submitted: the scripts that it hands to sbatch, written out in it."""

    options: tuple[Option, ...]
    commands: tuple[Command, ...]
    submitted: tuple[Document, ...] = ()

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
    said = [(line, list(_commands(line.number, line.text))) for line in lines if not line.text.startswith("#SBATCH")]
    commands = tuple(command for _, found in said for command in found)
    first = min((command.line for command in commands), default=0)
    directives = [line for line in lines if line.text.startswith("#SBATCH")]
    options = [option for line in directives for option in _options(line.number, line.text, 0 < first < line.number)]
    inner = [document for line, found in said if any(command.program == "sbatch" for command in found) for document in line.documents]
    return Script(tuple(options), commands, tuple(inner))


@dataclass(frozen=True)
class _Line:
    number: int
    text: str
    documents: tuple[Document, ...]


def _lines(text: str) -> Iterator[_Line]:
    """Every line that a shell would read as one, with its here-documents, and every `#SBATCH` line."""
    number, place, raw = 1, 0, text + "\n"
    while place < len(raw):
        begin, kept, ends, documents = number, list[str](), list[tuple[str, bool]](), list[Document]()
        quote = ""
        while place < len(raw):
            letter = raw[place]
            if letter == "\n" and not quote:
                break
            piece = _piece(raw, place, quote, "".join(kept[-1:]))
            if not quote and piece.startswith("<<") and (found := HEREDOC.match(piece)):
                ends.append((found[1] or found[2] or found[3], found[3] is None or "\\" in piece))
            if letter in "'\"" and quote in ("", letter):
                quote = "" if quote else letter
            directive = piece.startswith("#SBATCH") and not "".join(kept).strip()
            comment = letter == "#" and not quote and _begins_word("".join(kept[-1:]))
            kept.append(piece if directive or not comment else "")
            kept[-1] = " " if piece == "\\\n" else kept[-1]
            number += piece.count("\n")
            place += len(piece)
        number, place = number + 1, place + 1
        for end, quoted in ends:
            found = re.compile(rf"((?:.*\n)*?)[ \t]*{re.escape(end)}[ \t\r]*\n").match(raw, place)
            if found:  # else it has no end, and is none: `let x=1<<n`
                documents.append(Document(number, found[1] if quoted else EXPANDED.sub(r"\1", found[1])))
                number, place = number + found[0].count("\n"), found.end()
        if line := "".join(kept).strip():
            yield _Line(begin, line, tuple(documents))


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
            yield Option(number, SAME.get(name, name), value if equals else after, late)
        elif word.startswith("-"):
            yield Option(number, SHORT.get(word[1:2], word[1:2]), word[2:].removeprefix("=") or after, late)
