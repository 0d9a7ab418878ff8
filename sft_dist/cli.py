"""The command line: parse, refuse early and without torch, then hand over to the run."""

import gc
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from sft_dist import ending, guard, prepare_cli, see_cli
from sft_dist.pulse import Pulse

RUN = click.argument("run_folder", type=click.Path(path_type=Path), metavar="RUN")
OVERRIDES = {"ignore_unknown_options": True, "allow_interspersed_args": True}


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="sft-dist")
def cli() -> None:
    """Fine-tune a pretrained model from one config, with the same curve on any number of processes."""


@cli.command(context_settings=OVERRIDES)
@click.argument("config", type=click.Path(path_type=Path))
@click.argument("overrides", nargs=-1, type=click.UNPROCESSED, metavar="[KEY=VALUE]...")
@click.pass_obj
def train(pulse: Pulse, config: Path, overrides: tuple[str, ...]) -> None:
    """Train CONFIG, or go on with it where its run folder left off."""
    gc.disable()  # reading torch leaves no garbage, and looking for it would take a sixth of the time

    from sft_dist import parse, plan, preflight, rundir

    world = plan.World.from_env(os.environ)
    guard.start(pulse, world.rank)
    settings = parse.load(config, parse.named(config, overrides, os.environ))
    preflight.check(settings, world, os.environ)
    if done := rundir.finished(settings):
        if world.rank == 0:
            click.echo("\n".join(rundir.told_again(done)))
        return

    from sft_dist.run import run

    gc.freeze()  # nor is it looked for at the end, which comes a second earlier
    gc.enable()
    run(settings, world, pulse)


@cli.command("plan", context_settings=OVERRIDES)
@click.argument("config", type=click.Path(path_type=Path))
@click.argument("overrides", nargs=-1, type=click.UNPROCESSED, metavar="[KEY=VALUE]...")
@click.option("--world", "size", type=click.IntRange(1), help="Plan for this many processes; by default for as many as were started.")
@click.option("--quick", is_flag=True, help="Leave out what needs torch: the model's size.")
def plan_command(config: Path, overrides: tuple[str, ...], size: int | None, quick: bool) -> None:
    """Show what would run for CONFIG, without running it."""
    from sft_dist import datasets, parse, plan, preflight

    settings = parse.load(config, overrides)
    world = plan.World(size=size, local_size=size) if size else plan.World.from_env(os.environ)
    preflight.check(settings, world, {} if size else os.environ)
    splits = datasets.load(settings.data)
    made = plan.make_plan(settings, world, len(splits.train), len(splits.val))
    counts = None
    if not quick:
        from sft_dist import models

        counts = models.on_paper(settings, len(splits.classes))
    for what, how_much in plan.describe(made, settings, f"device {settings.device}", counts):
        click.echo(f"{what:>9}  {how_much}")


@cli.command("eval", context_settings=OVERRIDES)
@RUN
@click.argument("overrides", nargs=-1, type=click.UNPROCESSED, metavar="[KEY=VALUE]...")
@click.option("--split", type=click.Choice(["train", "val", "test"]), default="val", show_default=True)
@click.option("--checkpoint", default="best", show_default=True, help="best, latest, or a folder's name like step-00000400.")
def eval_command(run_folder: Path, overrides: tuple[str, ...], split: str, checkpoint: str) -> None:
    """Score a checkpoint of RUN again, also on other data (data.root=...); prints JSON."""
    from sft_dist import config, parse, plan, refuse, rundir

    settings = parse.load(run_folder / "config.yaml", overrides).model_copy(update={"shard": config.Shard()})  # the model alone, whole
    world = plan.World.from_env(os.environ)
    refuse.check(settings, world, os.environ, fresh=False)

    from sft_dist.score import score

    scores = score(rundir.RunDir(run_folder), settings, world, split, checkpoint)
    if world.rank == 0:
        click.echo(rundir.to_json(scores), nl=False)


@cli.group()
def ckpt() -> None:
    """See, verify, export and delete the checkpoints of a run."""


@ckpt.command("ls")
@RUN
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def ls_command(run_folder: Path, as_json: bool) -> None:
    """Show the checkpoints of RUN, with their scores and sizes."""
    from sft_dist import inventory

    found = inventory.items(inventory.find(run_folder))
    click.echo(json.dumps([asdict(item) for item in found], indent=1) if as_json else "\n".join(inventory.describe(found)))


@ckpt.command("verify")
@RUN
@click.option("--checkpoint", help="Only this one: best, latest, or a folder's name like step-00000400.")
def verify_command(run_folder: Path, checkpoint: str | None) -> None:
    """Hash the checkpoints of RUN again; exit code 1 if one is not whole. Changes nothing."""
    from sft_dist import inventory

    found = inventory.verify(inventory.find(run_folder), checkpoint)
    for name, problems in found.items():
        click.echo("\n".join([f"{name}  damaged", *(f"  - {problem}" for problem in problems)]) if problems else f"{name}  whole")
    sys.exit(int(any(found.values())))


@ckpt.command("export")
@RUN
@click.option("--checkpoint", default="best", show_default=True, help="best, latest, or a folder's name like step-00000400.")
@click.option("--to", type=click.Path(path_type=Path), help="Where to; by default RUN/export.")
def export_command(run_folder: Path, checkpoint: str, to: Path | None) -> None:
    """Write one file of weights, and all that is needed to use it with plain torchvision."""
    from sft_dist import inventory

    run = inventory.find(run_folder)

    from sft_dist.export import export

    click.echo("\n".join(export(run, checkpoint, to)))


@ckpt.command("prune")
@RUN
@click.option("--keep", type=click.IntRange(1), help="The newest N stay.")
@click.option("--every-nth", type=click.IntRange(1), metavar="STEPS", help="Those at a multiple of STEPS stay.")
@click.option("--before", type=click.IntRange(1), metavar="STEP", help="Those from STEP on stay.")
@click.option("--damaged", is_flag=True, help="What a resume set aside as damaged goes.")
@click.option("--dry-run", is_flag=True, help="Only show what would go.")
def prune_command(run_folder: Path, dry_run: bool, **rule: Any) -> None:
    """Delete checkpoints of RUN by rule; never the best, the latest, or the newest whole one."""
    from sft_dist import inventory

    gone = inventory.prune(inventory.find(run_folder), inventory.Rule(**rule), dry_run)
    click.echo("\n".join(inventory.describe_gone(gone, dry_run)))


for command in (*prepare_cli.COMMANDS, *see_cli.COMMANDS):
    cli.add_command(command)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a command and end the process with the exit code of design.md; errors of SftError's kind take one screen, without traceback."""
    pulse = Pulse.of(os.environ)
    try:
        cli.main(args=list(sys.argv[1:] if arguments is None else arguments), prog_name="sft-dist", standalone_mode=False, obj=pulse)
    except BaseException as raised:  # every way out is recorded, SystemExit included, or a launcher cannot name it
        code = ending.end(raised, pulse)
        sys.stdout.flush()
        sys.exit(code)
