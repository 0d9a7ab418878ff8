"""Commands for what comes before a run: a first config, the config's schema."""

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
