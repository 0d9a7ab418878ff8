"""From a file and overrides to a config and back; every mistake by its name, and all of them at once."""

import re
from pathlib import Path

import pytest
from given import TREE, a_config
from hypothesis import given, settings
from hypothesis import strategies as st

from sft_dist import parse
from sft_dist.errors import ConfigError

GOLDEN = Path(__file__).parent / "golden"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    file = tmp_path / "pets.yaml"
    file.write_text(TREE)
    return file


def problems(path: Path, *overrides: str) -> list[str]:
    with pytest.raises(ConfigError) as refused:
        parse.load(path, overrides)
    return [problem.removeprefix(f"{path}: ") for problem in refused.value.problems]


MISTAKES = """
taks: classify
data: {name: folders, rooot: data/pets, interpolation: bicubic, size: small, classes: [yes, no]}
model: resnet18
batch: {total: 0, micro: 2.5}
optimizer: {lr: 0.1}
optim: {lrr: 0.1, nesterov: "on", betas: [0.9]}
train: {duration: 3, seeed: 1, epochs: 3}
momentum: 0.9
precision: fp8
run: {name: 007}
"""


def test_a_config_with_many_mistakes_hears_of_all_of_them_at_once(path: Path) -> None:
    path.write_text(MISTAKES)
    told = problems(path, "eval.every=often", "loose words", "--stop.patience=soon")
    assert "\n".join(told) + "\n" == (GOLDEN / "config_mistakes.txt").read_text()


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("optim.lrr=1", "unknown key optim.lrr; did you mean optim.lr?"),
        ("batch.totl=1", "unknown key batch.totl; did you mean batch.total?"),
        ("trian.seed=1", "unknown key trian; did you mean train?"),
        ("lr=1", "unknown key lr; did you mean optim.lr?"),
        ("duration=1", "unknown key duration; did you mean train.duration?"),
        ("every=2", "unknown key every; did you mean eval.every or save.every or track.every?"),
        ("train.lr=1", "unknown key train.lr; did you mean optim.lr?"),
        ("schedule.every=1", "unknown key schedule.every; did you mean schedule.step_every?"),
        ("shard.zzz=1", "unknown key shard.zzz; it has strategy"),
        ("data.interpolation=bicubic", "unknown key data.interpolation; it has name, root,"),
        ("integer=1", "unknown key integer; it has task, data,"),
        ("function-x=1", "unknown key function-x; it has task, data,"),
        ("optim.lr.x=1", "optim.lr = {'x': 1}: it should be a valid number"),
    ],
)
def test_an_unknown_key_gets_the_nearest_name(path: Path, override: str, told: str) -> None:
    [problem] = problems(path, override)
    assert problem.startswith(told)


@pytest.mark.parametrize(
    ("override", "key", "value"),
    [
        ("optim.lr=0.5", "optim.lr", 0.5),
        ("--optim.lr=0.5", "optim.lr", 0.5),
        ("optim.lr=3e-4", "optim.lr", 0.0003),
        ("batch.total=64", "batch.total", 64),
        ("precision=fp64", "precision", "fp64"),
        ("--data.download=true", "data.download", True),
        ("data.classes=[cat, dog]", "data.classes", ["cat", "dog"]),
        ("data.root=/a/b=c", "data.root", "/a/b=c"),
        ("data.root=@odd", "data.root", "@odd"),
        ("data.root='007'", "data.root", "007"),
        ("data.root=", "data.root", ""),
        ("stop.when=val/top1 >= 0.95", "stop.when", "val/top1 >= 0.95"),
        ("train.duration=3 epochs", "train.duration", "3 epochs"),
        ("train.clip=1", "train.clip", 1.0),
        ("train.clip=null", "train.clip", None),
        ("optim={name: adamw, lr: 0.2}", "optim.name", "adamw"),
        ("schedule.warmup=2 steps", "schedule.warmup", "2 steps"),
    ],
)
def test_an_override_is_laid_over_the_file(path: Path, override: str, key: str, value: object) -> None:
    assert parse.flat(parse.load(path, [override]))[key] == value


def test_an_override_leaves_its_neighbours_and_the_last_one_wins(path: Path) -> None:
    config = parse.load(path, ["batch.total=64", "batch.total=128"])
    assert (config.batch.total, config.batch.micro) == (128, 8)


@pytest.mark.parametrize("override", ["optim.lr", "--verbose", "=3", "--=3", ""])
def test_an_argument_that_is_no_override_is_refused(path: Path, override: str) -> None:
    assert problems(path, override) == [f"{override!r} is not key=value, like optim.lr=0.01"]


def test_the_run_is_called_as_its_file_unless_it_has_a_name(path: Path) -> None:
    assert parse.load(path).run.name == "small"
    path.write_text(re.sub("run: .*", "", TREE))
    assert parse.load(path).run.name == "pets"
    path.write_text(re.sub("run: .*", "run: {dir: elsewhere}", TREE))
    assert (parse.load(path).run.dir, parse.load(path).run.name) == ("elsewhere", "pets")


PAYLOADS = (
    "!!python/object/apply:os.system ['touch {}']",
    "!!python/object/apply:pathlib.Path.touch [!!python/object/apply:pathlib.PosixPath ['{}']]",
    "!!python/object/new:subprocess.Popen [['touch', '{}']]",
    "!!python/name:os.system",
    "!!python/module:antigravity",
)


@pytest.mark.parametrize("payload", PAYLOADS)
def test_a_config_cannot_run_code(path: Path, tmp_path: Path, payload: str) -> None:
    planted = payload.replace("{}", str(tmp_path / "planted"))
    path.write_text(f"task: {planted}\n")
    [problem] = problems(path)
    assert problem.startswith(f"config {path} is not plain YAML: could not determine a constructor for the tag 'tag:yaml.org,2002:python/")
    path.write_text(TREE)
    [problem] = problems(path, f"task={planted}")
    assert problem.startswith(f"task = {planted!r}; use 'classify',")
    assert not (tmp_path / "planted").exists()


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"", "holds no keys; it begins with `task: classify`"),
        (b"# only a comment\n", "holds no keys"),
        (b"- a\n- b\n", "holds no keys"),
        (b"classify", "holds no keys"),
        (b"a: [1, 2", "is not plain YAML"),
        (b"a: b: c", "is not plain YAML"),
        (b"a: 1\n\tb: 2", "is not plain YAML"),
        (b"a: 1\0", "is not plain YAML"),
        (b"[" * 5000, "is not plain YAML"),
        (b"\x89PNG\r\n\x1a\n\xff\xfe", "is not a text file in UTF-8"),
        (b"task: classify\ntask: classify\n", "is not plain YAML: task stands twice in one section (line 1)"),
        (b"task: classify\noptim:\n  lr: 1\n  name: sgd\n  lr: 2\n", "is not plain YAML: lr stands twice in one section (line 3)"),
        (b"task: classify\noptim: {lr: 1, 'lr': 2}\n", "is not plain YAML: lr stands twice in one section (line 2)"),
    ],
)
def test_a_file_that_is_no_config_is_refused_by_its_name(path: Path, content: bytes, told: str) -> None:
    path.write_bytes(content)
    [problem] = problems(path)
    assert problem.startswith(f"config {path} {told}")


def test_a_file_that_is_not_there_is_refused_by_its_name(tmp_path: Path) -> None:
    assert problems(tmp_path / "no.yaml") == [f"config {tmp_path / 'no.yaml'}: No such file or directory"]
    assert problems(tmp_path) == [f"config {tmp_path}: Is a directory"]


def test_a_config_that_only_names_its_task_hears_of_every_section_that_is_missing(path: Path) -> None:
    path.write_text("task: classify\n")
    assert problems(path) == ["data is missing", "model is missing", "batch is missing", "train is missing"]


def test_keys_that_are_no_texts_are_refused(path: Path) -> None:
    path.write_text(TREE + "on: 1\n7: 2\n")
    told = "is no key; put it in quotes (YAML reads on as True)"
    assert problems(path) == [f"True {told}", f"7 {told}"]


def test_yaml_anchors_and_merges_may_be_used(path: Path) -> None:
    path.write_text(TREE + "optim: {<<: {lr: 0.5, momentum: 0.0}, lr: 0.25}\n")
    config = parse.load(path)
    assert (config.optim.lr, config.optim.momentum) == (0.25, 0.0)


def test_values_that_yaml_reads_as_something_else_do_not_pass_in_silence(path: Path) -> None:
    told = "is not a text; put it in quotes (YAML reads no as False and 007 as 7)"
    assert problems(path, "data.classes=[no, 007]") == [f"data.classes.0 = False {told}", f"data.classes.1 = 7 {told}"]
    assert parse.load(path, ["data.classes=['no', '007']"]).data.classes == ("no", "007")
    assert problems(path, "optim.lr=on") == ["optim.lr: True is not a number"]


def test_the_resolved_config_is_read_back_as_the_same(path: Path) -> None:
    config = a_config(data__classes=["Käfer", "no", "007"], train__clip=0.1, stop__when="val/loss <= 1e-05", optim__eps=1e-12)
    path.write_text(parse.to_yaml(config), encoding="utf-8")
    assert parse.load(path) == config
    assert parse.to_yaml(parse.load(path)) == path.read_text(encoding="utf-8")


def test_the_resolved_config_writes_every_default_out() -> None:
    text = parse.to_yaml(a_config())
    for key in parse.flat(a_config()):
        assert re.search(rf"^ *{key.split('.')[-1]}:", text, re.MULTILINE), key


texts = st.text(st.characters(exclude_categories=["Cc", "Cs"]), max_size=12)
shares = st.floats(0, 1, exclude_max=True)
lengths = st.one_of(
    st.decimals(min_value="1e-9", max_value=10**6, places=9).map("{:f} epochs".format), st.integers(1, 10**9).map("{} steps".format)
)


@settings(max_examples=60, deadline=None)
@given(
    st.fixed_dictionaries(
        {
            "data__root": st.none() | texts,
            "data__classes": st.none() | st.lists(texts, max_size=3),
            "data__flip": shares,
            "data__workers": st.just("auto") | st.integers(0, 99),
            "optim__lr": st.floats(0, 1e30),
            "optim__betas": st.tuples(shares, shares),
            "optim__eps": st.floats(min_value=0, exclude_min=True, allow_infinity=False),
            "train__duration": lengths,
            "train__clip": st.none() | st.floats(1e-300, 1e300),
            "eval__every": lengths,
            "stop__patience": st.none() | st.integers(1, 10**12),
        }
    )
)
def test_any_config_survives_being_written_and_read(changes: dict[str, object]) -> None:
    import yaml

    config = a_config(**changes)
    assert parse.from_tree(yaml.safe_load(parse.to_yaml(config))) == config


def test_flat_names_every_key_once_in_the_order_of_the_config() -> None:
    keys = list(parse.flat(a_config()))
    assert keys[:3] == ["task", "data.name", "data.root"]
    assert keys[-3:] == ["run.name", "run.expect_world", "run.shared"]
    assert len(keys) == len(set(keys))
