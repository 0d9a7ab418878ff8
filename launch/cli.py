"""`sft-launch`: one plan, every way to start it."""

import gc
import json
import os
import shlex
import socket
import sys
from collections.abc import Sequence
from pathlib import Path

import click

from launch.slurm_cli import slurm
from launch.ssh_cli import ssh
from sft_dist.errors import ConfigError, SftError

CONFIG = click.argument("config", type=click.Path(path_type=Path))
OVERRIDES = click.argument("overrides", nargs=-1, type=click.UNPROCESSED, metavar="[KEY=VALUE]...")
UNKNOWN = {"ignore_unknown_options": True, "allow_interspersed_args": True}
DRY = click.option("--dry-run", is_flag=True, help="Only show what would be started.")


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="sft-dist", prog_name="sft-launch")
def cli() -> None:
    """Start a run anywhere: on this machine, on others by ssh, or under Slurm. The config says what runs, the launcher only where."""


cli.add_command(slurm)
cli.add_command(ssh)


@cli.command(context_settings=UNKNOWN)
@CONFIG
@OVERRIDES
@click.option("--procs", type=click.IntRange(1), help="Processes on each node; by default one a GPU, or one.")
@click.option("--nodes", type=click.IntRange(1), default=1, show_default=True, help="With --simulate: this many agents on this machine.")
@click.option("--simulate", is_flag=True, help="Let this machine stand for --nodes nodes.")
@DRY
def run(config: Path, overrides: tuple[str, ...], procs: int | None, nodes: int, simulate: bool, dry_run: bool) -> None:
    """Run CONFIG on this machine, or go on with it."""
    gc.disable()  # what is read before the ranks start is kept, and looking for garbage in it would only take time

    from launch import local, plans
    from sft_dist import parse, rundir

    overrides = parse.named(config, overrides, os.environ)
    if nodes > 1 and not simulate:
        raise ConfigError(f"--nodes {nodes} on one machine needs --simulate; on several machines use slurm/finetune.sh")
    settings, each = local.checked(config, overrides, os.environ, procs, nodes)
    if done := rundir.finished(settings):
        click.echo("\n".join(rundir.told_again(done)))
        return
    where = ["--procs", str(each), *(["--nodes", str(nodes), "--simulate"] if simulate else [])]
    again = ["sft-launch", "run", *where, str(config), *overrides]
    folder = local.would_begin(settings) if dry_run else local.begin(settings, nodes, each, "sft-launch run", again)
    launch = plans.Launch(config, overrides, nodes, each, folder.absolute(), port=0 if nodes == 1 else _free_port())
    if dry_run:
        click.echo("\n".join(plans.describe(launch, os.environ)))
        return
    sys.exit(local.start(launch, os.environ))


@cli.command(context_settings=UNKNOWN)
@CONFIG
@OVERRIDES
@click.option("--nodes", type=click.IntRange(1), required=True)
@click.option("--procs", type=click.IntRange(1), required=True)
@click.option("--launcher", default="by hand", help="Who starts the agents; kept in attempt.json.")
def begin(config: Path, overrides: tuple[str, ...], nodes: int, procs: int, launcher: str) -> None:
    """Refuse what cannot run, open an attempt at CONFIG, and print its folder; nothing if the run is finished.

    For scripts that start the agents themselves: slurm/finetune.sh.
    """
    from launch import local, plans, software, whose
    from sft_dist import parse, rundir

    overrides = parse.named(config, overrides, os.environ)
    settings, _ = local.checked(config, overrides, os.environ, procs, nodes, os.environ.get("SFT_EXPECT_WORLD", ""))
    if done := rundir.finished(settings):
        click.echo("\n".join(rundir.told_again(done)), err=True)
        return
    run = rundir.RunDir.of(settings)
    told = whose.command_of(run, plans.job_number(os.environ), software.REPOSITORY)
    again = told or [*plans.sbatch(os.environ), "slurm/finetune.sh", str(config), *overrides]
    folder = local.begin(settings, nodes, procs, launcher, again, plans.job_here([str(config), *overrides], os.environ))
    for line in local.little_notice(run, os.environ):
        click.echo(f"warning: {line}", err=True)
    click.echo(str(folder.absolute()))


@cli.command(context_settings=UNKNOWN)
@click.argument("config", required=False, type=click.Path(path_type=Path))
@OVERRIDES
@click.option("--nodes", type=click.IntRange(1), help="By default those of the Slurm allocation that this runs in, or one.")
@click.option("--procs", type=click.IntRange(1), help="Processes that a run would start on each node; by default one a GPU, or one.")
@click.option("--simulate", is_flag=True, help="Let this machine stand for --nodes nodes.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@DRY
def doctor(
    config: Path | None, overrides: tuple[str, ...], nodes: int | None, procs: int | None, simulate: bool, as_json: bool, dry_run: bool
) -> None:
    """Examine the machines before a run of CONFIG; exit code 78 if anything is wrong."""
    from launch import visits

    asked = nodes or (1 if simulate else int(os.environ.get("SLURM_JOB_NUM_NODES", "1")))
    port = _free_port() if simulate and asked > 1 else 0
    visit = visits.Visit(asked, Path("runs"), procs or 0, as_json=as_json, port=port)
    visit = visits.prepare(visit, config, overrides, os.environ)
    lines = visits.commands(visit, simulate, os.environ)
    if dry_run:
        click.echo("\n".join(shlex.join(line) for line in lines))
        return
    sys.exit(visits.start(visit, lines, os.environ))


OVER = click.option("--over", is_flag=True, help="The attempt is over: an agent without a last word was killed.")


@cli.command()
@click.argument("run_folder", type=click.Path(path_type=Path), metavar="RUN")
@OVER
@click.option("--made-room", is_flag=True, help="It was stopped to make room, whatever the signal says.")
def again(run_folder: Path, over: bool, made_room: bool) -> None:
    """Say whether the last attempt at RUN is worth another one, by exit code 0 or 1, and why.

    For scripts that queue a job again: slurm/finetune.sh.
    """
    from launch import verdict, why

    worth, reason = verdict.worth_another(why.look(why.find(run_folder), over=over), made_room)
    click.echo(reason)
    sys.exit(0 if worth else 1)


@cli.command()
@click.argument("run_folder", type=click.Path(path_type=Path), metavar="RUN")
@click.option("--all", "everything", is_flag=True, help="Also those that only report the consequence, whole tracebacks, earlier attempts.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.option("--attempt", type=click.IntRange(1), help="This attempt; by default the last one.")
@OVER
def why(run_folder: Path, everything: bool, as_json: bool, attempt: int | None, over: bool) -> None:
    """Say how RUN ended: the first cause, what is lost, and what to type next."""
    from launch import why as screens

    run = screens.find(run_folder)
    verdict = screens.look(run, attempt, over=over)
    told = [json.dumps(screens.to_json(run, verdict), indent=1)] if as_json else screens.screen(run, verdict, everything)
    click.echo("\n".join(told))


@cli.command()
@click.argument("script", type=click.Path(path_type=Path, allow_dash=True))
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def lint(script: Path, as_json: bool) -> None:
    """Name the mistakes of a job script or launch line (- reads it from stdin); exit code 1 if there are any."""
    from dataclasses import asdict

    from launch import lint as linter

    try:
        text = sys.stdin.read() if str(script) == "-" else script.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read {script}: {getattr(error, 'strerror', None) or 'it is not a text file in UTF-8'}") from error
    mistakes = linter.lint(text)
    told = [json.dumps([asdict(each) for each in mistakes], indent=1)] if as_json else linter.screen(str(script), mistakes)
    click.echo("\n".join(told))
    sys.exit(1 if mistakes else 0)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a command and end the process with the exit code of the contract; no traceback for what people or machines got wrong."""
    try:
        code = cli.main(args=list(sys.argv[1:] if arguments is None else arguments), prog_name="sft-launch", standalone_mode=False)
        sys.exit(code if isinstance(code, int) else 0)
    except SftError as error:
        click.echo("\n".join(["sft-launch: cannot start this", *(f"  - {problem}" for problem in error.problems)]), err=True)
        sys.exit(error.exit_code)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except click.Abort:
        click.echo("sft-launch: interrupted", err=True)
        sys.exit(130)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port
