"""Files of a run: private, without secrets, and never more than data to whoever reads them."""

import ast
import json
import os
import pickle
import re
import stat
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from given import a_config

from sft_dist import archive, checkpoint, inventory, manifest, parse, refuse, rundir, track, weights
from sft_dist.config import Model
from sft_dist.errors import ConfigError, MachineError
from sft_dist.plan import World
from sft_dist.rundir import RunDir

ROOT = Path(__file__).resolve().parent.parent
FILES = sorted((ROOT / "sft_dist").rglob("*.py"))
CANARIES = {
    "WANDB_API_KEY": "canary0wandb0123456789abcdef",
    "HF_TOKEN": "hf_canary1abcdefghij",
    "AWS_SECRET_ACCESS_KEY": "canary2/aws+secret/key",
    "MY_PASSWORD": "canary3-correct-horse",
    "DATABASE_URL": "postgres://user:canary4-in-a-url@db/one",
    "GITHUB_TOKEN": "ghp_canary5abcdefghij",
}
RUN = """
task: classify
data: {name: digits, size: 32, augment: none, flip: 0, classes: ["1", "7"], per_class: 4, workers: 0}
model: {name: mobilenet_v3_small, weights: none, train: all, norm: train}
batch: {total: 4, micro: 4}
train: {duration: "2 steps"}
device: cpu
"""


def start(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, **CANARIES, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "sft_dist", "train", "config.yaml", *arguments]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=240)


@pytest.mark.dist
def test_no_file_of_a_run_holds_a_secret_and_a_resume_closes_the_folder_again(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(RUN)
    for argument in ("track.project=https://user:canary4-in-a-url@host/x", f"track.project={CANARIES['HF_TOKEN']}"):
        refused = start(tmp_path, argument)
        assert refused.returncode == 2
        assert "track.project" in refused.stderr and "canary" not in refused.stderr + refused.stdout
        assert not (tmp_path / "runs").exists()
    done = start(tmp_path, "track.tensorboard=true")
    assert done.returncode == 0, done.stderr
    run = tmp_path / "runs" / "config"
    run.chmod(0o755)
    failed = start(tmp_path, "train.duration=4 steps", "optim.lr=1e30")  # refused: another config
    assert failed.returncode == 2
    longer = start(tmp_path, "train.duration=4 steps")
    assert longer.returncode == 0, longer.stderr
    assert stat.S_IMODE(run.stat().st_mode) == 0o700
    files = [path for path in run.rglob("*") if path.is_file()]
    assert any("tfevents" in path.name for path in files)
    assert {"env.json", "config.yaml", "metrics.jsonl", "outcome.json", "model.safetensors", "state.json"} <= {path.name for path in files}
    for path in files:
        assert not re.search(rb"canary\d", path.read_bytes()), path
    assert "canary" not in longer.stdout + longer.stderr + done.stdout + done.stderr


@pytest.mark.parametrize(
    ("arguments", "wanted"),
    [
        (["--api-key", "canary"], ["--api-key", "(redacted)"]),
        (["--api_key=canary"], ["--api_key=(redacted)"]),
        (["-token", "canary", "--token", "--next"], ["-token", "(redacted)", "--token", "--next"]),
        (["data.root=https://user:canary@host/x"], ["data.root=https://(redacted)@host/x"]),
        (["https://canary@host/x"], ["https://(redacted)@host/x"]),
        (["data.root=https://host/x?a=1&token=canary&b=2"], ["data.root=https://host/x?a=1&token=(redacted)&b=2"]),
        (["s3://bucket/x?X-Amz-Signature=canary"], ["s3://bucket/x?X-Amz-Signature=(redacted)"]),
        (["train", "me@host:config.yaml", "https://host/a@b"], ["train", "me@host:config.yaml", "https://host/a@b"]),
    ],
)
def test_a_secret_on_the_command_line_is_not_recorded(arguments: list[str], wanted: list[str]) -> None:
    assert track.redact(arguments) == wanted


@pytest.mark.parametrize("text", ["https://user:canary@host/x", "https://canary@host/x", "https://host/x?access_token=canary"])
def test_a_config_with_a_secret_in_a_url_is_refused_without_repeating_it(tmp_path: Path, text: str) -> None:
    (tmp_path / "x.yaml").write_text(RUN)
    with pytest.raises(ConfigError, match=r"data\.root: a URL with a password or a token in it") as refused:
        parse.load(tmp_path / "x.yaml", [f"data.root={text}"])
    assert "canary" not in str(refused.value)


def test_a_config_with_the_value_of_a_secret_variable_is_refused() -> None:
    config = a_config(track={"project": "x-canary0wandb0123456789abcdef"}, model__name="resnet18")
    with pytest.raises(ConfigError, match=r"^track.project holds the value of the environment variable WANDB_API_KEY; config.yaml would"):
        refuse.check(config, World(), CANARIES, fresh=False)
    harmless = {"KEYBOARD": "x-canary0", "MY_KEY": "x", "TOKENIZERS_PARALLELISM": "x-canary0wandb"}
    refuse.check(config, World(), harmless, fresh=False)


@pytest.fixture
def umask() -> object:
    before = os.umask(0o022)
    yield
    os.umask(before)


def test_a_run_folder_is_its_owners_unless_told(tmp_path: Path, umask: object) -> None:
    closed, shared = a_config(run__dir=str(tmp_path)), a_config(run__dir=str(tmp_path), run__shared=True)
    modes = [stat.S_IMODE(rundir.create(config).path.stat().st_mode) for config in (closed, shared, shared, closed)]
    assert modes == [0o700, 0o755, 0o755, 0o700]
    archive.write(tmp_path / "x.safetensors", {"x": torch.zeros(2)})
    assert stat.S_IMODE((tmp_path / "x.safetensors").stat().st_mode) == 0o644
    os.umask(0o077)
    assert stat.S_IMODE(rundir.create(a_config(run__dir=str(tmp_path / "tight"), run__shared=True)).path.stat().st_mode) == 0o700


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    """A run with one whole checkpoint, and a file beside the run that is not its own."""
    config = a_config(run__dir=str(tmp_path))
    run = rundir.create(config)
    run.config.write_text(parse.to_yaml(config))
    folder = run.checkpoints / "step-00000001"
    folder.mkdir()
    entries = {f"{part}.safetensors": archive.write(folder / f"{part}.safetensors", {"x": torch.zeros(2)}) for part in ("model", "optim")}
    (folder / "state.json").write_text(json.dumps({"classes": ["cat", "dog"]}))
    manifest.write(folder, 1, {**entries, "state.json": manifest.entry(folder / "state.json")})
    (run.checkpoints / "latest").write_text("step-00000001\n")
    archive.write(tmp_path / "model-theirs.safetensors", {"theirs": torch.ones(2)})
    return run


def name_in_manifest(folder: Path, name: str, of: Path) -> None:
    content = json.loads((folder / "MANIFEST.json").read_text())
    content["files"][name] = manifest.entry(of)._asdict()
    (folder / "MANIFEST.json").write_text(json.dumps(content))


@pytest.mark.parametrize(
    "name", ["model/../../../model-theirs.safetensors", "../../../model-theirs.safetensors", "ABSOLUTE", "..", "model-x"]
)
def test_a_manifest_cannot_point_outside_its_folder(run: RunDir, tmp_path: Path, name: str) -> None:
    folder, theirs = run.checkpoints / "step-00000001", tmp_path / "model-theirs.safetensors"
    (folder / "model").mkdir()
    if name == "model-x":
        name = "model-x.safetensors"
        (folder / name).symlink_to(theirs)
    name_in_manifest(folder, str(theirs) if name == "ABSOLUTE" else name, theirs)
    [problem] = manifest.verify(folder)
    assert "is not a plain file name" in problem or "is missing" in problem
    with pytest.raises(ValueError, match="which is not a plain file in its folder"):
        archive.shelves(folder)
    with pytest.raises(ConfigError, match="is damaged"):
        checkpoint.named(run, "latest")


def test_a_link_is_no_checkpoint(run: RunDir, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    (run.checkpoints / "step-00000001").rename(elsewhere)
    (run.checkpoints / "step-00000001").symlink_to(elsewhere)
    assert manifest.verify(run.checkpoints / "step-00000001") == [
        f"{run.checkpoints}/step-00000001 is a link; what it leads to is not opened"
    ]
    with pytest.raises(ConfigError, match="is a link"):
        checkpoint.named(run, "latest")
    (run.checkpoints / "step-00000001").rename(run.checkpoints / "damaged-step-00000001")
    whole = run.checkpoints / "step-00000002"
    whole.mkdir()
    (whole / "state.json").write_text("{}")
    manifest.write(whole, 2, {"state.json": manifest.entry(whole / "state.json")})
    inventory.prune(run, inventory.Rule(damaged=True))
    assert [path.name for path in run.checkpoints.iterdir() if path.is_symlink()] == []
    assert manifest.verify(elsewhere) == []  # only the link is gone


@pytest.mark.parametrize(
    "text", ["../../elsewhere", "../checkpoints/step-00000001", "/etc", "step-00000001/../../..", "damaged-step-00000001"]
)
def test_a_pointer_cannot_lead_out_of_the_checkpoints(run: RunDir, text: str) -> None:
    for pointer in ("latest", "best"):
        (run.checkpoints / pointer).write_text(text + "\n")
        assert run.pointed_to(pointer) is None
        with pytest.raises(ConfigError, match=f"has no checkpoint '{pointer}'"):
            checkpoint.named(run, pointer)


class Payload:
    """Makes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("how", ["pickle", "torch"])
def test_a_pickle_in_the_place_of_tensors_is_refused_and_does_nothing(run: RunDir, tmp_path: Path, how: str) -> None:
    folder, harm = run.checkpoints / "step-00000001", tmp_path / "harm"
    payload = Payload(harm)
    path = folder / "optim.safetensors"
    path.write_bytes(pickle.dumps(payload)) if how == "pickle" else torch.save({"x": payload}, path)
    assert any("optim.safetensors has " in problem for problem in manifest.verify(folder))
    name_in_manifest(folder, path.name, path)  # an attacker who can write the folder writes its manifest, too
    assert manifest.verify(folder) == []
    told = f"{path} is not a safetensors file, though its manifest has its hash ("
    assert [problem.startswith(told) for problem in archive.verify(folder)] == [True]
    for load in (lambda: checkpoint.named(run, "latest"), lambda: weights.read(Model(name="x", weights=f"run:{run.path}"))):
        with pytest.raises(ConfigError, match="is damaged") as refused:
            load()
        assert refused.value.problems[1].startswith(told)
    with pytest.raises(MachineError, match="restore one from a backup") as lost:
        checkpoint.newest(run)
    assert lost.value.problems[0].startswith(f"damaged checkpoint: {told}")
    assert not harm.exists()
    pickle.loads(pickle.dumps(payload))
    assert harm.exists()  # the payload is a real one


def calls(path: Path) -> list[tuple[str, ast.Call]]:
    return [(ast.unparse(node.func), node) for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]


def says(call: ast.Call, keyword: str, value: object) -> bool:
    return any(k.arg == keyword and isinstance(k.value, ast.Constant) and k.value.value is value for k in call.keywords)


def dangers(path: Path) -> list[str]:
    """Calls by which a file's content could be executed."""
    found = []
    for name, call in calls(path):
        last = name.rpartition(".")[2]
        loader = ast.unparse(call.args[1]) if last == "load" and len(call.args) > 1 else ""
        if (
            name in ("eval", "exec", "compile", "__import__")
            or name.split(".")[0] in ("pickle", "cPickle", "dill", "joblib", "shelve", "marshal")
            or (name == "torch.load" and not says(call, "weights_only", True))
            or (name in ("yaml.load", "yaml.load_all") and loader not in ("_OneOfEachKey", "yaml.SafeLoader", "yaml.CSafeLoader"))
            or name in ("yaml.unsafe_load", "yaml.full_load")
            or (name in ("np.load", "numpy.load") and not says(call, "allow_pickle", False))
            or last in ("load_checkpoint", "load_state", "load_universal_checkpoint")
            or name.startswith(("dcp.", "torch.distributed.checkpoint."))
        ):
            found.append(f"{path.name}, line {call.lineno}: {name}")
    imported = {alias.name for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Import) for alias in node.names}
    modules = {node.module or "" for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.ImportFrom)}
    code = {"pickle", "dill", "joblib", "shelve", "marshal", "torch.distributed.checkpoint"}
    return found + [f"{path.name} imports {name}" for name in imported | modules if name in code]


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT / "sft_dist")))
def test_nothing_that_is_read_can_be_executed(path: Path) -> None:
    assert dangers(path) == []


def test_the_yaml_loader_of_our_own_is_a_safe_one(tmp_path: Path) -> None:
    (tmp_path / "x.yaml").write_text(f"task: !!python/object/apply:os.mkdir ['{tmp_path / 'harm'}']\n")
    with pytest.raises(ConfigError, match="is not plain YAML"):
        parse.load(tmp_path / "x.yaml")
    assert not (tmp_path / "harm").exists()


@pytest.mark.parametrize(
    "line",
    [
        "import pickle",
        "from torch.distributed.checkpoint import load",
        "x = torch.load(path)",
        "x = torch.load(path, weights_only=False)",
        "x = yaml.load(text, yaml.Loader)",
        "x = yaml.load(text)",
        "x = np.load(path)",
        "x = np.load(path, allow_pickle=True)",
        "engine.load_checkpoint(path)",
        "eval(text)",
    ],
)
def test_what_could_be_executed_is_found(tmp_path: Path, line: str) -> None:
    (tmp_path / "x.py").write_text(line + "\n")
    assert len(dangers(tmp_path / "x.py")) == 1
