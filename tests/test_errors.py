"""Errors end the process with a code of their own, keep every problem apart, and travel between processes."""

import pickle

import pytest

from sft_dist.errors import ConfigError, DivergedError, InfrastructureError, MachineError, SftError

KINDS = (SftError, ConfigError, MachineError, InfrastructureError, DivergedError)


@pytest.mark.parametrize(("kind", "code"), [(ConfigError, 2), (MachineError, 78), (InfrastructureError, 75), (DivergedError, 1)])
def test_each_kind_has_its_exit_code(kind: type[SftError], code: int) -> None:
    assert kind("no").exit_code == code
    assert issubclass(kind, SftError)


def test_one_sentence_is_one_problem_and_not_its_letters() -> None:
    assert ConfigError("one thing").problems == ("one thing",)


def test_several_problems_stand_on_a_line_each() -> None:
    error = ConfigError(["one", "two"])
    assert error.problems == ("one", "two")
    assert str(error) == "one\ntwo"


@pytest.mark.parametrize("kind", KINDS)
def test_an_error_survives_pickling(kind: type[SftError]) -> None:
    again = pickle.loads(pickle.dumps(kind(["one", "two"])))
    assert type(again) is kind
    assert again.problems == ("one", "two")
    assert again.exit_code == kind.exit_code
