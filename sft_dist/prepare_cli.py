"""Commands for what comes before a run: the config's schema."""

import click


@click.group("config")
def config_group() -> None:
    """About configs themselves."""


@config_group.command("schema")
def schema_command() -> None:
    """Print the JSON Schema of configs, for editors."""
    from sft_dist import schema

    click.echo(schema.text(), nl=False)
