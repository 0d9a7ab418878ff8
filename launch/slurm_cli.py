"""`sft-launch slurm`: submit, array, status, logs, cancel, table."""

import os
import shlex
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

UNKNOWN = {"ignore_unknown_options": True, "allow_interspersed_args": True}


class Rest(click.Command):
    """What stands after `--` becomes --sbatch=FLAG, each; click itself would take it for arguments like the others."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        here = args.index("--") if "--" in args else len(args)
        return super().parse_args(ctx, [*(f"--sbatch={flag}" for flag in args[here + 1 :]), *args[:here]])


@click.group()
def slurm() -> None:
    """Runs as jobs of a Slurm cluster: submit, array, status, logs, cancel, table."""


def wishes_of_the_cluster(command: Callable[..., None]) -> Callable[..., None]:
    """The arguments that all commands take which submit."""
    for each in reversed(
        [
            click.argument("overrides", nargs=-1, type=click.UNPROCESSED, metavar="[KEY=VALUE]... [-- SBATCH FLAGS]"),
            click.option("--nodes", type=click.IntRange(1), default=1, show_default=True),
            click.option("--procs", type=click.IntRange(1), help="Processes on each node; by default one a GPU, or one."),
            click.option("--time", help="Time limit, as sbatch takes it; ten minutes before it the run saves and queues again."),
            click.option("--partition"),
            click.option("--account"),
            click.option("--gpus-per-node", metavar="[TYPE:]NUMBER"),
            click.option(
                "--sbatch", "others", multiple=True, metavar="FLAG", help="Any other flag of sbatch, as --sbatch=FLAG; or all after --."
            ),
            click.option("--dry-run", is_flag=True, help="Only show what would be submitted; asks Slurm nothing and writes nothing."),
        ]
    ):
        command = each(command)
    return command


@slurm.command(cls=Rest, context_settings=UNKNOWN)
@click.argument("config", type=click.Path(path_type=Path))
@wishes_of_the_cluster
def submit(config: Path, overrides: tuple[str, ...], dry_run: bool, **wishes: Any) -> None:
    """Submit CONFIG as a job, or go on with its run. Code and config are put aside first: later edits do not reach the job."""
    from launch import jobs, local, plans, snapshot, software, whose
    from launch import slurm as texts
    from sft_dist import parse, rundir
    from sft_dist.rundir import RunDir

    wanted = texts.Wishes(**wishes)
    overrides = parse.named(config, overrides, os.environ)
    plans.plain([str(config), *overrides])
    settings = parse.load(config, overrides)
    run = RunDir(RunDir.of(settings).path.absolute())
    texts.check(wanted, run.path, os.environ)
    procs = texts.processes(settings, wanted)
    local.checked(config, overrides, os.environ, procs, wanted.nodes)
    if done := rundir.finished(settings):
        click.echo("\n".join(rundir.told_again(done)))
        return
    files = snapshot.contents(software.REPOSITORY, config, parse.to_yaml(settings))
    python = os.environ.get("SFT_PYTHON") or sys.executable
    job = texts.Submission(settings.run.name, run.path, snapshot.place(run.path, files), procs, wanted, python)
    if dry_run:
        click.echo("\n".join(texts.describe(job, os.environ, files)))
        return
    if unknown := whose.refuse_a_second(run, wanted, os.environ):
        click.echo(unknown, err=True)
    if waits := jobs.test(job, os.environ):
        click.echo(f"Slurm cannot start this now ({waits}); it will wait", err=True)
    about = {"cluster": jobs.cluster(os.environ), "name": job.name, "submitted_ns": time.time_ns(), "submit_dir": str(Path.cwd())}
    about |= {"command": texts.typed(config, overrides, wanted), "argv": texts.argv(job), "code": str(job.code), "world": job.world}
    rundir.create(settings)
    snapshot.make(run, files)
    rundir.write_json(run.path / "job.json", {"job": None, **about})  # before sbatch: the job may begin, or this end, at once
    number = jobs.submit(job, os.environ)
    rundir.write_json(run.path / "job.json", {"job": number, **about, "log": str(run.path / f"slurm-{number}.log")})
    click.echo("\n".join(texts.submitted(number, job)))


@slurm.command(cls=Rest, context_settings=UNKNOWN)
@click.argument("sweep", type=click.Path(path_type=Path))
@wishes_of_the_cluster
@click.option("--limit", type=click.IntRange(1), metavar="RUNS", help="At most so many at a time.")
def array(sweep: Path, overrides: tuple[str, ...], limit: int | None, dry_run: bool, **wishes: Any) -> None:
    """Submit the runs of SWEEP as one job, a task each, or go on with those that are not finished. All are checked first."""
    from launch import arrays
    from launch import slurm as texts

    wanted = texts.Wishes(**wishes)
    made = arrays.checked(sweep, overrides, wanted, os.environ)
    if not made.unfinished:
        click.echo(f"all runs of this sweep are finished: sft-launch slurm table {shlex.quote(str(made.folder))}")
        return
    job, files = arrays.prepare(made, sweep, limit, wanted, os.environ)
    if dry_run:
        click.echo("\n".join([*arrays.runs(made), *texts.describe(job, os.environ, files)]))
        return
    command = texts.typed(sweep, overrides, wanted, ("array", *([f"--limit={limit}"] if limit else [])))
    number, notes = arrays.submit(made, job, files, command, os.environ)
    for note in notes:
        click.echo(note, err=True)
    click.echo("\n".join([*arrays.runs(made), *texts.submitted_array(number, job)]))


@slurm.command()
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--over", type=click.IntRange(0), metavar="TASK", help="This task is at its end, whatever its last sign is.")
def table(folder: Path, over: int | None) -> None:
    """Write the table of a sweep, or of a FOLDER with 0.yaml, 1.yaml..., into it, and print it; asks Slurm nothing.

    slurm/array.sh does so at the end of each task.
    """
    from launch import results

    click.echo("\n".join(results.text(results.write(folder, over))))


@slurm.command()
@click.argument("told", metavar="RUN|SWEEP|JOBID")
def status(told: str) -> None:
    """Say in words what the job of a run does, why it waits, and how far the run is; of a sweep, all its runs in a table."""
    from launch import arrays, follow, whose

    if sweep := arrays.find(told, os.environ):
        click.echo("\n".join(arrays.status(sweep, os.environ)))
        return
    found = whose.find(told, os.environ)
    click.echo("\n".join(follow.status(found)))


@slurm.command()
@click.argument("told", metavar="RUN|JOBID")
@click.option("--rank", type=click.IntRange(0), help="What this rank has written, without the others.")
@click.option("--attempt", type=click.IntRange(1), help="All ranks of this attempt; with --rank, by default the last one.")
@click.option("--grep", "text", metavar="TEXT", help="Only lines with this text in them.")
def logs(told: str, rank: int | None, attempt: int | None, text: str | None) -> None:
    """Print the job's log, or what one rank has written."""
    from launch import arrays, follow, whose
    from sft_dist.errors import ConfigError
    from sft_dist.rundir import RunDir

    if sweep := arrays.find(told, os.environ):
        task = f", or one of its tasks, like {sweep.job}_0" if sweep.job else ""
        raise ConfigError(f"{told} is a whole sweep; name one of its runs, like {sweep.run(0).path}{task}")
    run = RunDir(Path(told)) if Path(told).is_dir() else None
    log = whose.log_of(run) if run else None
    if run is None or (log is None and rank is None and attempt is None):  # else Slurm need not be asked
        found = whose.find(told, os.environ)
        run, known = found.run, found.job.log if found.job else None
        log = (whose.log_of(run, found.number) if run else None) or known
    for line in follow.lines_of(follow.log_files(run, log, rank, attempt), text):
        click.echo(line)


@slurm.command()
@click.argument("told", metavar="RUN|SWEEP|JOBID")
@click.option("--save", is_flag=True, help="Let it save first: ask it to, wait until it has, and only then cancel what is left.")
@click.option(
    "--wait", "limit_s", type=click.IntRange(1), default=600, show_default=True, metavar="SECONDS", help="With --save: for so long."
)
@click.option("--dry-run", is_flag=True, help="Only show what would be run.")
def cancel(told: str, save: bool, limit_s: int, dry_run: bool) -> None:
    """Cancel the job of a run, or of a sweep; it is not queued again."""
    from launch import arrays, jobs, whose
    from sft_dist.errors import ConfigError

    if sweep := arrays.find(told, os.environ):
        told_of = arrays.would_cancel if dry_run else arrays.cancel
        for line in told_of(sweep, save, limit_s, os.environ):
            click.echo(line)
        return
    found = whose.find(told, os.environ)
    if found.stranger or found.number is None:
        raise ConfigError(found.stranger or f"{told} has no job of Slurm that is known")
    if dry_run:
        click.echo("\n".join(jobs.would_cancel(found.number, save, limit_s)))
        return
    if save:
        for line in jobs.save_and_cancel(found.number, found.run, limit_s, os.environ):
            click.echo(line)
        return
    if found.job is None or not found.job.live:
        click.echo(f"job {found.number} has ended already")
        return
    jobs.cancel(found.number, os.environ)
    click.echo(f"job {found.number} is cancelled; it saves if that is faster than the cluster's KillWait (--save waits for it)")
