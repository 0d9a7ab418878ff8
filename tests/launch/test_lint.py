"""Every mistake that the linter knows is found in a script that has it, and not in one that has not."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from launch.cli import cli
from launch.lint import RULES, lint
from launch.shell import read

REPOSITORY = Path(__file__).resolve().parents[2]
LOOP = "while kill -0 $!; do wait $!; done"

CASES = {  # rule -> scripts that have the mistake, scripts that have not
    "accelerate-cpu": (
        ["accelerate launch --cpu --num_processes 2 x.py", "accelerate launch \\\n  --num-processes=$N \\\n  --cpu x.py"],
        ["accelerate launch --cpu --num_processes 1 x.py", "accelerate launch --num_processes 2 --num_cpu_threads_per_process 4 x.py"],
    ),
    "accelerate-machine-rank": (
        ["srun accelerate launch --num_machines 2 x.py", "accelerate launch --num_machines $SLURM_NNODES x.py"],
        ["accelerate launch --num_machines 2 --machine_rank 1 x.py", "accelerate launch --num_machines 1 x.py"],
    ),
    "accelerate-config": (["accelerate launch x.py"], ["accelerate launch --config_file a.yaml x.py", "accelerate config default"]),
    "accelerate-orphan": (
        [
            "#SBATCH --signal=B:TERM@60\naccelerate launch --num_processes 1 x.py",
            "trap save USR1\naccelerate launch --num-processes=1 x.py &",
        ],
        [
            "accelerate launch --num_processes 1 x.py",
            "#SBATCH --signal=B:TERM@60\naccelerate launch --num_processes 16 x.py",
            "#SBATCH --signal=B:TERM@60\naccelerate launch --num_processes 1 --num_machines 2 x.py",
        ],
    ),
    "rdzv-conf-backend": (["torchrun --rdzv_conf rdzv_backend=c10d x.py"], ["torchrun --rdzv-conf timeout=60 --rdzv-backend c10d x.py"]),
    "c10d-node-rank": (
        ["torchrun --rdzv-backend=c10d --node-rank=1 x.py"],
        ["torchrun --node_rank 1 --master-addr a x.py", "torchrun --rdzv_backend c10d x.py"],
    ),
    "own-rendezvous": (
        [
            "torchrun --rdzv-id=$RANDOM x.py",
            "srun bash -c 'torchrun --rdzv_id $(uuidgen) x.py'",
            'srun bash -c "torchrun --rdzv-id \\$RANDOM x.py"',
        ],
        ["srun torchrun --rdzv-id=$RANDOM x.py", "torchrun --rdzv-id $SLURM_JOB_ID x.py"],
    ),
    "deepspeed-launcher": (
        ["deepspeed --hostfile h x.py", "deepspeed x.py --stage 3"],
        ["torchrun x.py --deepspeed config.json", "pip install deepspeed"],
    ),
    "pdsh": (["accelerate launch --deepspeed_multinode_launcher pdsh x.py", "pdsh -w n1,n2 hostname"], ["apt-get install pdsh"]),
    "port-29500": (
        ["export MASTER_PORT=29500", "torchrun --master_port 29500 x.py", "torchrun --rdzv_endpoint $head:29500 x.py"],
        ["export MASTER_PORT=$((20000 + SLURM_JOB_ID % 12000))", "torchrun --master_port 29501 x.py", "# MASTER_PORT=29500"],
    ),
    "hostname-ip": (
        ["head=$(srun --nodes=1 hostname --ip-address)", 'export MASTER_ADDR="$(hostname -i)"'],
        ["head=$(hostname)", "hostname -f", "echo 'not hostname -i'"],
    ),
    "sbatch-variable": (["#SBATCH --nodes=$N\nsrun x", "#SBATCH -o ${HOME}/log\nsrun x"], ["#SBATCH --output=log-%j.txt\nsrun x"]),
    "late-sbatch": (["#SBATCH -N 2\nset -e\n#SBATCH --requeue"], ["#!/bin/bash\n#\n# words\n\n#SBATCH -N 2\nset -e"]),
    "truncated-log": (
        ["#SBATCH --requeue\nx", "#SBATCH --requeue --open-mode=truncate\nx", "scontrol requeue $SLURM_JOB_ID"],
        ["#SBATCH --requeue\n#SBATCH --open-mode=append\nx", "#SBATCH --no-requeue\nx", "#SBATCH --nodes=1\nx"],
    ),
    "restart-count": (
        [
            "set -euo pipefail\n[[ $SLURM_RESTART_COUNT -gt 0 ]]",
            "if [ $SLURM_RESTART_COUNT -gt 3 ]; then exit; fi",
            'test "${SLURM_RESTART_COUNT}" -eq 0',
        ],
        [
            "[[ $SLURM_RESTART_COUNT -gt 0 ]]",
            "set -u\n[ ${SLURM_RESTART_COUNT:-0} -gt 0 ]",
            '[ -n "$SLURM_RESTART_COUNT" ]',
            "echo $SLURM_RESTART_COUNT",
        ],
    ),
    "after-requeue": (
        ["scontrol requeue $SLURM_JOB_ID\ncp -r /tmp/out .", "h() {\n  scontrol requeue $SLURM_JOB_ID\n  srun -N1 save\n}\ntrap h USR1"],
        [
            "scontrol requeue $SLURM_JOB_ID\necho done\nexit 0\ncp a b",
            "h() { scontrol requeue $SLURM_JOB_ID; }\ntrap h USR1\ncp a b",
            "scontrol requeue $SLURM_JOB_ID || sbatch next.sh",
            "if a; then\n  scontrol requeue 1\nfi\ncp a b",
        ],
    ),
    "signal-not-to-batch": (
        ["#SBATCH --signal=USR1@300\ntrap save USR1\nsrun a.py &", "#SBATCH --signal=R:USR1@9\ntrap 'x' SIGUSR1"],
        ["#SBATCH --signal=B:USR1@300\ntrap save USR1", "#SBATCH --signal=USR1@300\nsrun a.py", "#SBATCH --signal=USR1\ntrap x EXIT"],
    ),
    "untrapped-signal": (
        [
            "#SBATCH --signal=B:USR1@300\nsrun python x.py",
            "#SBATCH --signal=B:TERM@9\ntrap save USR1\nsrun python x.py &\nwait",
            "#SBATCH --signal=B:USR1@300\n. .venv/bin/activate\nsrun python x.py",
        ],
        [
            "#SBATCH --signal=B:USR1@300\ntrap save SIGUSR1\nsrun python x.py &\nwait",
            "#SBATCH --signal=B:10@300\ntrap '' USR1\nsrun python x.py",
            "#SBATCH --signal=USR1@300\nsrun python x.py",
            "#SBATCH --signal=B:USR1@300\nexec python x.py",
            '#SBATCH --signal=B:USR1@300\n. "$code/finetune.sh" "$config"',
            '#SBATCH --signal=B:USR1\nfor s in USR1 TERM; do trap save "$s"; done\nsrun python x.py &\nwait',
        ],
    ),
    "usr1-to-torchrun": (
        [
            "#SBATCH --signal=USR1@300\nsrun torchrun x.py",
            "h() { scancel --signal=USR1 $SLURM_JOB_ID.0; }\ntrap h USR1\nsrun torchrun x.py &\nwait",
            "trap 'kill -SIGUSR1 $p; wait $p' USR1\ntorchrun x.py & p=$!\nwait",
        ],
        [
            "trap 'kill -TERM $p; wait $p' USR1\nsrun torchrun x.py & p=$!\nwait",
            "#SBATCH --signal=USR1@300\nsrun torchrun --signals-to-handle SIGTERM,SIGUSR1 x.py",
            "#SBATCH --signal=USR1@300\nsrun python x.py",
        ],
    ),
    "deaf-trap": (
        [
            "trap save USR1\nsrun python x.py",
            "trap 'x' TERM\nsrun torchrun x.py || exit 1",
            "h() { touch stop; }\ntrap -- h 10\nsrun python x.py",
            "trap save USR1\ntorchrun x.py",
            "trap save USR1\npython prepare.py\npython x.py",
            "trap 'cp -r /tmp/out . && rm -r /tmp/out' TERM\nsrun python x.py",
        ],
        [
            f"trap save USR1\nsrun python x.py &\n{LOOP}",
            "trap clean EXIT\nsrun python x.py",
            "trap save USR1\nhead=$(srun -N1 hostname)",
            "trap '' TERM\nsrun python x.py",
            "trap save USR1\npython prepare.py\npython x.py &\nwait",
            "trap 'kill -TERM $monitor' EXIT\nsrun python x.py",
            "trap 'rm -rf /tmp/TERM' EXIT\nsrun python x.py",
            "clean() {\n  rm -r /tmp/x\n  exit 1\n}\ntrap clean EXIT INT TERM\nsrun python x.py",
            "clean() { rm -r /tmp/x; }\ntrap clean SIGTERM\nsrun python x.py",
            f"h() {{ srun python save.py; }}\ntrap h USR1\nsrun python x.py &\n{LOOP}",
        ],
    ),
    "waits-once": (
        ["trap save USR1\nsrun python x.py &\nwait", "h() { kill -USR1 $p; }\ntrap h USR1\nsrun python x.py & p=$!\nwait $p"],
        [
            f"trap save USR1\nsrun python x.py &\n{LOOP}\nwait",
            "trap 'scontrol requeue $SLURM_JOB_ID' USR1\nsrun python x.py &\nwait",
            "srun python x.py &\nwait",
            "h() {\n  kill -USR1 $p\n  wait $p\n}\ntrap h USR1\nsrun python x.py &\np=$!\nwait $p",
            "function h { save; }\nsave() { kill $p; wait $p; }\ntrap h TERM\nsrun python x.py & p=$!\nwait $p",
            "trap 'kill -USR1 $p; wait $p' USR1\nsrun python x.py & p=$!\nwait $p",
            "trap save USR1\nsrun python x.py & p=$!\nwait $p\nwait $p",
            "trap 'rm -r /tmp/x' TERM\nsrun python x.py &\nwait",
            "h() { sbatch next.sh; }\ntrap h USR1\nsrun python x.py &\nwait",
        ],
    ),
    "shell-between": (
        ['srun bash -c "torchrun x.py"', "srun -N 2 sh -lc 'cd /a && python x.py'", "srun bash -c 'exec cd /; torchrun x.py'"],
        [
            "srun bash -c 'exec torchrun x.py'",
            "srun bash -c 'cd /a && A=1 exec python x.py'",
            "srun torchrun x.py",
            "srun bash -c 'rm -r /tmp/a'",
        ],
    ),
    "batch-shell-rank": (
        [
            "srun torchrun --node_rank $SLURM_PROCID x.py",
            'srun bash -c "exec torchrun --node-rank ${SLURM_NODEID} x.py"',
            "#SBATCH -N 2\nexport RANK=$SLURM_PROCID",
        ],
        [
            "srun bash -c 'exec torchrun --node_rank $SLURM_PROCID x.py'",
            'srun bash -c "exec torchrun --node-rank \\$SLURM_NODEID x.py"',
            "export RANK=$SLURM_PROCID\nexec python x.py",
        ],
    ),
    "srun-cpus": (
        ["#SBATCH --cpus-per-task=8\nsrun python x.py", "#SBATCH -c 8\nsrun bash -c 'exec python x.py'"],
        [
            "#SBATCH -c 8\nsrun -c $SLURM_CPUS_PER_TASK python x.py",
            "#SBATCH -c 8\nexport SRUN_CPUS_PER_TASK=8\nsrun python x.py",
            "srun python x.py",
            "#SBATCH -c 8\nsrun hostname",
        ],
    ),
    "gpus-per-task": (
        ["#SBATCH --gpus-per-task=1\nsrun x", "srun --gpus-per-task=a100:1 python x.py"],
        ["#SBATCH --gpus-per-task=8\nsrun x", "#SBATCH --gpus-per-node=1\nsrun x"],
    ),
    "worlds-per-node": (
        [
            "#SBATCH --ntasks-per-node=8\nsrun torchrun x.py",
            "#SBATCH -N 2\n#SBATCH -n 16\nsrun torchrun x.py",
            "srun -N 2 -n 16 accelerate launch x.py",
            "#SBATCH --tasks-per-node=8\nsrun torchrun x.py",
        ],
        [
            "#SBATCH --ntasks-per-node=8\nsrun --ntasks-per-node=1 torchrun x.py",
            "#SBATCH --ntasks-per-node=8\nsrun python x.py",
            "srun -N 2 -n 2 torchrun x.py",
        ],
    ),
    "one-thread": (
        ["torchrun --nproc-per-node 8 x.py", "torchrun --nproc_per_node=auto x.py", "accelerate launch --config_file a.yaml x.py"],
        [
            "torchrun --nnodes 2 --rdzv-backend c10d x.py",
            "accelerate launch --num_processes 1 x.py",
            "export OMP_NUM_THREADS=4\ntorchrun --nproc-per-node 8 x.py",
            "torchrun --nproc_per_node=1 x.py",
            "OMP_NUM_THREADS=4 torchrun x.py",
        ],
    ),
    "killed-while-saving": (
        ["trap save USR1\nsrun --kill-on-bad-exit=1 torchrun x.py &", "#SBATCH --signal=USR1\nsrun -K torchrun x.py"],
        ["trap save USR1\nsrun --kill-on-bad-exit=0 torchrun x.py &", "srun -K torchrun x.py", "trap save USR1\nsrun -K python x.py &"],
    ),
    "short-shutdown": (
        ["#SBATCH --signal=B:USR1@600\nsrun torchrun x.py", "trap 'kill $p' TERM\napptainer exec a.sif torchrun x.py &\np=$!\nwait"],
        ["#SBATCH --signal=B:USR1@600\nexport PET_SHUTDOWN_TIMEOUT=600\nsrun torchrun x.py", "srun torchrun x.py"],
    ),
    "gpu-bind": (
        ["#SBATCH --gpu-bind=closest\nsrun torchrun x.py", "srun --gpu-bind=verbose,single:1 torchrun x.py"],
        ["srun --gpu-bind=none torchrun x.py", "#SBATCH --gpu-bind=closest\nsrun python x.py"],
    ),
    "no-overlap": (
        ["srun torchrun x.py &\nsrun nvidia-smi\nwait", "srun --nodes=$N --ntasks=$N python x.py &\nwhile sleep 9; do srun hostname; done"],
        [
            "srun torchrun x.py &\nsrun --overlap nvidia-smi\nwait",
            "srun torchrun x.py &\nwait\nsrun hostname",
            "srun -N1 -n1 -w a python x.py &\nsrun hostname",
            "srun --overlap python x.py &\nsrun hostname",
            "srun python x.py\nsrun hostname",
        ],
    ),
    "leaked-ranks": (
        ["export RANK=0 WORLD_SIZE=2\nsbatch next.sh", "export MASTER_ADDR=$head\nsrun python x.py\nsbatch next.sh"],
        ["export MASTER_ADDR=$head\nsbatch --export=NONE next.sh", "sbatch next.sh"],
    ),
    "sacct": (
        ["state=$(sacct -j $id -n -o State)", "while sacct -j 1 | grep RUN; do sleep 1; done"],
        ["scontrol show job 1", "command -v sacct && sacct -j 1", "echo 'see sacct -j'"],
    ),
    "whole-array": (
        ["#SBATCH --array=0-3\nscontrol requeue $SLURM_JOB_ID"],
        ["#SBATCH -a 0-3\nscontrol requeue ${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID", "scontrol requeue $SLURM_JOB_ID"],
    ),
}
BAD = [(rule, text) for rule, (bad, _) in CASES.items() for text in bad]
GOOD = [(rule, text) for rule, (_, good) in CASES.items() for text in good]


def names(text: str) -> set[str]:
    return {mistake.name for mistake in lint(text)}


def test_every_rule_has_its_cases_and_a_name_of_its_own() -> None:
    assert [rule.name for rule in RULES] == list(CASES)


@pytest.mark.parametrize(("rule", "text"), BAD)
def test_a_mistake_is_found(rule: str, text: str) -> None:
    assert rule in names(text)


@pytest.mark.parametrize(("rule", "text"), GOOD)
def test_what_is_none_is_not(rule: str, text: str) -> None:
    assert rule not in names(text)


@pytest.mark.parametrize(("rule", "text"), BAD)
def test_a_mistake_in_a_comment_or_in_a_here_document_is_none(rule: str, text: str) -> None:
    commented = "".join(f"# {line}\n" for line in text.splitlines())
    assert names(commented) == set()
    assert names(f"cat > job.sh <<'EOF'\n{text}\nEOF\ntrue\n") == set()


@pytest.mark.parametrize("path", sorted((REPOSITORY / "slurm").glob("*.sh")), ids=lambda path: path.name)
def test_our_own_scripts_are_clean(path: Path) -> None:
    assert lint(path.read_text()) == []


def test_the_line_is_the_one_that_an_editor_shows() -> None:
    text = "#!/bin/bash\n#SBATCH -N $N\n\ncat <<EOF\nMASTER_PORT=29500\nEOF\nx='a\nb'\nsrun \\\n  --gpus-per-task=1 \\\n  python x.py\nexport MASTER_PORT=29500\n"
    assert [(mistake.line, mistake.name) for mistake in lint(text)] == [(2, "sbatch-variable"), (9, "gpus-per-task"), (12, "port-29500")]


@pytest.mark.parametrize(
    "line",
    [
        "echo $#; MASTER_PORT=29500",
        "x=${a#b} MASTER_PORT=29500",
        "((a = 1 << 2)); MASTER_PORT=29500",
        "cat <<<'a' # '\nMASTER_PORT=29500",
        "a=$((1 << n))\nMASTER_PORT=29500\nn\n",
        "if (( (x + f(2)) << n )); then a=1; fi\nMASTER_PORT=29500\nn\n",
        'let "x = 1 << n"\nMASTER_PORT=29500\nn\n',
        "let x=1<<n\nMASTER_PORT=29500",
        "read -r a <<< EOF\nMASTER_PORT=29500\nEOF\n",
        "read -r a <<<EOF\nMASTER_PORT=29500\nEOF\n",
    ],
)
def test_what_only_looks_like_a_comment_or_a_here_document_hides_nothing(line: str) -> None:
    assert "port-29500" in names(line)


@pytest.mark.parametrize("end", ["'END OF IT'", '"a-b"', "\\EOF", "-EOF", "!", "2"])
def test_a_here_document_may_end_in_any_word(end: str) -> None:
    last = end.strip("'\"\\-")
    assert names(f"cat <<{end}\nMASTER_PORT=29500\n{last}\ntrue\n") == set()
    assert names(f"cat <<{end}\n{last}\nMASTER_PORT=29500\n") == {"port-29500"}


def test_a_script_that_is_written_out_for_sbatch_is_read_as_one_with_what_its_shell_fills_in() -> None:
    inner = "#!/bin/bash\n#SBATCH --nodes=$n --requeue\nsrun torchrun --nproc-per-node=1 --node-rank {}SLURM_NODEID x.py\n"
    found = [(mistake.line, mistake.name) for mistake in lint(f"for n in 1 2; do\nsbatch --parsable <<EOF\n{inner.format('$')}EOF\ndone\n")]
    assert found == [(4, "truncated-log")]
    assert names(f"sbatch <<'EOF'\n{inner.format('$')}EOF\n") == {"truncated-log", "sbatch-variable", "batch-shell-rank"}
    escaped = inner.format("\\$").replace("--requeue", "-N 2")
    assert names(f"sbatch <<EOF\n{escaped}EOF\n") == {"batch-shell-rank"}


def test_the_background_is_told_from_and_and_from_redirections() -> None:
    found = {command.text.split()[0]: command.background for command in read("a &\nb && c 2>&1\nd &> log\ne >&2 &").commands}
    assert found == {"a": True, "b": False, "c": False, "d": False, "e": True}


@given(st.text(alphabet="'\"\\#<E&|;()$\n srunSBATCH-=", max_size=80))
def test_no_text_makes_it_fail(text: str) -> None:
    assert all(1 <= mistake.line <= text.count("\n") + 1 for mistake in lint(text))


def test_a_script_of_functions_that_call_each_other_is_read_in_a_moment() -> None:
    text = "".join(f"f{i}() {{ f{i + 1}; f{i + 1}; f0; }}\n" for i in range(60))
    assert names(text + "f60() { save; }\ntrap f0 USR1\nsrun python x.py\n" + "while true\n" * 2000) == {"deaf-trap"}


def test_exit_codes_and_json(tmp_path: Path) -> None:
    script = tmp_path / "job.sh"
    script.write_text("export MASTER_PORT=29500\n")
    shown = CliRunner().invoke(cli, ["lint", str(script)])
    assert shown.exit_code == 1
    assert shown.output.splitlines()[0] == f"{script}:1: port-29500: 29500 is everybody's default: two jobs on a node meet there"
    told = json.loads(CliRunner().invoke(cli, ["lint", "-", "--json"], input="export MASTER_PORT=29500").output)
    assert [(each["line"], each["name"]) for each in told] == [(1, "port-29500")]
    assert CliRunner().invoke(cli, ["lint", "-"], input="true\n").exit_code == 0
    with pytest.raises(SystemExit) as unreadable:
        from launch.cli import main

        main(["lint", str(tmp_path / "none.sh")])
    assert unreadable.value.code == 2
