"""The schema that editors read says of each key what the config itself says of it."""

import copy
import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from click.testing import CliRunner
from given import TREE
from pydantic import BaseModel
from pydantic._internal._docs_extraction import extract_docstrings_from_cls

from sft_dist import cli, parse, schema
from sft_dist.config import Config
from sft_dist.errors import ConfigError

ROOT = Path(__file__).resolve().parent.parent
JUDGE = jsonschema.Draft7Validator(schema.schema())


def tree_with(line: str) -> dict[str, Any]:
    """The small config with `section.key: value` laid over it, read as a file is read."""
    tree = copy.deepcopy(yaml.safe_load(TREE))
    key, _, value = line.partition(": ")
    *sections, last = key.split(".")
    here = tree
    for section in sections:
        here = here.setdefault(section, {})
    here[last] = yaml.safe_load(value)
    return tree


ACCEPTED = """\
train.duration: 3 epochs
train.duration: 0.5 epochs
train.duration: 1 step
train.duration: 64000 samples
schedule.warmup: 0 steps
optim.lr: 0
optim.lr: 0.01
optim.lr: 1e-3
optim.momentum: 0
train.clip: 1
train.clip: null
train.deterministic: true
data.mean: [0, 0.5, 1]
optim.betas: [0.9, 0.99]
data.classes: [cat, dog]
data.classes: null
data.workers: auto
data.workers: 0
data.workers: "4"
data.size: 8
model.train: last:2
stop.when: val/top1 >= 0.95
stop.when: val/loss<=1e-2
watch.step_s: auto
watch.step_s: 60
track.tags: []
track.limit_s: 240
run: {}
run.name: a.b-c_1
run.name: größe
shard: {strategy: fsdp, hybrid: 2}
device: cuda"""

REFUSED = """\
train.duration: 3
train.duration: 3 epoch s
train.duration: 0 epochs
train.duration: 0.0 epochs
train.duration: 1.5 steps
train.duration: -1 epochs
optim.lr: -0.1
optim.lr: fast
optim.lr: true
optim.momentum: 1
optim.eps: 0
data.flip: 1.5
data.flip: null
data.mean: [0.5, 0.5]
data.mean: 0.5
data.classes: cat
data.workers: -1
data.workers: many
data.workers: "\u0664"
model.train: last:\u0662
train.duration: "\u0663 epochs"
stop.when: val/top1 >= \u0663
data.size: 7
batch.total: 0
batch.total: "64"
batch.total: 1.5
train.deterministic: "no"
model.train: last:0
model.train: tail
stop.when: val/top1 = 0.95
stop.when: train/loss <= 1
watch.step_s: 0
track.limit_s: 241
track.limit_s: true
track.tags: one
run.name: a/b
run.name: .hidden
model.name: "a\\tb"
optim.lrr: 0.1
optimiser: {}
optim: sgd
shard.strategy: zero4
precision: fp8
task: segmentation"""


@pytest.mark.parametrize("line", ACCEPTED.splitlines())
def test_the_schema_lets_through_what_the_config_takes(line: str) -> None:
    tree = tree_with(line)
    parse.from_tree(tree)
    assert [error.message for error in JUDGE.iter_errors(tree)] == []


@pytest.mark.parametrize("line", REFUSED.splitlines())
def test_the_schema_stops_what_the_config_refuses(line: str) -> None:
    tree = tree_with(line)
    with pytest.raises(ConfigError):
        parse.from_tree(tree)
    assert list(JUDGE.iter_errors(tree))


@pytest.mark.parametrize("line", ["task: text", "data.name: csv", "data.bad: skip"])
def test_values_that_are_not_built_yet_are_not_offered(line: str) -> None:
    assert list(JUDGE.iter_errors(tree_with(line)))


def test_a_config_as_a_run_resolves_it_keeps_to_the_schema() -> None:
    assert list(JUDGE.iter_errors(yaml.safe_load(parse.to_yaml(parse.from_tree(yaml.safe_load(TREE)))))) == []


def test_every_key_stands_in_the_schema_with_its_meaning_and_its_default() -> None:
    for name, field in Config.model_fields.items():
        here = JUDGE.schema["properties"][name]
        section = field.annotation if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel) else Config
        keys = {name: field} if section is Config else section.model_fields
        drawn = here.get("properties", {name: here})
        assert list(drawn) == list(keys)
        meant = extract_docstrings_from_cls(section, use_inspect=True)
        for key, of in keys.items():
            assert drawn[key]["description"] == meant[key]
            assert of.is_required() or drawn[key]["default"] == json.loads(json.dumps(of.default))


def test_the_schema_is_one_that_old_editors_understand() -> None:
    jsonschema.Draft7Validator.check_schema(JUDGE.schema)
    assert "$ref" not in schema.text()


def test_the_file_beside_the_configs_is_fresh_and_is_what_the_command_prints() -> None:
    file = (ROOT / "configs" / "schema.json").read_text()
    assert file == schema.text(), "stale; run `make docs`"
    done = CliRunner().invoke(cli.cli, ["config", "schema"])
    assert (done.exit_code, done.output) == (0, file)
