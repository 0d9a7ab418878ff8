"""A rank that holds more than its share is found out; the words for what it holds."""

import pytest
from given import a_config
from torch import nn

from sft_dist.errors import MachineError
from sft_dist.sharding import Held, shares
from sft_dist.sharding.contract import owners

MODEL = nn.Sequential(nn.Linear(100, 40), nn.Linear(40, 10))  # 4,450 parameters; a row of each tensor is 100 + 1 + 40 + 1
WHOLE = Held(4450, 4450)


def test_a_model_is_counted_before_it_is_spread() -> None:
    assert shares.of_whole(MODEL) == shares.Whole(WHOLE, Held(142, 142))


def test_what_does_not_learn_is_no_part_of_the_moments() -> None:
    model = nn.Sequential(nn.Linear(100, 40), nn.Linear(40, 10))
    model[0].requires_grad_(False)
    assert shares.of_whole(model) == shares.Whole(Held(410, 4450), Held(41, 142))


def test_a_head_that_alone_learns_must_be_shared_out_too() -> None:
    model = nn.Sequential(nn.Linear(1000, 40), nn.Linear(40, 10))
    model[0].requires_grad_(False)
    with pytest.raises(MachineError, match="205 elements of each optimizer moment"):
        shares.check(Held(410, 40450), shares.of_whole(model), a_config(shard__strategy="zero1"), world=2)


@pytest.mark.parametrize(("strategy", "held"), [
    ("ddp", WHOLE),
    ("zero1", Held(2226, 4450)),
    ("zero2", Held(2226, 4450)),
    ("zero3", Held(2226, 2226)),
    ("fsdp", Held(2296, 2296)),
])  # fmt: skip
def test_an_even_share_is_accepted(strategy: str, held: Held) -> None:
    said = shares.check(held, shares.of_whole(MODEL), a_config(shard__strategy=strategy), world=2)
    assert said == (
        f"rank 0 of 2 holds {held.masters:,} of 4,450 elements of each optimizer moment and {held.parameters:,} of 4,450 of the parameters"
    )


@pytest.mark.parametrize(("strategy", "held"), [
    ("zero1", WHOLE),
    ("zero2", WHOLE),
    ("zero3", WHOLE),
    ("zero3", Held(2226, 4450)),
    ("fsdp", WHOLE),
    ("fsdp", Held(2226, 4450)),
])  # fmt: skip
def test_a_silent_copy_on_every_rank_is_refused_with_both_numbers(strategy: str, held: Held) -> None:
    with pytest.raises(MachineError, match=rf"shard.strategy = {strategy} should leave each of 2 ranks 2,225 .* holds {held.masters:,}"):
        shares.check(held, shares.of_whole(MODEL), a_config(shard__strategy=strategy), world=2)


def test_a_hybrid_shares_out_within_a_group_only() -> None:
    config = a_config(shard__strategy="fsdp", shard__hybrid=2)
    shares.check(Held(2226, 2226), shares.of_whole(MODEL), config, world=8)
    with pytest.raises(MachineError, match="each of 2 ranks"):
        shares.check(WHOLE, shares.of_whole(MODEL), config, world=8)


def test_owners_are_even_and_the_same_on_every_rank() -> None:
    sizes = {"a": 10, "b": 9, "c": 5, "d": 4, "e": 1}
    assert owners(sizes, 2) == {"a": 0, "b": 1, "c": 1, "d": 0, "e": 0}
    assert owners(dict(reversed(sizes.items())), 2) == owners(sizes, 2)
    assert set(owners({"a": 1}, 3).values()) == {0}
