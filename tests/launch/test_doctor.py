"""The doctor's word on the nodes: pinned over reports as nodes give them, and on two nodes that this machine stands for."""

import importlib.metadata
import json
import os
import platform
import shutil
import signal
import socket
import subprocess
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from ranks import free_port

from launch import examine, patience, visits
from launch.cli import cli
from launch.doctor import exit_code, faulty, findings, screen, to_json
from launch.symptoms import GIB, Report, of_json

REPOSITORY = Path(__file__).resolve().parents[2]
GOLDEN = REPOSITORY / "tests" / "golden" / "doctor"
LIMIT_S = 300
SOFTWARE = {"python": "3.11.9", "torch": "2.14.1", "code": "0123456789abcdef"}


def node(index: int, **odd: Any) -> Report:
    """A node of a good cluster, but for what is said."""
    good = Report(
        index,
        f"n{index}",
        software=SOFTWARE,
        gpus=8,
        driver="550.54.15",
        folder="/data/runs",
        free_bytes=900 * GIB,
        free_inodes=10**8,
        shm_bytes=256 * GIB,
        processors=64,
        promised=64,
        procs=8,
        offset_s=0.003 * index,
        within_s=0.0002,
        wrote=True,
        rates={"gloo": 1.1e9, "nccl": 2.4e10},
    )
    return replace(good, **odd)


SCENES = {
    "good": [node(0), node(1), node(2), node(3)],
    "one_node": [node(0, rates={})],
    "other_code": [node(0), node(1, software={**SOFTWARE, "code": "fedcba9876543210"})],
    "many": [
        node(0, unseen=[6]),
        node(
            1,
            free_bytes=200 * 2**20,
            free_inodes=12,
            problems=["writing: cannot write in /data/runs: No space left on device"],
            wrote=False,
        ),
        node(2, software={**SOFTWARE, "torch": "2.13.0"}, offset_s=7.5, gpus=7, unseen=[6]),
        Report(3, "n3", came=False),
        node(4, rates={"gloo": 1.2e8, "nccl": 2.3e10}, unresolved=["n1", "n2"], loopback=True, shm_bytes=64 * 2**20, unseen=[6]),
        node(5, processors=1, driver="", workers=7, unseen=[6]),
        node(6, unseen=[0, 2, 4, 5], gpus=0, driver="", wanted_gpu=True, folder="/data"),
        Report(7, "n7", silent="no answer within 63 s while looking at its devices and disks"),
        Report(8, "n8", folder="/data/runs", problems=["hangs: no answer within 60 s while looking at its devices and disks; try ..."]),
        node(9, loopback=True, unseen=[6]),
    ],
}


@pytest.mark.parametrize("name", SCENES)
def test_the_screen_is_the_one_in_the_golden_file(name: str) -> None:
    assert "\n".join(screen(SCENES[name], findings(SCENES[name]))) + "\n" == (GOLDEN / f"{name}.txt").read_text()


@pytest.mark.parametrize(("name", "code", "out"), [("good", 0, []), ("one_node", 0, []), ("other_code", 78, [])])
def test_the_exit_code_and_the_hosts_to_leave_out(name: str, code: int, out: list[str]) -> None:
    found = findings(SCENES[name])
    assert (exit_code(found), faulty(SCENES[name], found)) == (code, out)


def test_a_remark_is_not_wrong() -> None:
    reports = [node(0, loopback=True, unresolved=["n1"], shm_bytes=0, workers=16), node(1)]
    assert {finding.check for finding in findings(reports)} == {"own name", "names", "shared memory", "workers"}
    assert exit_code(findings(reports)) == 0


@pytest.mark.parametrize(
    ("odd", "checks"),
    [
        ({"software": {**SOFTWARE, "python": "3.12.1"}}, "python"),
        ({"gpus": 7}, "GPUs"),
        ({"driver": "535.1"}, "GPU driver"),
        ({"software": {**SOFTWARE, "code": "fedcba9876543210"}}, "code"),
        ({"unseen": [0, 2]}, "shared folder"),
        ({"offset_s": -2.1}, "clock"),
        ({"rates": {"gloo": 1.1e9, "nccl": 7.9e9}}, "nccl speed"),
        ({"free_bytes": GIB - 1}, "disk"),
        ({"free_inodes": 9_999}, "inodes"),
        ({"processors": 63}, "processors"),
        ({"problems": ["nccl: unhandled system error"]}, "nccl"),
        ({"driver": ""}, "driver, GPU driver"),
        ({"gpus": 0, "wanted_gpu": True}, "no GPU, GPUs"),
        ({"silent": "no answer within 63 s while reading in the run's folder"}, "answer"),
        ({"came": False}, "reach"),
    ],
)
def test_the_one_odd_node_of_three_is_left_out(odd: dict[str, Any], checks: str) -> None:
    reports = [node(0), node(1, **odd), node(2)]
    found = findings(reports)
    assert {(finding.check, finding.node) for finding in found} == {(check, 1) for check in checks.split(", ")}
    assert (exit_code(found), faulty(reports, found)) == (78, ["n1"])


def odd_folders(*unseen: list[int], starter: tuple[bool, ...] = ()) -> tuple[list[int], list[str]]:
    """Nodes that are found not to share the folder, and the hosts to leave out, by whom each does not see."""
    away = starter or (False,) * len(unseen)
    reports = [node(index, unseen=each, starter_unseen=away[index]) for index, each in enumerate(unseen)]
    found = findings(reports)
    assert {finding.check for finding in found} <= {"shared folder"}
    return [finding.node for finding in found], faulty(reports, found)


def test_the_node_without_the_shared_folder_is_left_out_though_nobody_sees_its_file() -> None:
    assert odd_folders([1], [0, 2], [1]) == ([1], ["n1"])
    assert odd_folders([1, 2], [0], [0]) == ([0], ["n0"])


def test_a_node_whose_files_no_other_sees_is_left_out_although_it_sees_theirs() -> None:
    assert odd_folders([2], [2], []) == ([2], ["n2"])


def test_of_two_folders_it_is_the_one_where_the_run_was_prepared_that_counts() -> None:
    assert odd_folders([1], [0], starter=(False, True)) == ([1], ["n1"])
    assert odd_folders([1], [0], starter=(True, False)) == ([0], ["n0"])
    assert odd_folders([1], [0]) == ([1], ["n1"])  # by hand: the head's


def test_a_folder_that_no_two_nodes_share_is_no_nodes_fault() -> None:
    assert odd_folders([1, 2], [0, 2], [0, 1]) == ([0, 1, 2], [])


def test_a_folder_that_only_the_nodes_share_is_wrong_and_no_nodes_fault() -> None:
    reports = [node(0, starter_unseen=True), node(1, starter_unseen=True)]
    found = findings(reports)
    assert ({finding.check for finding in found}, exit_code(found), faulty(reports, found)) == ({"starter's folder"}, 78, [])


def test_a_long_host_name_does_not_widen_the_table_and_is_whole_where_it_is_left_out() -> None:
    long = "gpu-" + "0123456789" * 6
    reports = [node(0), node(1, host=long, free_bytes=0), node(2)]
    told = screen(reports, findings(reports))
    assert max(map(len, told[:4])) < 130
    assert told[4].startswith(f"wrong: node 1 ({long}): 0 MiB free")
    assert told[-2].endswith(f"--exclude={long}")


def test_what_is_wrong_everywhere_is_no_nodes_fault() -> None:
    reports = [node(0, free_bytes=0), node(1, free_bytes=0)]
    assert (exit_code(findings(reports)), faulty(reports, findings(reports))) == (78, [])


def test_the_first_node_can_be_the_odd_one() -> None:
    reports = [node(0, software={**SOFTWARE, "torch": "2.13.0"}, offset_s=0.0), *(node(index, offset_s=-9.0) for index in (1, 2))]
    assert {(finding.check, finding.node) for finding in findings(reports)} == {("torch", 0), ("clock", 0)}


def test_a_clock_is_only_wrong_by_more_than_is_unknown_of_it() -> None:
    assert exit_code(findings([node(0), node(1, offset_s=2.4, within_s=0.5)])) == 0


def test_a_file_system_that_counts_no_inodes_is_not_full_of_them() -> None:
    assert exit_code(findings([node(0, free_inodes=None)])) == 0


def test_a_report_of_other_code_is_read_as_far_as_it_is_known() -> None:
    told = {**json.loads(json.dumps(asdict(node(1)))), "a field of tomorrow": 1}
    told.pop("shm_bytes")
    assert of_json(told).software == SOFTWARE
    assert of_json(told).shm_bytes == 0


def test_json_holds_the_verdict_and_every_node() -> None:
    told = json.loads(json.dumps(to_json(SCENES["many"], findings(SCENES["many"]))))
    assert (told["ok"], told["exclude"], len(told["nodes"])) == (False, ["n1", "n2", "n3", "n4", "n5", "n6", "n7", "n8"], 10)


def test_a_hostile_host_name_does_not_drive_the_terminal() -> None:
    reports = [node(0, host="n0\x1b[2J\nn9")]
    assert all(" " <= letter <= "~" for line in screen(reports, findings(reports)) for letter in line)


def test_looking_makes_no_folder(tmp_path: Path) -> None:
    report = examine.look(0, tmp_path / "runs" / "deep", 1, None, False, {"SLURM_CPUS_PER_TASK": "3", "SLURMD_NODENAME": "gpu-07"})
    assert (report.folder, report.host, report.promised) == (str(tmp_path), "gpu-07", 3)
    assert list(tmp_path.iterdir()) == []


def test_a_note_is_seen_only_by_its_whole_content(tmp_path: Path) -> None:
    note = examine.leave_note(tmp_path, "abc", "0")
    assert examine.notes_missing(tmp_path, "abc", ["0", "1"], 0) == ["1"]
    note.write_text("")
    assert examine.notes_missing(tmp_path, "abc", ["0", "1"], 0) == ["0", "1"]
    examine.remove_notes(tmp_path, "abc", ["0", "1"])
    assert list(tmp_path.iterdir()) == []


def test_looking_tells_what_this_machine_has(tmp_path: Path) -> None:
    report = examine.look(0, tmp_path, 2, 3, True, {})
    usage = os.statvfs(tmp_path)
    assert abs(report.free_bytes - usage.f_bavail * usage.f_frsize) < GIB
    assert report.free_inodes is not None
    assert abs(report.free_inodes - usage.f_favail) < 10**5
    assert report.shm_bytes == (shm := os.statvfs("/dev/shm")).f_blocks * shm.f_frsize
    assert (report.processors, report.procs, report.workers, report.wanted_gpu) == (len(os.sched_getaffinity(0)), 2, 3, True)
    assert report.software["python"] == platform.python_version()
    assert report.software["torch"] == importlib.metadata.version("torch")
    assert len(report.software["code"]) == 16
    assert examine.unresolved(["localhost", "nowhere.invalid"]) == ["nowhere.invalid"]


@pytest.mark.parametrize(("visible", "most"), [("", 0), ("-1", 0), ("0", 1)])
def test_hidden_gpus_do_not_count(visible: str, most: int) -> None:
    assert examine.gpus({"CUDA_VISIBLE_DEVICES": visible}) <= most


def test_several_nodes_without_slurm_are_refused_with_the_line_for_each(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    told = CliRunner().invoke(cli, ["doctor", "--nodes", "2"]).exception
    assert "--head ADDRESS_OF_NODE_0 --port 23456" in str(told)


def test_a_dry_run_shows_a_command_a_node_with_what_the_config_says(tmp_path: Path) -> None:
    quick = ["configs/quickstart.yaml", f"run.dir={tmp_path}/r", "data.workers=3"]
    shown = CliRunner().invoke(cli, ["doctor", *quick, "--nodes", "2", "--simulate", "--dry-run", "--procs", "2"])
    lines = shown.output.splitlines()
    assert [line.rpartition(" ")[2] for line in lines] == ["0", "1"]
    assert all(f"--folder {tmp_path}/r --procs 2 --workers 3" in line for line in lines)


QUICK = "doctor_node.CACHED_S = 1.0"  # no cache of a network file system needs the ten seconds here
STOPS = "os.kill(os.getpid(), signal.SIGSTOP)"
FAULTS = {  # what a node's process does before it is examined, so that it hangs at a known place: in the kernel's hands, or asleep
    "stops looking": f"examine.look = lambda *_: {STOPS}",
    "sleeps looking": "examine.look = lambda *_: time.sleep(1000)",
    "is odd": f"{QUICK}; socket.gethostname = lambda: 'nowhere.invalid'; time.time_ns = lambda now=time.time_ns: now() + 5 * 10**9",
    "adds wrongly": f"{QUICK}; distributed.all_reduce = lambda tensor: tensor.mul_(3)",
    "": QUICK,
    "stops reducing": f"distributed.all_reduce = lambda *_, **__: {STOPS}",
}
EXAMINED = "import os, signal, socket, sys, time; from torch import distributed; from launch import doctor_node, examine; {}; sys.exit(doctor_node.main())"


def begun(
    tmp_path: Path, codes: list[Path], *arguments: str, nodes: int, faults: list[str], folders: list[Path]
) -> list[subprocess.Popen[str]]:
    """A process a node, each with the code that its PYTHONPATH brings."""
    port = str(free_port())
    whole = {name: value for name, value in os.environ.items() if not name.startswith("SLURM")}
    started = []
    for index, code in enumerate(codes):
        folder = folders[index] if folders else tmp_path / "runs"
        place = ["--nodes", str(nodes), "--node", str(index), "--port", port, "--folder", str(folder)]
        module = ["-c", EXAMINED.format(FAULTS[faults[index]])] if faults else ["-m", "launch.doctor_node"]
        env = {**whole, "PYTHONPATH": str(code), "OMP_NUM_THREADS": "1", "SLURMD_NODENAME": f"n{index}"}
        command = [sys.executable, "-P", *module, *place, *arguments]
        started.append(subprocess.Popen(command, cwd=tmp_path, env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE))
    return started


def examined(
    tmp_path: Path, codes: list[Path], *arguments: str, nodes: int = 2, faults: list[str] | None = None, folders: list[Path] | None = None
) -> tuple[list[int], list[str], str]:
    """Nodes that this machine stands for; exit codes, what each prints, and all errors. One that stops is killed when the others have ended."""
    started = begun(tmp_path, codes, *arguments, nodes=nodes, faults=faults or [], folders=folders or [])
    stops = [bool(faults) and faults[index].startswith("stops") for index in range(len(codes))]
    told = [("", "")] * len(started)
    try:
        for index in sorted(range(len(started)), key=stops.__getitem__):
            if stops[index]:
                assert started[index].poll() is None
                started[index].kill()
            told[index] = started[index].communicate(timeout=LIMIT_S)
    finally:
        for each in started:
            each.kill()
    return [each.returncode for each in started], [out for out, _ in told], "".join(error for _, error in told)


@pytest.mark.dist
def test_good_nodes_are_found_good_and_nothing_is_left_in_the_folder(tmp_path: Path) -> None:
    codes, told, errors = examined(tmp_path, [REPOSITORY] * 3, "--json", nodes=3)
    assert codes == [0, 0, 0], errors
    seen = json.loads(told[0])
    assert {each["check"] for each in seen["findings"]} <= {"own name", "shared memory"}
    assert (seen["ok"], seen["exclude"]) == (True, [])
    assert [each["host"] for each in seen["nodes"]] == ["n0", "n1", "n2"]
    assert all(each["rates"]["gloo"] > 1e6 and each["within_s"] < 5 for each in seen["nodes"])
    assert (told[1:], list(tmp_path.iterdir())) == (["", ""], [])


@pytest.mark.dist
def test_a_node_with_other_code_folder_clock_and_name_is_named_for_each_and_left_out_for_the_folder(tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    for package in ("launch", "sft_dist"):
        shutil.copytree(REPOSITORY / package, copy / package, ignore=shutil.ignore_patterns("__pycache__"))
    (copy / "sft_dist" / "train.py").write_text((copy / "sft_dist" / "train.py").read_text() + "# an edit that has not reached all\n")
    shared, other = tmp_path / "shared", tmp_path / "other"
    shared.mkdir()
    other.mkdir()
    codes, told, errors = examined(tmp_path, [REPOSITORY, copy], faults=["", "is odd"], folders=[shared, other])
    assert codes == [78, 78], errors
    hashes = [line.split()[-1] for line in told[0].splitlines()[1:3]]
    assert hashes[0] != hashes[1]
    assert f"wrong: node 1 (n1): code {hashes[1]}, but {hashes[0]} on node 0 (n0)" in told[0]
    assert f"wrong: node 1 (n1): does not share {other} with node 0 (n0)" in told[0]
    assert "wrong: node 1 (n1): its clock is +5.0 s off (known to " in told[0]
    assert "remark: nodes 0 (n0), 1 (n1): cannot resolve nowhere.invalid" in told[0]
    assert "sbatch --exclude=n1\n" in told[0]
    assert (list(shared.iterdir()), list(other.iterdir())) == ([], [])


@pytest.mark.dist
def test_nodes_that_stop_or_hang_are_named_with_where_and_the_others_say_what_they_see(tmp_path: Path) -> None:
    """One stops before it has said anything, one in the all-reduce; the two that are left are measured without them."""
    faults = ["", "stops looking", "", "stops reducing"]
    codes, told, errors = examined(tmp_path, [REPOSITORY] * 4, "--json", "--limit", "5", nodes=4, faults=faults)
    assert [codes[0], codes[2]] == [78, 78], errors
    seen = json.loads(told[0])
    wrong = {each["node"]: each["told"] for each in seen["findings"] if each["wrong"]}
    assert set(wrong) == {1, 3}
    assert "no answer within 8 s while looking at its devices and disks" in wrong[1]
    assert "s while reducing by gloo over 3 nodes" in wrong[3]
    assert (seen["ok"], seen["exclude"], told[1:]) == (False, ["n1", "n3"], ["", "", ""])
    assert [each["rates"].get("gloo", 0) > 1e6 for each in seen["nodes"]] == [True, False, True, False]
    assert seen["nodes"][3]["software"] == seen["nodes"][0]["software"]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.dist
def test_a_head_that_stops_is_named_by_the_next_node(tmp_path: Path) -> None:
    codes, told, errors = examined(tmp_path, [REPOSITORY] * 2, "--limit", "1", faults=["stops looking", "sleeps looking"])
    assert codes[1] == 78, errors
    assert "wrong: node 0 (n0): no answer within 8 s while looking at its devices and disks" in told[1]
    assert "wrong: node 1 (n1): hangs: no answer within 1 s while looking at its devices and disks" in told[1]


@pytest.fixture(scope="module")
def alone(folder: Path) -> tuple[Path, str]:
    """The folder, and what a head says that adds wrongly, whose other node does not come, and whose starter writes elsewhere."""
    codes, told, errors = examined(folder, [REPOSITORY], "--patience", "1", "--token", "0123456789abcdef", faults=["adds wrongly"])
    assert codes == [78], errors
    return folder, told[0]


@pytest.mark.dist
def test_a_node_that_does_not_come_and_a_starter_who_writes_elsewhere_are_reported(alone: tuple[Path, str]) -> None:
    folder, told = alone
    assert "wrong: node 1 (?): did not come: is it up" in told
    assert f"wrong: node 0 (n0): does not see in {folder} what the machine has written there on which you typed this" in told
    assert list(folder.iterdir()) == []


@pytest.mark.dist
def test_an_all_reduce_with_a_wrong_sum_is_wrong(alone: tuple[Path, str]) -> None:
    assert "wrong: node 0 (n0): gloo: an all-reduce of ones over 1 node gave 3.0" in alone[1]


@pytest.mark.dist
def test_a_folder_that_the_system_cannot_even_look_at_is_a_finding_and_no_bug(tmp_path: Path) -> None:
    """As with a network file system that has gone away (ESTALE); here a name that is too long for any."""
    codes, told, errors = examined(tmp_path, [REPOSITORY], nodes=1, folders=[tmp_path / ("x" * 300)])
    assert codes == [78], errors
    assert "wrong: node 0 (n0): fails: [Errno 36] File name too long: " in told[0]
    assert "while looking at its devices and disks; try the same there by hand" in told[0]


@pytest.mark.dist
def test_a_port_that_somebody_has_and_an_address_that_is_not_the_heads_are_named(tmp_path: Path) -> None:
    with socket.socket() as somebody:
        somebody.bind(("127.0.0.1", 0))
        somebody.listen()
        heads = [("127.0.0.1", str(somebody.getsockname()[1])), ("192.0.2.1", "23456")]
        command = [sys.executable, "-P", "-m", "launch.doctor_node", "--folder", str(tmp_path), "--json"]
        env = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        started = [subprocess.Popen([*command, "--head", head, "--port", port], env=env, **pipes) for head, port in heads]
        for (head, port), refused in zip(heads, started, strict=True):
            out, errors = refused.communicate(timeout=LIMIT_S)
            assert (refused.returncode, f"cannot listen on {head}:{port}" in errors) == (78, True), errors
            seen = json.loads(out)
            [finding] = seen["findings"]
            assert (seen["ok"], seen["exclude"], seen["nodes"], finding["check"], finding["node"]) == (False, [], [], "start", 0)
            assert finding["told"].startswith(f"cannot listen on {head}:{port} (")


def test_a_node_that_ends_at_once_lets_the_head_wait_for_it_under_srun_and_say_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """srun --wait ends the others so long after the first: also where that one only could not import torch."""
    scontrol = tmp_path / "scontrol"
    scontrol.write_text("#!/bin/sh\necho n1\necho n2\n")
    scontrol.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    [line] = visits.commands(visits.Visit(2, tmp_path), False, {"SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "n[1-2]"})
    [waits] = [float(word.removeprefix("--wait=")) for word in line if word.startswith("--wait=")]
    assert waits > patience.COME_S + patience.STEP_S


def children(parent: int) -> list[int]:
    return [int(number) for number in Path(f"/proc/{parent}/task/{parent}/children").read_text().split()]


def is_stopped(process: int) -> bool:
    return Path(f"/proc/{process}/stat").read_text().rpartition(") ")[2][0] == "T"


SECOND_STOPS = """import os, signal, sys
if "launch.doctor_node" in sys.orig_argv and sys.orig_argv[sys.orig_argv.index("--node") + 1] == "1":
    os.kill(os.getpid(), signal.SIGSTOP)
"""


@pytest.mark.dist
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_leaves_no_process_and_no_file(tmp_path: Path, number: signal.Signals) -> None:
    command = [sys.executable, "-m", "launch", "doctor", "--nodes", "2", "--simulate"]
    (tmp_path / "sitecustomize.py").write_text(SECOND_STOPS)
    folder = tmp_path / "here"
    folder.mkdir()
    env = {**os.environ, "PYTHONPATH": f"{REPOSITORY}:{tmp_path}"}
    doctor = subprocess.Popen(command, cwd=folder, env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    deadline = time.monotonic() + LIMIT_S
    while (len(nodes := children(doctor.pid)) < 2 or not is_stopped(nodes[1])) and time.monotonic() < deadline:
        time.sleep(0.05)
    doctor.send_signal(number)
    _, errors = doctor.communicate(timeout=LIMIT_S)
    assert (doctor.returncode, errors.strip()) == (130, "sft-launch: interrupted")
    assert [each for each in nodes if Path(f"/proc/{each}").exists()] == []
    assert list(folder.iterdir()) == []


def test_an_interrupt_while_nodes_are_started_leaves_none_of_them(tmp_path: Path) -> None:
    before = children(os.getpid())
    lines = [["sh", "-c", f"kill -INT {os.getpid()}; exec sleep 100"], *[["sleep", "100"]] * 20]
    with pytest.raises(KeyboardInterrupt):
        visits.start(visits.Visit(len(lines), tmp_path), lines, {**os.environ})
    assert children(os.getpid()) == before


def test_what_still_runs_when_the_head_has_ended_is_ended_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(visits, "PARTING_S", 0.5)
    marker = tmp_path / "pid"
    stopped = ["sh", "-c", f"trap '' TERM; echo $$ > {marker}; kill -STOP $$; sleep 100"]
    assert (
        visits.start(
            visits.Visit(2, tmp_path), [["sh", "-c", f"until test -s {marker}; do sleep 0.1; done; exit 78"], stopped], {**os.environ}
        )
        == 78
    )
    assert not Path(f"/proc/{marker.read_text().strip()}").exists()


def test_a_head_whose_nodes_have_ended_may_still_speak(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(visits, "PARTING_S", 0.1)
    assert visits.start(visits.Visit(2, tmp_path), [["sleep", "1"], ["true"]], {**os.environ}) == 0


@pytest.mark.dist
def test_a_folder_in_which_nobody_may_write_is_named(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "launch", "doctor", "configs/quickstart.yaml", "run.dir=/proc/runs"]
    told = subprocess.run(
        command, cwd=REPOSITORY, env={**os.environ, "PYTHONPATH": str(REPOSITORY)}, capture_output=True, text=True, timeout=LIMIT_S
    )
    assert told.returncode == 78
    assert "writing: cannot write in /proc: No such file or directory" in told.stdout
    assert "cannot write in /proc/runs from here" in told.stderr
