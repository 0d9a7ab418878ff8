"""`sft-launch ssh`: the same run on several machines, without a scheduler."""

import os
import sys
from pathlib import Path
from typing import Any

import click


@click.command(context_settings={"ignore_unknown_options": True, "allow_interspersed_args": True})
@click.argument("config", type=click.Path(path_type=Path))
@click.argument("overrides", nargs=-1, type=click.UNPROCESSED, metavar="[KEY=VALUE]...")
@click.option("-H", "--hosts", required=True, metavar="[USER@]HOST,...", help="One node each, as ssh knows them; the first is the head.")
@click.option("--procs", type=click.IntRange(1), help="Processes on each host; by default one a GPU of this machine, or one.")
@click.option("--head", help="Address of the first host for the others; by default its name.")
@click.option("--port", type=click.IntRange(1, 65535), help="Where the head listens; by default one for each attempt.")
@click.option("--python", metavar="PATH", help="Python on the hosts; by default where this one is.")
@click.option("--ssh", default="ssh", envvar="SFT_SSH", show_default=True, metavar="COMMAND", help="With its own flags, if it needs any.")
@click.option("--dry-run", is_flag=True, help="Only show what would be started, and where.")
def ssh(config: Path, overrides: tuple[str, ...], procs: int | None, dry_run: bool, **wishes: Any) -> None:
    """Run CONFIG on machines without Slurm, or go on with it: they see the same repository, Python and folders, at the same places.

    Ctrl-C lets all of them save and stop; a second one kills.
    """
    from launch import local, plans
    from launch import ssh as lines
    from launch.way import Way
    from sft_dist import parse, rundir

    overrides = parse.named(config, overrides, os.environ)
    way = Way.of(wishes["ssh"], wishes["hosts"])
    plans.plain([text for text in (wishes["python"], wishes["head"]) if text])
    nodes = len(way.hosts)
    settings, each = local.checked(config, overrides, os.environ, procs, nodes)
    if done := rundir.finished(settings):
        click.echo("\n".join(rundir.told_again(done)))
        return
    again = ["sft-launch", "ssh", "-H", wishes["hosts"], "--procs", str(each), *_chosen(wishes), str(config), *overrides]
    head = wishes["head"] or way.head()
    if not dry_run:
        way.check()
    folder = local.would_begin(settings) if dry_run else local.begin(settings, nodes, each, "sft-launch ssh", again)
    attempt = folder.absolute()
    port, python = wishes["port"] or lines.port_of(attempt), wishes["python"] or sys.executable
    launch = plans.Launch(config, overrides, nodes, each, attempt, head, port, python)
    if dry_run:
        click.echo("\n".join(lines.describe(launch, way, os.environ)))
        return
    sys.exit(lines.start(launch, way, os.environ))


def _chosen(wishes: dict[str, Any]) -> list[str]:
    """The options that the same command needs again."""
    usual = {"hosts": wishes["hosts"], "ssh": "ssh"}
    return [word for name, value in wishes.items() if value not in (None, usual.get(name)) for word in (f"--{name}", str(value))]
