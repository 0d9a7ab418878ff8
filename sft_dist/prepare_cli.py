"""Commands for what comes before a run: a first config, the config's schema, a look at the data."""

import sys
from pathlib import Path

import click


@click.group("config")
def config_group() -> None:
    """About configs themselves."""


@config_group.command("schema")
def schema_command() -> None:
    """Print the JSON Schema of configs, for editors."""
    from sft_dist import schema

    click.echo(schema.text(), nl=False)


@click.command("init")
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--out", type=click.Path(path_type=Path), help="The config's file; by default the folder's name with .yaml, here.")
def init_command(folder: Path, out: Path | None) -> None:
    """Look at FOLDER, which holds train/<class>/ with images, and write a first config for it that says why."""
    from sft_dist import draft

    click.echo("\n".join(draft.write(folder, out)))


@click.group("data")
def data_group() -> None:
    """Look at the data before a run pays for it."""


@data_group.command("check", context_settings={"ignore_unknown_options": True, "allow_interspersed_args": True})
@click.argument("config", type=click.Path(path_type=Path))
@click.argument("overrides", nargs=-1, type=click.UNPROCESSED, metavar="[KEY=VALUE]...")
@click.option(
    "--out", type=click.Path(path_type=Path), default=".", help="Folder for data-check.html and data-check.json; by default this one."
)
@click.option(
    "--workers", type=click.IntRange(0), help="Processes that read files; 0 reads in this one. By default as many as processors, at most 8."
)
@click.option(
    "--near/--no-near",
    default=True,
    help="Compare every picture with every other; two minutes for 100,000 on one core, four times that for twice as many.",
)
def check_command(config: Path, overrides: tuple[str, ...], out: Path, workers: int | None, near: bool) -> None:
    """Open every image of CONFIG: unreadable ones, doubles, leaks between splits, balance, sizes. Exit code 1 if something is wrong."""
    from sft_dist import parse
    from sft_dist.datacheck import command as datacheck

    sys.exit(datacheck.check(parse.load(config, overrides), out, workers, near))


COMMANDS = (init_command, config_group, data_group)
