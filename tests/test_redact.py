"""What is written down or sent holds no secret: not by name, not in a URL, not the value of a variable."""

import pytest

from sft_dist.redact import redact, secrets, without


@pytest.mark.parametrize(
    ("argument", "wanted"),
    [
        ("track.api_key=abc", "track.api_key=(redacted)"),
        ("--WANDB_API_KEY=abc", "--WANDB_API_KEY=(redacted)"),
        ("hub.token=a=b", "hub.token=(redacted)"),
        ("my_secret_thing=x\ny", "my_secret_thing=(redacted)"),
        ("password=abckey==", "password=(redacted)"),
        ("optim.lr=0.1", "optim.lr=0.1"),
        ("data.root=/data/token/keys", "data.root=/data/token/keys"),
        ("configs/token.yaml", "configs/token.yaml"),
        ("token=", "token="),
    ],
)
def test_secrets_on_the_command_line_are_left_out(argument: str, wanted: str) -> None:
    assert redact([argument]) == [wanted]


def test_a_flag_that_sounds_like_a_secret_hides_what_follows() -> None:
    assert redact(["--api-key", "abc", "--quiet"]) == ["--api-key", "(redacted)", "--quiet"]


@pytest.mark.parametrize("name", ["PGPASSWORD", "SSHPASS", "MYSQL_PWD", "DB_PASS", "GITHUB_PAT", "AWS_SECRET_ACCESS_KEY", "hub.token"])
def test_a_variable_that_sounds_like_a_secret_is_one(name: str) -> None:
    assert secrets({name: "0123456789"}) == {name: "0123456789"}


@pytest.mark.parametrize("name", ["PWD", "OLDPWD", "PATH", "PYTHONPATH", "BYPASS", "DISPATCH", "KEYMAP"])
def test_a_variable_that_only_looks_a_little_like_one_is_none(name: str) -> None:
    assert secrets({name: "/home/somebody"}) == {}


def test_variables_that_sound_like_secrets_are_known_by_name_and_length() -> None:
    variables = {"WANDB_API_KEY": "0123456789", "HF_TOKEN": "abcdefgh", "MY_SECRET": "short", "KEYBOARD": "0123456789", "PATH": "/usr/bin"}
    assert secrets(variables) == {"WANDB_API_KEY": "0123456789", "HF_TOKEN": "abcdefgh"}


@pytest.mark.parametrize(
    ("value", "wanted"),
    [
        ("a note with 0123456789 in it", "a note with (redacted) in it"),
        ("01234567890123456789", "(redacted)(redacted)"),
        ("s3://user:pw@host/data?token=abc", "s3://(redacted)@host/data?token=(redacted)"),
        ({"hub.token": "abc", "tokens": "abc", "n": 3}, {"hub.token": "(redacted)", "tokens": "abc", "n": 3}),
        ({"environment": {"argv": ["train", "0123456789"]}}, {"environment": {"argv": ["train", "(redacted)"]}}),
        (None, None),
        (0.1, 0.1),
    ],
)
def test_no_secret_stands_in_what_is_sent(value: object, wanted: object) -> None:
    assert without(["0123456789"], value) == wanted
