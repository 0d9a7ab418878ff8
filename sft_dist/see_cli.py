"""Commands that look at runs: list, watch, report, compare, send to W&B."""

import gc
import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click


@click.command("ls")
@click.argument("runs", default="runs", metavar="[RUNS]")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def ls_command(runs: str, as_json: bool) -> None:
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


@click.command("watch")
@click.argument("place", type=click.Path(path_type=Path), default="runs", metavar="[RUN|RUNS]")
@click.option("--once", is_flag=True, help="Print how it stands, and end.")
@click.option("--every", "every_s", type=click.FloatRange(0.2), default=2.0, show_default=True, help="Seconds between two looks.")
def watch_command(place: Path, once: bool, every_s: float) -> None:
    """Watch a run, or all runs in a folder, from their files alone: progress, curves, ranks, what is left. Ends with the run, or on ctrl-C."""
    from sft_dist.watch import command as watch

    watch.watch(place, once, every_s)


@click.command("compare")
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


@click.command("report")
@click.argument("run_folder", type=click.Path(path_type=Path), metavar="RUN")
@click.option("--at", type=click.Choice(["best", "last"]), default="best", show_default=True, help="Which evaluation is shown.")
@click.option(
    "--look",
    is_flag=True,
    help="Load data and model, and look into them again: for augmented samples, weight change, and by task Grad-CAM, embedding, masks.",
)
@click.option("--out", type=click.Path(path_type=Path), help="The file to write; by default RUN/report.html.")
def report_command(run_folder: Path, at: str, look: bool, out: Path | None) -> None:
    """Write RUN as one page: scores, curves, classes, calibration, samples, time, attempts."""
    from sft_dist.report import command as report

    report.check(run_folder)
    if look:
        click.echo("\n".join(report.look(run_folder, at)))
    click.echo(f"written: {report.write(run_folder, at, out)}")


@click.command("sync")
@click.argument("runs", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="RUN...")
@click.option("--project", help="W&B project; by default each run's track.project.")
@click.option("--entity", help="W&B user or team; by default each run's track.entity.")
@click.option(
    "--limit",
    "limit_s",
    type=click.IntRange(10),
    default=600,
    show_default=True,
    help="Seconds that a run may take; as long again with track.artifact.",
)
def sync_command(runs: tuple[Path, ...], project: str | None, entity: str | None, limit_s: int) -> None:
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


COMMANDS = (ls_command, watch_command, compare_command, report_command, sync_command)
