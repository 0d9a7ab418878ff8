"""The screen on how a run ended: pinned by golden files over folders as agents and ranks leave them."""

import json
import tempfile
import time
from pathlib import Path

import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from scenes import SCENES, at, attempt, begin, consequence, failure

from launch.cli import cli
from launch.why import find, look, screen, to_json
from sft_dist import attempts
from sft_dist.errors import ConfigError
from sft_dist.pulse import Beat
from sft_dist.rundir import RunDir, read_json, write_json

GOLDEN = Path(__file__).resolve().parent.parent / "golden" / "why"
NOW = {"running": at(1), "all_lost": at(300), "lost_node": at(20), "cut_off": at(310)}


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TZ", "UTC")
    time.tzset()


def staged(name: str) -> RunDir:
    run = begin(Path("runs/pets"))
    SCENES[name](run)
    return run


@pytest.mark.parametrize("name", SCENES)
def test_the_screen_is_the_one_in_the_golden_file(name: str) -> None:
    run = staged(name)
    assert "\n".join(screen(run, look(run, now_ns=NOW.get(name, at(60))))) + "\n" == (GOLDEN / f"{name}.txt").read_text()


@pytest.mark.parametrize("name", SCENES)
@pytest.mark.parametrize("everything", [False, True])
def test_the_screen_is_plain_ascii_and_fits_unless_all_is_asked_for(name: str, everything: bool) -> None:
    run = staged(name)
    lines = screen(run, look(run, now_ns=NOW.get(name, at(60))), everything)
    assert all(" " <= letter <= "~" for line in lines for letter in line)
    assert everything or len(lines) <= 30


def test_no_golden_file_is_left_over() -> None:
    assert {path.stem for path in GOLDEN.iterdir()} == set(SCENES)


def test_all_shows_the_ranks_that_only_report_the_consequence_and_the_attempts_before() -> None:
    run = staged("no_progress")
    text = "\n".join(screen(run, look(run, now_ns=at(60)), everything=True))
    assert "       then  +0.4 s  rank 0 on node-a, in backward of step 13: InfrastructureError: another rank was lost" in text
    assert "     before  attempt 1: killed from outside; rank 3 on node-b, in data of step 12: Killed: killed by SIGKILL" in text


def test_an_earlier_attempt_can_be_asked_for() -> None:
    run = staged("no_progress")
    lines = screen(run, look(run, 2, at(60)))
    assert lines[0].startswith("runs/pets, attempt 2")
    assert " checkpoint  attempt 3 went on from step 10" in lines
    with pytest.raises(ConfigError, match="runs/pets has no attempt 4; it has 1 to 3"):
        look(run, 4)


def test_a_damaged_checkpoint_is_passed_over_and_said_so() -> None:
    run = begin(Path("runs/pets"), steps=(5, 10))
    SCENES["killed"](run)
    (run.checkpoints / "step-00000010" / "model.safetensors").write_bytes(b"Weights")
    text = "\n".join(screen(run, look(run, now_ns=at(60))))
    assert " checkpoint  step-00000005, verified; 7 steps are lost, about 2 min\n" in text
    assert "step-00000010 is damaged, and passed over" in text


def test_a_run_without_a_checkpoint_begins_again() -> None:
    run = begin(Path("runs/pets"), steps=())
    attempt(run, [failure(0, "Killed", "killed by SIGKILL", 75, signal="SIGKILL", told_by="agent")], nodes=1)
    text = "\n".join(screen(run, look(run, now_ns=at(60))))
    assert "none yet; the run begins again from its pretrained weights; 12 steps are lost, about 10 min" in text


def test_the_command_that_the_agent_recorded_is_the_one_to_type() -> None:
    run = begin(Path("runs/pets"))
    attempt(run, [consequence(0)], command=["sft-launch", "ssh", "-H", "a,b", "my config.yaml"])
    assert screen(run, look(run, now_ns=at(60)))[-1] == "               sft-launch ssh -H a,b 'my config.yaml'"


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is not the folder of a run"):
        find(tmp_path / "nowhere")
    with pytest.raises(ConfigError, match="has no attempt yet"):
        find(begin(Path("runs/new")).path)


def test_files_that_a_crash_or_another_version_left_do_not_hide_the_rest() -> None:
    run = staged("user_error")
    place = run.path / "attempts" / "1"
    (place / "node-0" / "rank-0.json").write_text('{"time_ns": "soon", "rank": null')
    (place / "node-0" / "rank-1.json").write_text(json.dumps({"time_ns": "soon", "rank": 1, "surprise": True}))
    (place / "node-1" / "rank-9.json").write_text(json.dumps({**vars(consequence(3)), "time_ns": "soon"}))
    beats = {"x": {"pid": 1}, "1": {**vars(Beat(1, 13, "data", 0, 1)), "step": "late"}, "0": vars(Beat(1, 13, "data", 0, 1))}
    (place / "node-0" / "heartbeats.json").write_text(json.dumps({"time_ns": None, "ranks": beats}))
    run.metrics.write_bytes(b"\xff\xfe\n{}\n")
    verdict = look(run, now_ns=at(60))
    assert (verdict.kind, verdict.root and verdict.root.rank) == ("user", 2)
    assert list(verdict.attempt.nodes[0].beats) == [0]
    assert any("ConfigError" in line for line in screen(run, verdict))


def test_json_holds_the_records_as_they_were() -> None:
    run = staged("hostile")
    told = json.loads(json.dumps(to_json(run, look(run, now_ns=at(60)))))
    assert (told["kind"], told["code"], told["retry"], told["checkpoint"], told["lost_steps"]) == ("bug", 1, False, "step-00000010", 2)
    assert told["root"]["message"].startswith("\x1b]0;owned")


def test_the_command_exits_with_zero_when_it_could_tell() -> None:
    run = staged("killed")
    done = CliRunner().invoke(cli, ["why", str(run.path)])
    assert done.exit_code == 0
    assert done.output.startswith("runs/pets, attempt 1, 2 nodes x 2 processes, sft-launch run: killed from outside")
    told = CliRunner().invoke(cli, ["why", str(run.path), "--json", "--attempt", "1"])
    assert json.loads(told.output)["root"]["rank"] == 3
    assert isinstance(CliRunner().invoke(cli, ["why", "nowhere"]).exception, ConfigError)


def test_heartbeats_of_now_are_a_run_that_goes_on() -> None:
    run = begin(Path("runs/pets"))
    node = attempts.node_folder(attempts.folder(run, 1), 0)
    node.mkdir(parents=True)
    write_json(attempts.folder(run, 1) / "attempt.json", {"nodes": 1, "procs": 1})
    attempts.write_beats(node, {0: Beat(1, 13, "forward", time.time_ns(), 9)})
    verdict = look(run)
    assert (verdict.kind, verdict.code, verdict.retry) == ("running", 0, False)
    assert "      ranks  rank 0 forward of step 13" in screen(run, verdict)


VALUES = st.none() | st.booleans() | st.integers() | st.text(max_size=9) | st.lists(st.integers(), max_size=2) | st.just({"code": "x"})
FILES = {
    "attempts/1/attempt.json": ["nodes", "procs", "launcher", "started_ns", "from_step", "command"],
    "attempts/1/node-0/agent.json": ["host"],
    "attempts/1/node-0/heartbeats.json": ["time_ns", "ranks"],
    "attempts/1/node-1/exit.json": ["code", "time_ns", "asked", "step"],
    "attempts/1/node-0/rank-0.json": [
        "time_ns",
        "rank",
        "host",
        "step",
        "phase",
        "code",
        "message",
        "node",
        "traceback",
        "signal",
        "told_by",
    ],
    "attempts/1/error-rank1.json": ["type", "message", "rank", "host"],
    "checkpoints/step-00000010/MANIFEST.json": ["format", "step", "files"],
    "outcome.json": ["outcome", "attempt"],
    "plan.json": ["micro_batch"],
    "env.json": ["argv"],
}


@settings(max_examples=15)
@given(st.data())
def test_no_content_of_a_file_keeps_the_screen_from_coming(data: st.DataObject) -> None:
    with tempfile.TemporaryDirectory() as folder:
        run = begin(Path(folder) / "pets")
        SCENES[data.draw(st.sampled_from(["killed", "hang", "no_agent", "saved", "only_consequences"]))](run)
        name = data.draw(st.sampled_from(sorted(FILES)))
        content = {**read_json(run.path / name), **data.draw(st.dictionaries(st.sampled_from(FILES[name]), VALUES, min_size=1))}
        (run.path / name).parent.mkdir(parents=True, exist_ok=True)
        (run.path / name).write_text(json.dumps(content))
        verdict = look(run, now_ns=at(60))
        assert screen(run, verdict) and screen(run, verdict, everything=True) and json.dumps(to_json(run, verdict))
