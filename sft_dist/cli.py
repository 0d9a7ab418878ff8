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

from sft_dist import ending, guard, prepare_cli
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
    from sft_dist import parse, plan, preflight, rundir

    guard.start(pulse, int(os.environ.get("RANK", "0")))
    settings = parse.load(config, parse.named(config, overrides, os.environ))
    world = plan.World.from_env(os.environ)
    preflight.check(settings, world, os.environ)
    if done := rundir.finished(settings):
        if world.rank == 0:
            click.echo("\n".join(["this run is finished; a longer train.duration goes on from its end", *rundir.summary(done)]))
        return
    gc.disable()  # reading torch leaves no garbage, and looking for it would take a sixth of the time

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


@cli.command("ls")
@click.argument("runs", default="runs", metavar="[RUNS]")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def ls_runs_command(runs: str, as_json: bool) -> None:
    """Show the runs in a folder, or in wandb:entity/project: how each stands, its best score, its seed."""
    from sft_dist.history import listing

    if runs.startswith("wandb:"):
        from sft_dist import remote

        records, passed = remote.gather(runs)
        found = listing.of(records)
    else:
        found, passed = listing.lines(Path(runs))
    click.echo(json.dumps([asdict(line) for line in found], indent=1) if as_json else "\n".join(listing.describe(found)))
    click.echo("".join(f"passed over {line}\n" for line in passed), err=True, nl=False)


@cli.command("watch")
@click.argument("place", type=click.Path(path_type=Path), default="runs", metavar="[RUN|RUNS]")
@click.option("--once", is_flag=True, help="Print how it stands, and end.")
@click.option("--every", "every_s", type=click.FloatRange(0.2), default=2.0, show_default=True, help="Seconds between two looks.")
def watch_command(place: Path, once: bool, every_s: float) -> None:
    """Watch a run, or all runs in a folder, from their files alone: progress, curves, ranks, what is left. Ends with the run, or on ctrl-C."""
    from sft_dist.watch import command as watch

    watch.watch(place, once, every_s)


@cli.command("compare")
@click.argument("runs", nargs=-1, required=True, metavar="RUN...")
@click.option("--at", type=click.Choice(["last", "best"]), default="last", show_default=True, help="Which evaluation is compared.")
@click.option("--metric", metavar="SCORE", help="The score to judge by, like val/f1_macro; by default the one that decides the best.")
@click.option("--where", multiple=True, metavar="KEY<VALUE", help="Only runs with this: optim.lr<1e-3. Several must all hold.")
@click.option("--sort", metavar="KEY", help="A score, the best first, or a config key; by default the score that decides the best.")
@click.option("--top", type=click.IntRange(2), metavar="N", help="Only the first N recipes; by default 10.")
@click.option("--baseline", multiple=True, metavar="RUN", help="Compare all with this; exit code 1 if one is worse beyond noise.")
@click.option("--out", type=click.Path(path_type=Path), default=".", help="Folder for compare.html and compare.json; by default this one.")
@click.option("--wandb-report", "report", is_flag=True, help="Make a report of it in W&B, of the runs that are there.")
def compare_command(runs: tuple[str, ...], baseline: tuple[str, ...], out: Path, report: bool, **choice: Any) -> None:
    """Which RUN is better, in what do they differ, and is it noise? RUN is a run's folder, a folder of runs, or wandb:entity/project[/run]."""
    gc.disable()  # what is read is kept to the end, and looking for garbage in it would take a sixth of the time

    from sft_dist.compare.command import compare
    from sft_dist.compare.verdicts import Choice

    sys.exit(compare(runs, baseline, out, Choice(**choice), report))


@cli.command("report")
@RUN
@click.option("--at", type=click.Choice(["best", "last"]), default="best", show_default=True, help="Which evaluation is shown.")
@click.option(
    "--look", is_flag=True, help="Load data and model, and look into them again: for class balance, Grad-CAM, embedding, weight change."
)
@click.option("--out", type=click.Path(path_type=Path), help="The file to write; by default RUN/report.html.")
def report_command(run_folder: Path, at: str, look: bool, out: Path | None) -> None:
    """Write RUN as one page: scores, curves, classes, calibration, samples, time, attempts."""
    from sft_dist.report import command as report

    report.check(run_folder)
    if look:
        click.echo("\n".join(report.look(run_folder, at)))
    click.echo(f"written: {report.write(run_folder, at, out)}")


@cli.command()
@click.argument("runs", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="RUN...")
@click.option("--project", help="W&B project; by default each run's track.project.")
@click.option("--entity", help="W&B user or team; by default each run's track.entity.")
@click.option("--limit", "limit_s", type=click.IntRange(10), default=600, show_default=True, help="Seconds that a run may take.")
def sync(runs: tuple[Path, ...], project: str | None, entity: str | None, limit_s: int) -> None:
    """Send to W&B what it does not have yet of each RUN, or of all runs in a folder; also of runs that were never tracked there."""
    from sft_dist import errors, mirror

    failed = []
    for run in mirror.found(runs):
        try:
            click.echo(f"{run.path}  {mirror.sync(run, limit_s, project, entity)}")
        except errors.SftError as error:
            failed += [f"{run.path}: {problem}" for problem in error.problems]
    if failed:
        raise errors.InfrastructureError(failed)


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


for command in (prepare_cli.init_command, prepare_cli.config_group, prepare_cli.data_group):
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
