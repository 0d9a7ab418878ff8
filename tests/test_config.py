"""What each key accepts; the defaults that others script against."""

import pytest
from given import a_config
from pydantic import ValidationError

from sft_dist.config import Config
from sft_dist.errors import ConfigError
from sft_dist.parse import flat


@pytest.mark.parametrize(
    ("key", "value", "told"),
    [
        ("train__duration", "3", "write a number and a unit"),
        ("train__duration", 3, "write a number and a unit"),
        ("train__duration", "0 epochs", "'0 epochs' is no time at all; use at least 1 step"),
        ("train__duration", "-1 epochs", "write a number and a unit"),
        ("eval__every", "0 steps", "use at least 1 step"),
        ("save__every", "0 steps", "use at least 1 step"),
        ("track__every", "0 steps", "use at least 1 step"),
        ("schedule__step_every", "0 steps", "use at least 1 step"),
        ("stop__when", "top1 > 1", "is not a target"),
        ("model__train", "last", "use head, all, or last:N"),
        ("model__train", "last:0", "use head, all, or last:N"),
        ("model__norm", "batch", "use 'frozen', 'train' or 'sync'"),
        ("data__workers", -1, "-1 is neither a number of processes nor auto"),
        ("data__workers", True, "True is neither a number of processes nor auto"),
        ("data__workers", 1.5, "1.5 is neither a number of processes nor auto"),
        ("data__workers", "many", "'many' is neither a number of processes nor auto"),
        ("data__size", 7, "it should be greater than or equal to 8"),
        ("data__flip", 1.1, "it should be less than or equal to 1"),
        ("data__flip", True, "data.flip: True is not a number"),
        ("data__val_fraction", 1, "it should be less than 1"),
        ("data__mean", [0.5, 0.5], "data.mean.2 is missing"),
        ("data__mean", [0.5, 0.5, float("nan")], "it should be a finite number"),
        ("data__root", "a\nb", "'a\\nb' has control characters in it"),
        ("model__name", "a\x7f", "has control characters in it"),
        ("data__classes", [False], "data.classes.0 = False is not a text; put it in quotes"),
        ("batch__total", 0, "it should be greater than or equal to 1"),
        ("batch__total", "32", "it should be a valid integer"),
        ("batch__total", 32.0, "it should be a valid integer"),
        ("batch__micro", True, "it should be a valid integer"),
        ("optim__lr", -0.1, "it should be greater than or equal to 0"),
        ("optim__lr", float("inf"), "it should be a finite number"),
        ("optim__lr", float("nan"), "it should be a finite number"),
        ("optim__lr", "fast", "it should be a valid number"),
        ("optim__lr", True, "optim.lr: True is not a number"),
        ("optim__momentum", 1, "it should be less than 1"),
        ("optim__nesterov", "yes", "it should be a valid boolean"),
        ("optim__betas", [0.9, 1.0], "optim.betas.1 = 1.0: it should be less than 1"),
        ("schedule__gamma", 0, "it should be greater than 0"),
        ("train__seed", -1, "it should be greater than or equal to 0"),
        ("train__clip", 0, "it should be greater than 0"),
        ("train__deterministic", "off", "it should be a valid boolean"),
        ("save__keep", 0, "it should be greater than or equal to 1"),
        ("run__name", "../other", "cannot name a folder"),
        ("run__name", ".hidden", "cannot name a folder"),
        ("run__name", "a b", "cannot name a folder"),
        ("run__name", "", "cannot name a folder"),
        ("run__name", 7, "run.name = 7 is not a text; put it in quotes (YAML reads no as False and 007 as 7)"),
        ("precision", "fp8", "use 'fp32', 'tf32', 'bf16', 'fp16' or 'fp64'"),
        ("optim", None, "optim = None is a section; its keys are name, lr,"),
        ("optim", "sgd", "optim = 'sgd' is a section; its keys are name, lr,"),
    ],
)
def test_a_value_that_cannot_be_is_refused_by_its_key(key: str, value: object, told: str) -> None:
    with pytest.raises(ConfigError) as refused:
        a_config(**{key: value})
    assert len(refused.value.problems) == 1
    assert key.replace("__", ".") in refused.value.problems[0]
    assert told in refused.value.problems[0]


@pytest.mark.parametrize(
    ("key", "value", "kept"),
    [
        ("train.duration", "1 epochs", "1 epoch"),
        ("train.duration", "0.5 epochs", "0.5 epochs"),
        ("schedule.warmup", "0 steps", "0 steps"),
        ("stop.when", "val/top1   >=  0.95", "val/top1 >= 0.95"),
        ("model.train", "last:2", "last:2"),
        ("data.workers", "3", 3),
        ("data.workers", "auto", "auto"),
        ("optim.lr", "3e-4", 0.0003),  # PyYAML reads 3e-4 as a text
        ("optim.lr", 1, 1.0),
        ("run.name", "pets-r50_v1.2+x=3", "pets-r50_v1.2+x=3"),
    ],
)
def test_a_value_is_kept_in_its_plain_form(key: str, value: object, kept: object) -> None:
    assert flat(a_config(**{key.replace(".", "__"): value}))[key] == kept


def test_the_defaults_are_those_that_others_script_against() -> None:
    values = flat(a_config())
    assert {key: values[key] for key in ("model.weights", "model.train", "model.norm", "model.dropout", "eval.where", "eval.every")} == {
        "model.weights": "DEFAULT",
        "model.train": "head",
        "model.norm": "frozen",
        "model.dropout": "keep",
        "eval.where": "all",
        "eval.every": "1 epoch",
    }
    assert {key: values[key] for key in ("shard.strategy", "precision", "device", "track.wandb", "save.background", "data.bad")} == {
        "shard.strategy": "ddp",
        "precision": "fp32",
        "device": "auto",
        "track.wandb": "disabled",
        "save.background": True,
        "data.bad": "stop",
    }


def test_a_config_cannot_be_changed_once_it_is_made() -> None:
    config = a_config()
    with pytest.raises(ValidationError, match="frozen"):
        config.batch.total = 64  # type: ignore[misc]


def test_no_key_reads_as_something_else_in_yaml_or_python() -> None:
    import keyword

    import yaml

    for key in [part for dotted in flat(a_config()) for part in dotted.split(".")] + list(Config.model_fields):
        assert not keyword.iskeyword(key)
        assert yaml.safe_load(key) == key
