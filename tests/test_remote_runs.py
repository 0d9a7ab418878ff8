"""Runs of W&B are read back as they were tracked: the same table as of their folders, and one sentence where W&B is not reached."""

import errno
import importlib.util
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
from given_runs import a_run, guesses, write
from wandb_server import KEY, Server, serve

from sft_dist import mirror, remote
from sft_dist.cli import main
from sft_dist.compare import cloud
from sft_dist.errors import ConfigError, InfrastructureError
from sft_dist.history import reading
from sft_dist.rundir import RunDir
from sft_dist.session import let_go


@pytest.fixture(autouse=True)
def nobody(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """Neither a key nor a setting of the person who runs the tests, and no W&B of another test."""
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.chdir(tmp_path)
    remote.api.cache_clear()
    yield
    let_go()
    remote.api.cache_clear()


def told(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, list[str]]:
    capsys.readouterr()
    code = 0
    try:
        main(arguments)
    except SystemExit as raised:
        code = raised.code if isinstance(raised.code, int) else 1
    captured = capsys.readouterr()
    return code, (captured.out + captured.err).splitlines()


def use(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in server.environment().items():
        monkeypatch.setenv(name, value)


def tracked(folder: Path, name: str, wrong: range, seed: int, lr: float, **track: object) -> Path:
    """A run's folder that was sent to W&B."""
    run = a_run(folder / "runs" / name, guesses(wrong), optim__lr=lr, train__seed=seed, track={"group": f"lr-{lr}", **track})
    env = json.loads((run / "env.json").read_text())
    write(run / "env.json", {**env, "data_fingerprint": "f1"})
    assert "4 of 4 steps sent" in mirror.sync(RunDir(run), 60, "pets", "tester")
    return run


def test_what_was_tracked_is_read_back_and_compared_alike(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with serve() as server:
        use(server, monkeypatch)
        for seed in range(2):
            tracked(tmp_path, f"good-{seed}", range(1 + seed), seed, 0.2, tags=["best"])
            tracked(tmp_path, f"bad-{seed}", range(20 + seed), seed, 0.1)
        let_go()

        code, listed = told(capsys, "ls", "wandb:tester/pets")
        assert (code, [line.rpartition("  ")[0] for line in listed]) == (
            0,
            [
                "bad-0   done  4/4  val/top1 0.6667  seed 0",
                "bad-1   done  4/4  val/top1 0.6500  seed 1",
                "good-0  done  4/4  val/top1 0.9833  seed 0",
                "good-1  done  4/4  val/top1 0.9667  seed 1",
            ],
        )
        at = datetime(2026, 11, 22, 10, tzinfo=UTC).astimezone()
        assert listed[0].endswith(f"{at:%Y-%m-%d %H:%M}")
        code, there = told(capsys, "compare", "wandb:tester/pets")
        assert code == 0
        page = Path("compare.html").read_text()
        code, here = told(capsys, "compare", "runs")
        upto = here.index("top1 of the last evaluation, on the same validation samples:")
        assert upto == 10 and there[:upto] == here[:upto]  # the table, and what differs
        assert there[upto + 1] == (
            "  good (2 seeds) is better than bad (2 seeds): +31.7 points of top1, 95 % interval 26.6 to 36.7, Welch t p = 0.001; "
            "2 against 2 seeds"
        )
        assert there[upto + 2] == (
            "    no predictions of bad-0, bad-1, good-0, good-1: tested over the seeds alone, so it speaks of these validation samples only"
        )
        assert "note: of runs in W&B no predictions of single samples are read, so their scores are tested over seeds only" in there
        picture = re.compile(r'alt="(val/top1 against step: [^"]*)"')
        assert picture.findall(page) == picture.findall(Path("compare.html").read_text()) != []

        code, both = told(capsys, "compare", "runs/good-0", "wandb:tester/pets?group=lr-0.1")
        assert code == 0 and [line for line in both if "optim.lr" in line] == ["  optim.lr: 0.2 (good-0), 0.1 (bad (2 seeds))"]
        assert not any("fingerprint" in line or "crop_scale" in line for line in both)

        one = remote.gather("wandb:tester/pets?tag=best&state=finished&group=lr-0.2")[0][0]
        local = reading.read(tmp_path / "runs" / "good-0")
        assert one.curves().rows == local.curves().rows
        assert (one.scores["last"]["step"], one.numbers("last"), one.numbers("best")) == (4, local.numbers("last"), local.numbers("best"))
        assert (one.step("best"), local.step("best")) == (4, 4)
        assert (one.fingerprint, one.outcome, one.plan["total_steps"]) == ("f1", {"step": 4, "outcome": "done"}, 4)
        assert list(one.config)[:4] == list(local.config)[:4]
        assert {key: value for key, value in one.config.items() if key != "track.group"}.keys() >= local.config.keys() - {"track.group"}
        assert [record.name for record in remote.gather("wandb:tester/pets/" + one.place.rpartition("/")[2])[0]] == ["good-0"]
        assert not any(KEY in line for line in (*there, *here, *both))

        assert told(capsys, "ls", "wandb:tester/none") == (
            2,
            ["sft-dist: cannot run this", "  - W&B has no project tester/none, or none that this key may see"],
        )
        assert told(capsys, "ls", "wandb:tester/pets?group=none")[1][1:] == ["  - wandb:tester/pets?group=none: W&B has no such run"]


def test_runs_of_other_programs_are_records_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """Their nested config by dotted keys, their state as the outcome; pages of runs are all read, and twins in name are told apart."""
    config = {"optim": {"value": {"lr": 0.1, "betas": [0.9, 0.99]}}, "task": {"value": "classify"}}
    monkeypatch.setattr(remote, "PAGE", 2)
    with serve() as server:
        use(server, monkeypatch)
        for number in range(5):
            run = f"id{number}"
            name = "twin" if number < 2 else f"run-{number}"
            server.runs[run] = {"name": run, "project": "other", "displayName": name, "config": json.dumps(config), "tags": ["a", "b"]}
            server.summary[run] = {"val/top1": 0.5, "_step": 7, "outcome": "won", "hist": {"_type": "histogram"}}
            server.history[run] = [{"_step": 7, "val/top1": 0.5, "note": "text", "train/loss": 2.0}]
        server.exits = {"id0": [0], "id1": [1]}
        found, problems = remote.gather("wandb:tester/other")
        assert [(record.name, record.outcome) for record in found] == [
            ("run-2", {"step": 7}),
            ("run-3", {"step": 7}),
            ("run-4", {"step": 7}),
            ("twin id0", {"step": 7, "outcome": "done"}),
            ("twin id1", {"step": 7, "outcome": "failed"}),
        ]
        assert problems == []
        one = found[0]
        assert {key: one.config[key] for key in ("optim.lr", "optim.betas", "task", "track.tags")} == {
            "optim.lr": 0.1, "optim.betas": [0.9, 0.99], "task": "classify", "track.tags": ["a", "b"],
        }  # fmt: skip
        assert one.scores == {"last": {"val/top1": 0.5, "step": None}}
        assert one.curves().rows == [{"kind": "train", "step": 7, "train/loss": 2.0}, {"kind": "eval", "step": 7, "val/top1": 0.5}]
        monkeypatch.setattr(remote, "MOST_RUNS", 3)
        remote.api.cache_clear()
        found, problems = remote.gather("wandb:tester/other")
        assert len(found) == 3
        assert problems == ["wandb:tester/other: the first 3 of 5 runs were read; choose by group, tag or state"]


@pytest.mark.parametrize("failure", ["refuses", "500", "nonsense", "hangs"])
def test_a_server_that_fails_costs_a_bounded_time_and_one_sentence(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], failure: str
) -> None:
    monkeypatch.setattr(remote, "ANSWER_S", 2)
    with serve(failure) as server:
        use(server, monkeypatch)
        began = time.monotonic()
        code, lines = told(capsys, "ls", "wandb:tester/pets")
        assert time.monotonic() - began < 60
    assert code == 75
    assert len(lines) == 2 and lines[1].startswith("  - W&B does not answer for tester/pets: "), lines
    assert KEY not in lines[1]


def test_without_a_key_it_says_how_to_get_one(monkeypatch: pytest.MonkeyPatch) -> None:
    with serve() as server:
        monkeypatch.setenv("WANDB_BASE_URL", server.environment()["WANDB_BASE_URL"])
        with pytest.raises(InfrastructureError, match=r"No API key configured\. Use `wandb login` to log in"):
            remote.gather("wandb:tester/pets")
        assert server.requests == []


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("wandb:pets", "wandb:pets names no runs in W&B; write wandb:entity/project, "),
        ("wandb:me/pets/run/more", "names no runs in W&B"),
        (
            "wandb:me/pets?optim.lr=1",
            "behind the ? stands group=..., job_type=..., tag=..., state=...; --where chooses by config and scores",
        ),
    ],
)
def test_a_word_that_names_no_runs_is_refused_without_asking(word: str, said: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(said)):
        remote.gather(word)


def test_a_word_becomes_a_filter_of_wandbs() -> None:
    place = remote.Place.parse("wandb:me/pets/abc?group=a%20b&tag=x&tag=y")
    assert (place.entity, place.project, place.run) == ("me", "pets", "abc")
    assert place.query == {"$and": [{"group": "a b"}, {"tags": "x"}, {"tags": "y"}, {"name": "abc"}]}
    assert remote.Place.parse("wandb:me/pets").query == {}


def test_a_scratch_folder_that_wandb_still_writes_to_takes_no_answer_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def busy(path: str, **_: object) -> None:
        raise OSError(errno.ENOTEMPTY, "Directory not empty", path)

    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with monkeypatch.context() as late, remote.asked("me/pets"):
        assert Path(os.environ["WANDB_DIR"]).parent == tmp_path
        late.setattr(os, "rmdir", busy)
    assert "WANDB_DIR" not in os.environ
    refused = pytest.raises(InfrastructureError, match="W&B does not answer for me/pets: no route")
    with refused, monkeypatch.context() as late, remote.asked("me/pets"):
        late.setattr(os, "rmdir", busy)
        raise ConnectionError("no route")


def test_a_project_is_found_by_its_name_whatever_the_name_is_in_an_address(tmp_path: Path) -> None:
    run = a_run(tmp_path / "one", guesses([]))
    (run / "wandb").mkdir()
    write(run / "wandb" / "mirror.json", {"id": "abc", "url": "https://wandb.ai/me/my%20pets/runs/abc"})
    assert remote.place_of(reading.read(run)) == remote.Place("me", "my pets", "abc", ())


def asked(*arguments: str) -> tuple[int, list[str]]:
    """A command in a process of its own: W&B's package for reports warns at its import of what it uses itself."""
    done = subprocess.run([sys.executable, "-m", "sft_dist", *arguments], capture_output=True, text=True, timeout=120)
    return done.returncode, (done.stdout + done.stderr).splitlines()


def test_a_report_in_wandb_plots_what_the_runs_have_each_once() -> None:
    assert cloud.plotted("segment", "val/miou") == ["val/miou", "val/loss", "train/loss"]
    assert cloud.plotted("detect", "val/map") == ["val/map", "train/loss"]
    assert cloud.plotted("classify", "val/loss") == ["val/loss", "train/loss"]


@pytest.mark.skipif(not importlib.util.find_spec("wandb_workspaces"), reason="no wandb-workspaces (the extra `report`)")
def test_a_report_in_wandb_has_a_run_set_for_each_recipe_and_the_verdicts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with serve() as server:
        use(server, monkeypatch)
        for name, seed, lr in (("good-0", 0, 0.2), ("good-1", 1, 0.2), ("bad", 0, 0.1)):
            notes = "a slip: canary0report0123" if name == "bad" else None
            said = guesses(range(12 if lr == 0.1 else 1))
            run = a_run(tmp_path / "runs" / name, said, optim__lr=lr, train__seed=seed, track={"notes": notes})
            if name != "good-1":
                (run / "wandb").mkdir()
                write(run / "wandb" / "mirror.json", {"id": name, "url": f"http://127.0.0.1:{server.port}/tester/pets/runs/id-{name}"})
        monkeypatch.setenv("HUB_TOKEN", "canary0report0123")
        code, lines = asked("compare", "runs", "--wandb-report")
        assert code == 0, lines
        where = f"http://127.0.0.1:{server.port}/tester/pets/reports/sft-dist-compare:-good-(2-seeds),-bad--report1"
        assert lines[-1] == f"W&B report: {where}; not in W&B, and so not in it: good-1 (`sft-dist sync` sends them)"
    [made] = server.reports
    assert (made["entityName"], made["projectName"], made["displayName"]) == ("tester", "pets", "sft-dist compare: good (2 seeds), bad")
    assert "a slip: (redacted)" in made["spec"] and "canary0report0123" not in made["spec"]
    blocks = json.loads(made["spec"])["blocks"]
    [grid] = [block["metadata"] for block in blocks if block["type"] == "panel-grid"]
    assert [(one["name"], one["filters"]["filters"][0]["value"]) for one in grid["runSets"]] == [
        ("good (2 seeds)", ["id-good-0"]),
        ("bad", ["id-bad"]),
    ]
    panels = [(panel["viewType"], panel["config"].get("metrics")) for panel in grid["panelBankSectionConfig"]["panels"]]
    assert panels == [*(("Run History Line Plot", [name]) for name in ("val/top1", "val/loss", "train/loss")), ("Run Comparer", None)]
    verdict = lines[lines.index("top1 of the last evaluation, on the same validation samples:") + 1].strip()
    assert verdict in json.dumps(blocks) and "optim.lr: 0.2 (good (2 seeds)); 0.1 (bad)" in json.dumps(blocks)


def test_without_the_package_or_without_a_run_in_wandb_there_is_no_report_but_all_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, lr in (("good", 0.2), ("bad", 0.1)):
        a_run(tmp_path / "runs" / name, guesses(range(int(1 / lr))), optim__lr=lr)
    monkeypatch.setitem(sys.modules, "wandb_workspaces", None)  # not installed
    said = "  - --wandb-report needs W&B's package for reports; pip install wandb-workspaces, or pip install 'sft-dist[report]'"
    assert told(capsys, "compare", "runs", "--wandb-report") == (2, ["sft-dist: cannot run this", said])
    assert not Path("compare.html").exists()
    monkeypatch.setitem(sys.modules, "wandb_workspaces", json)  # installed
    code, lines = told(capsys, "compare", "runs", "--wandb-report")
    assert (code, lines[-1]) == (2, "  - --wandb-report: none of these runs is in W&B: good, bad; `sft-dist sync RUN` sends them")
    assert Path("compare.html").exists()
