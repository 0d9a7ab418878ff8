"""What `sft-launch slurm` would hand to Slurm, and what it says of Slurm's answers; no cluster is asked."""

import shlex
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner

from launch import follow, jobs, queue, slurm, snapshot, software, whose
from launch.cli import cli
from launch.jobs import Job
from launch.slurm import Submission, Wishes
from launch.whose import Found
from sft_dist import parse, rundir
from sft_dist.config import Config
from sft_dist.errors import ConfigError, MachineError
from sft_dist.rundir import RunDir, write_json

GOLDEN = Path(__file__).resolve().parent.parent / "golden" / "slurm"
FILES = {"slurm/finetune.sh": b"#!/bin/bash\n#SBATCH --nodes=1\n#SBATCH --time=24:00:00\necho\n", "config.yaml": b"task: classify\n"}
FILES |= {"launch/cli.py": b"", "sft_dist/train.py": b"", "as-written.yaml": b""}
SHOWN = """JobId=77 JobName=JobState=FAILED Reason=None
   UserId=root(0) GroupId=root(0) MCS_label=N/A
   JobState=PENDING Reason=JobHeldUser Dependency=(null)
   Requeue=1 Restarts=2 BatchFlag=1 Reboot=0 ExitCode=0:0
   StartTime=Unknown EndTime=Unknown Deadline=N/A
   NumNodes=2 NumCPUs=4 NumTasks=2 CPUs/Task=2
   Command=/runs/a b's/r/code/0123456789abcdef/slurm/finetune.sh /runs/a b's/r/code/0123456789abcdef/config.yaml
   StdOut=/runs/a b's/r/slurm-77.log
   Power=
"""


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "x.yaml"
    path.write_text((software.REPOSITORY / "configs" / "quickstart.yaml").read_text())
    return path


def settings(config: Path, *overrides: str) -> Config:
    return parse.load(config, overrides)


def job(run: str = "/runs/x", **wishes: object) -> Submission:
    place = Path(run)
    return Submission("x", place, place / "code" / "c0de", 4, Wishes(**wishes), "/opt/py/bin/python", Path("/repository"))  # type: ignore[arg-type]


def test_a_dry_run_prints_what_the_golden_file_holds() -> None:
    asked = job(nodes=2, time="1-0", partition="gpu", account="vision", gpus_per_node="a100:4", others=("--mem=64G", "--exclusive"))
    env = {"HOME": "/home/me", "RANK": "3", "SFT_API_KEY": "hush", "SFT_EXPECT_WORLD": "8"}
    assert "\n".join(slurm.describe(asked, env, FILES)) + "\n" == (GOLDEN / "dry_run.txt").read_text()


def test_a_submission_is_told_as_in_the_golden_file() -> None:
    assert "\n".join(slurm.submitted("4711", job("/runs/it's here", nodes=2))) + "\n" == (GOLDEN / "submitted.txt").read_text()


def test_what_a_hostile_folder_and_flag_hold_is_one_argument_each() -> None:
    command = slurm.argv(job("/runs/a b,'$(touch pwned)' 100%j", others=("--comment=x; rm -rf ~, y",)))
    assert "--output=/runs/a b,'$(touch pwned)' 100%%j/slurm-%j.log" in command
    assert "--comment=x; rm -rf ~, y" in command
    assert command[-1] == "/runs/a b,'$(touch pwned)' 100%j/code/c0de/config.yaml"
    assert shlex.split(shlex.join(command)) == command
    assert slurm.environment(job("/runs/a,b=c"), {})["SFT_CODE"] == "/runs/a,b=c/code/c0de"
    assert not [part for part in command if part.startswith("--export") and part != "--export=ALL"]


@pytest.mark.parametrize("value", ["a\nb", "a\rb", "a\0b", "a\x7fb"])
def test_control_characters_are_refused_wherever_they_stand(value: str) -> None:
    for wishes in (Wishes(partition=value), Wishes(others=(f"--comment={value}",)), Wishes(time=value)):
        with pytest.raises(ConfigError, match="holds a control character"):
            slurm.check(wishes, Path("/runs/x"), {})
    with pytest.raises(ConfigError, match="holds a control character"):
        slurm.check(Wishes(), Path(f"/runs/{value}"), {})


@pytest.mark.parametrize(
    "flag",
    [
        *("--nodes=3", "-N3", "--export=NONE", "-o/tmp/x", "--job-name=y", "--ntasks=8", "--gpus-per-task=1", "--wrap=ls", "-Mother"),
        *(
            "--arr=0-3",
            "--node=3",
            "--expo=NIL",
            "--open=truncate",
            "--clust=other",
            "--wai",
            "--error=/tmp/e",
            "-Ha0-3",
            "-QvN2",
            "-W",
            "-V",
            "--usage",
            "--tasks-per-node=8",
        ),
    ],
)
def test_flags_that_the_launcher_decides_are_refused_with_what_decides_them(flag: str) -> None:
    with pytest.raises(ConfigError, match="is not for you to set here: "):
        slurm.check(Wishes(others=("--mem=4G", flag)), Path("/runs/x"), {})
    fine = ("--mem=4G", "-dsingleton", "--nodelist=n1", "--time-min=5", "--no-requeue", "--gpus=2", "-HxN2", "--wait-all-nodes=1", "--hold")
    slurm.check(Wishes(others=fine), Path("/runs/x"), {})


@pytest.mark.parametrize("signal", ["--signal=USR1@600", "--signal=R:USR1", "--signal=B:KILL@60", "--sig=B:HUP@60", "--signal"])
def test_a_signal_that_the_script_would_not_hear_is_refused(signal: str) -> None:
    with pytest.raises(ConfigError, match="hears USR1, USR2 or TERM, and only where B: sends it to the script"):
        slurm.check(Wishes(others=(signal,)), Path("/runs/x"), {})
    with pytest.raises(ConfigError, match=r"SBATCH_SIGNAL=.* in the environment: slurm/finetune.sh hears"):
        slurm.check(Wishes(), Path("/runs/x"), {"SBATCH_SIGNAL": signal.partition("=")[2]})
    slurm.check(
        Wishes(others=("--signal=B:USR1@1800", "--sig=RB:sigterm@60", "--signal=B:USR2@60", "--signal=B:10")),
        Path("/runs/x"),
        {"SBATCH_SIGNAL": "B:TERM@90"},
    )


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("SBATCH_ARRAY_INX", "0-3"), ("SBATCH_WAIT", ""), ("SBATCH_NO_REQUEUE", "1"), ("SBATCH_OPEN_MODE", "truncate")),
        *(
            ("SBATCH_CLUSTERS", "other"),
            ("SBATCH_GRES", "gpu:4"),
            ("SBATCH_GPUS_PER_SOCKET", "2"),
            ("SBATCH_ERROR", "/tmp/e"),
            ("SBATCH_GPUS_PER_NODE", "4"),
        ),
    ],
)
def test_a_variable_of_sbatch_that_would_change_the_job_unseen_is_refused(name: str, value: str) -> None:
    with pytest.raises(ConfigError, match=rf"^{name}={value} in the environment is not for you to set here: .*; unset it$"):
        slurm.check(Wishes(), Path("/runs/x"), {name: value})


def test_variables_of_sbatch_that_a_flag_of_ours_answers_or_that_only_choose_a_queue_are_let_be() -> None:
    told = {"SBATCH_GPUS_PER_NODE": "2", "SBATCH_EXPORT": "NONE", "SBATCH_PARTITION": "gpu", "SBATCH_TIMELIMIT": "60", "SBATCH_QOS": "low"}
    slurm.check(Wishes(gpus_per_node="4"), Path("/runs/x"), told)
    assert "--export=ALL" in slurm.argv(job())
    assert "SLURM_EXPORT_ENV" not in slurm.environment(job(), {"SLURM_EXPORT_ENV": "NONE"})


def test_an_abbreviated_dependency_or_gpu_flag_is_understood(config: Path) -> None:
    with pytest.raises(ConfigError, match="how many processes a node needs cannot be seen"):
        slurm.processes(settings(config), Wishes(others=("--gre=gpu:2",)))
    with pytest.raises(ConfigError, match="how many processes a node needs cannot be seen"):
        slurm.processes(settings(config), Wishes(others=("-G4",)))


def test_a_job_s_name_is_one_plain_word(config: Path) -> None:
    for name in ("a\nscancel -u me", "$(touch pwned)", "a b", "../x", "-x"):
        refused = CliRunner().invoke(cli, ["slurm", "submit", str(config), f"run.name={name}", "--dry-run"])
        assert isinstance(refused.exception, ConfigError), name
    assert list(Path().iterdir()) == [Path("x.yaml")]


def test_a_word_that_sbatch_would_take_for_the_script_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"'other.sh' after -- is no flag of sbatch"):
        slurm.check(Wishes(others=("-xn2", "other.sh")), Path("/runs/x"), {})


def test_the_last_job_of_a_run_is_the_one_that_came_last_however_it_was_submitted(config: Path) -> None:
    run = rundir.create(settings(config))
    assert whose.last_job(run) is None
    write_json(run.path / "job.json", {"job": "900", "submitted_ns": 10})
    (run.path / "attempts" / "1").mkdir()
    write_json(run.path / "attempts" / "1" / "attempt.json", {"launcher": "Slurm job 7, start 1", "started_ns": 20})
    assert whose.last_job(run) == "7"
    write_json(run.path / "job.json", {"job": "8", "submitted_ns": 30})
    assert whose.last_job(run) == "8"


def submitted(config: Path, **about: object) -> RunDir:
    run = rundir.create(settings(config))
    write_json(run.path / "job.json", {"job": "77", "name": "x", "code": f"{run.path.absolute()}/code/0123456789abcdef", **about})
    return run


def shown(run: Path, name: str = "x") -> Job:
    text = f"JobId=77 JobName={name}\n   JobState=RUNNING Reason=None\n   Command={run}/code/0123456789abcdef/slurm/finetune.sh a.yaml\n"
    found = jobs.read("77", text)
    assert found is not None
    return found


def test_a_job_is_a_run_s_only_if_it_runs_its_snapshot_also_through_a_link(config: Path) -> None:
    run = submitted(config)
    Path("link").symlink_to(run.path)
    assert whose.stranger(shown(run.path.absolute()), RunDir(Path("link"))) is None
    told = whose.stranger(shown(Path("/runs/other")), run)
    assert told == f"job 77 is no longer that of {run.path}: the number was given anew, and makes /runs/other"
    by_hand = Job("77", "RUNNING", name="x", command="/home/you/train.sh \x1b[2J")
    assert str(whose.stranger(by_hand, run)).endswith("the number was given anew, and is 'x', which runs /home/you/train.sh \\x1b[2J")
    assert whose.stranger(Job("77", "COMPLETED", name="x"), run) is None  # the accounting knows no command
    assert whose.stranger(Job("77", "COMPLETED", name="y"), run) is not None


def test_a_job_that_was_submitted_by_hand_is_known_by_name_and_arguments(config: Path) -> None:
    run = rundir.create(settings(config))
    (run.path / "attempts" / "1").mkdir()
    about = {"cluster": "here", "name": "sft-dist", "arguments": "configs/x.yaml run.name=y"}
    write_json(run.path / "attempts" / "1" / "attempt.json", {"launcher": "Slurm job 77, start 1", "started_ns": 20, "slurm": about})
    own = Job("77", "RUNNING", name="sft-dist", command="/repository/slurm/finetune.sh configs/x.yaml run.name=y")
    assert whose.stranger(own, run) is None
    assert whose.stranger(replace(own, command="/repository/sweep.sh 3"), run) is None  # a script that calls ours
    assert whose.stranger(replace(own, command="/repository/slurm/finetune.sh configs/x.yaml run.name=z"), run) is not None
    assert whose.stranger(replace(own, name="train"), run) is not None


@pytest.mark.parametrize(
    "text",
    ["", "[]", '{"job": 5, "submitted_ns": "x"}', '{"job": ["7"], "code": 3, "command": "rm"}', '{"job": "-1; ls"}', "[" * 100_000, "\0"],
)
def test_a_record_of_a_job_that_is_no_record_is_no_job(config: Path, text: str) -> None:
    run = rundir.create(settings(config))
    (run.path / "job.json").write_text(text)
    assert whose.last_job(run) in (None, "5")
    assert whose.log_of(run) is None
    assert whose.command_of(run, "7", run.path) is None
    (run.path / "attempts" / "1").mkdir()
    write_json(run.path / "attempts" / "1" / "attempt.json", {"launcher": ["Slurm"], "started_ns": {}, "slurm": 3})
    assert whose.last_job(run) in (None, "5")


def test_a_job_that_begins_before_its_number_is_written_knows_what_was_typed(config: Path) -> None:
    run = submitted(config, job=None, command=["sft-launch", "slurm", "submit", "x.yaml"])
    code = run.path / "code" / "0123456789abcdef"
    assert whose.command_of(run, "77", code) == ["sft-launch", "slurm", "submit", "x.yaml"]
    assert whose.command_of(run, "77", software.REPOSITORY) is None
    submitted(config, job="78", command=["sft-launch"])
    assert (whose.command_of(run, "77", code), whose.command_of(run, "78", code)) == (None, ["sft-launch"])


def test_one_process_a_gpu_and_never_two(config: Path) -> None:
    gpu, cpu = settings(config, "device=cuda"), settings(config, "device=cpu")
    assert slurm.processes(gpu, Wishes(gpus_per_node="a100:4")) == 4
    assert slurm.processes(gpu, Wishes(gpus_per_node="a100:2,v100:1")) == 3
    assert slurm.processes(gpu, Wishes(procs=2)) == 2
    assert slurm.processes(cpu, Wishes()) == 1
    with pytest.raises(ConfigError, match=r"two processes cannot share one; use --procs 4"):
        slurm.processes(gpu, Wishes(gpus_per_node="4", procs=8))
    with pytest.raises(ConfigError, match=r"device = cuda, but how many GPUs a node has nobody has said"):
        slurm.processes(gpu, Wishes())
    with pytest.raises(ConfigError, match=r"--gpus-per-node 'many'; use a number"):
        slurm.check(Wishes(gpus_per_node="many"), Path("/runs/x"), {})


def test_what_another_job_has_left_in_the_environment_does_not_go_on() -> None:
    env = {
        "SLURM_JOB_ID": "1",
        "SLURM_MEM_PER_CPU": "2",
        "SLURM_CONF": "/etc/s",
        "LOCAL_RANK": "0",
        "TORCHELASTIC_RUN_ID": "x",
        "HOME": "/h",
        "SFT_ATTEMPT": "/runs/y/attempts/1/node-0",
    }
    ours = {"SFT_CODE", "SFT_EXPECT_WORLD", "SFT_PROCS_PER_NODE", "SFT_PYTHON"}
    assert set(slurm.environment(job(), env)) == {"SLURM_CONF", "HOME", *ours}
    del env["SLURM_JOB_ID"]
    assert set(slurm.environment(job(), env)) == {"SLURM_CONF", "SLURM_MEM_PER_CPU", "HOME", *ours}


def test_what_was_typed_can_be_typed_again_with_another_key_at_its_end(config: Path) -> None:
    words = slurm.typed(config, ("optim.lr=0.1",), Wishes(nodes=2, time="60", others=("--mem=4G",)))
    assert words[-2:] == [str(config), "optim.lr=0.1"]
    done = CliRunner().invoke(cli, [*words[1:], "batch.micro=2", "--dry-run"])
    assert "--nodes=2 --time=60" in done.stdout and " --mem=4G " in done.stdout


@pytest.mark.parametrize("verb", [["slurm", "submit"], ["ssh", "-H", "n1,n2"]])
def test_a_run_of_a_wandb_sweep_is_begun_in_the_folder_that_its_ranks_use(
    verb: list[str], config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    variables = {"WANDB_SWEEP_ID": "sweep1", "WANDB_RUN_ID": "abc12345"}
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    done = CliRunner().invoke(cli, [*verb, str(config), "--optim.lr=0.1", "--dry-run"])
    name = settings(config, *parse.named(config, (), variables)).run.name
    assert name.endswith("-abc12345")
    assert f"/{name}" in done.output.splitlines()[0], done.output


def test_a_dry_run_writes_nothing_and_asks_nobody(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    done = CliRunner().invoke(cli, ["slurm", "submit", str(config), "--dry-run", "--", "--mem=4G"])
    assert (done.exit_code, list(Path().iterdir())) == (0, [Path("x.yaml")])
    assert done.stdout.splitlines()[-1].startswith("sbatch --parsable --job-name=x --nodes=1 ")
    refused = CliRunner().invoke(cli, ["slurm", "submit", str(config)])
    assert isinstance(refused.exception, MachineError)
    assert "there is no sbatch on this machine" in str(refused.exception)
    assert list(Path().iterdir()) == [Path("x.yaml")]


def test_what_cannot_run_is_refused_before_slurm_is_asked(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    refused = CliRunner().invoke(cli, ["slurm", "submit", str(config), "--nodes=99", "--procs=99", "batch.total=8"])
    assert isinstance(refused.exception, ConfigError)
    assert "batch.total = 8 is fewer than the 9801 ranks" in str(refused.exception)


def test_the_snapshot_holds_all_that_the_packages_need(config: Path) -> None:
    files = snapshot.contents(software.REPOSITORY, config, "task: classify\n")
    for package in ("sft_dist", "launch"):
        there = {str(path.relative_to(software.REPOSITORY)) for path in (software.REPOSITORY / package).rglob("*") if path.is_file()}
        assert {name for name in there if "__pycache__" not in name and "/." not in name} <= set(files)
    assert {"slurm/finetune.sh", "config.yaml", "as-written.yaml"} <= set(files)
    assert not [name for name in files if name.endswith(".pyc")]


def test_the_same_content_is_put_aside_once_and_a_change_makes_another(config: Path) -> None:
    run = rundir.create(settings(config))
    first = snapshot.make(run, FILES)
    assert snapshot.make(run, FILES) == first
    other = snapshot.make(run, {**FILES, "config.yaml": b"task: detect\n"})
    assert sorted(path.name for path in (run.path / "code").iterdir()) == sorted([first.name, other.name])
    assert (first / "config.yaml").read_text() == "task: classify\n"
    rundir.check(settings(config))  # the folder still counts as this run's


def test_a_snapshot_that_somebody_has_edited_is_not_submitted(config: Path) -> None:
    run = rundir.create(settings(config))
    path = snapshot.make(run, FILES) / "launch" / "cli.py"
    path.chmod(0o644)
    path.write_text("print()")
    with pytest.raises(MachineError, match=r"was changed after it was made \(launch/cli.py\)"):
        snapshot.make(run, FILES)


def test_a_job_is_read_from_what_scontrol_shows_whatever_its_name() -> None:
    found = jobs.read("77", SHOWN)
    place = Path("/runs/a b's/r")
    command = f"{place}/code/0123456789abcdef/slurm/finetune.sh {place}/code/0123456789abcdef/config.yaml"
    assert found == Job(
        "77", "PENDING", "JobHeldUser", "0:0", "2", "Unknown", "2", place / "slurm-77.log", place, "JobState=FAILED Reason=None", command
    )


@pytest.mark.parametrize(
    ("reason", "words"),
    [
        ("Priority", "other jobs come first; wait; `sprio -j 5`"),
        ("ReqNodeNotAvail,_UnavailableNodes:n1", "nodes that it needs are down, drained or reserved"),
        ("QOSMaxGRESPerUser", "a limit of its quality of service (QOS) is reached"),
        ("AssocGrpCpuLimit", "a limit of your account is reached"),
        ("DependencyNeverSatisfied", "it will never start"),
        ("launch_failed_requeued_held", "scontrol release 5"),
        ("Frobnicated", "see `man squeue`"),
    ],
)
def test_why_a_job_waits_is_told_in_words(reason: str, words: str) -> None:
    assert words in queue.reason_in_words(reason, "5")


def test_nodes_that_are_only_drained_make_a_job_wait_and_nodes_that_never_suffice_do_not() -> None:
    told = "allocation failure: Requested node configuration is not available"
    assert queue.only_waits(told, ["drained", "idle"])
    assert not queue.only_waits(told, ["idle", "mixed", "allocated"])
    assert not queue.only_waits("allocation failure: Invalid partition name specified", ["drained"])


def test_the_state_of_a_job_that_slurm_forgot_is_told_from_the_folder(config: Path) -> None:
    run = rundir.create(settings(config))
    write_json(run.path / "job.json", {"job": "12"})
    assert whose.last_job(RunDir(run.path)) == "12"
    lines = follow.status(Found(run, "12"))
    assert "12: Slurm no longer knows it" in lines[0]
    assert lines[-1].strip() == "it has not begun yet"


def test_what_somebody_elses_job_runs_drives_no_terminal_however_long_the_line(config: Path) -> None:
    run = rundir.create(settings(config))
    told = f"job 12 is no longer that of {run.path}: the number was given anew, and is 'a', which runs {'/long' * 20}\x1b[2J.sh"
    [job, *_] = follow.status(Found(run, "12", stranger=told))
    assert job.endswith("/long/long\\x1b[2J.sh")


def test_rows_of_metrics_that_are_none_are_passed_over(config: Path) -> None:
    run = rundir.create(settings(config))
    (run.path / "attempts" / "1").mkdir()
    run.metrics.write_text('{"a": 1}\n[]\n{"epoch": "x"}\n{"step": 3, "kind": "train", "epoch": 0.5, "train/loss": 2.0}\n')
    told = " ".join(follow.status(Found(run)))
    assert "step 3 of ?, epoch 0.50: train/loss 2" in told


def test_a_rank_s_lines_are_found_in_its_attempt_and_drive_no_terminal(config: Path) -> None:
    run = rundir.create(settings(config))
    for attempt, rank, text in ((1, 3, "old"), (2, 3, "new\x1b[2J\n10%\r20%\r"), (2, 4, "other")):
        folder = run.path / "attempts" / str(attempt) / f"node-{rank - 3}"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"rank-{rank}.out").write_text(text)
    assert list(follow.lines_of(follow.log_files(run, None, 3, None), None)) == ["new\\x1b[2J", "20%"]
    assert list(follow.lines_of(follow.log_files(run, None, 3, 1), "l")) == ["old"]
    assert len(follow.log_files(run, None, None, 2)) == 2
    with pytest.raises(ConfigError, match="has nothing of rank 9; it has ranks 3 to 4"):
        follow.log_files(run, None, 9, None)
    with pytest.raises(ConfigError, match="has no attempt 5; it has 1 to 2"):
        follow.log_files(run, None, 3, 5)
