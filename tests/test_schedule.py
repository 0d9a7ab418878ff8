"""The stream of samples is a pure function, the same on every layout; rates and marks follow the step alone."""

import math
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from fractions import Fraction
from itertools import pairwise

import pytest
from given import a_config
from hypothesis import given
from hypothesis import strategies as st

from sft_dist import schedule
from sft_dist.plan import Plan, World, make_plan
from sft_dist.schedule import Pick, draw_seed, due, lr_factor, marks, window


def a_plan(samples: int = 244, world: int = 1, **changes: object) -> Plan:
    return make_plan(a_config(**changes), World(size=world, local_size=world), samples, 60)


def samples_of(step: int, plan: Plan) -> list[Pick]:
    """What all ranks together see in a step."""
    return [pick for rank in range(plan.world) for micro in window(step, rank, plan) for pick in micro]


@st.composite
def plans(draw: st.DrawFn) -> Plan:
    world = draw(st.integers(1, 8))
    total = draw(st.integers(world, 40))
    samples = draw(st.integers(total, 120))
    return a_plan(samples, world, batch__total=total, batch__micro=draw(st.integers(1, 12)), train__seed=draw(st.integers(0, 5)))


@given(plans(), st.integers(0, 50))
def test_a_window_is_full_and_cut_into_micro_batches_that_fit(plan: Plan, step: int) -> None:
    for rank in range(plan.world):
        micros = window(step, rank, plan)
        sizes = [len(micro) for micro in micros]
        assert sum(sizes) == plan.samples_per_rank[rank]
        assert len(sizes) == plan.passes_per_rank[rank]
        assert all(size == plan.micro_batch for size in sizes[:-1])
        assert 1 <= sizes[-1] <= plan.micro_batch
    assert len(samples_of(step, plan)) == plan.global_batch


@given(plans(), st.integers(0, 50))
def test_a_step_sees_the_same_samples_on_every_layout(plan: Plan, step: int) -> None:
    alone = replace(plan, world=1, micro_batch=plan.global_batch)
    [[*expected]] = window(step, 0, alone)
    assert Counter(samples_of(step, plan)) == Counter(expected)
    assert [window(step, rank, plan)[0][0] for rank in range(plan.world)] == expected[: plan.world]  # dealt out one by one


@given(plans())
def test_every_sample_is_seen_once_an_epoch(plan: Plan) -> None:
    epochs = 3
    steps = -(-epochs * plan.samples // plan.global_batch)
    seen = [pick for step in range(steps) for pick in samples_of(step, plan)]
    assert max(Counter(seen).values()) == 1
    for epoch in range(epochs):
        assert sorted(pick.position for pick in seen if pick.epoch == epoch) == list(range(plan.samples))


@given(plans(), st.lists(st.integers(0, 30), min_size=2, max_size=6))
def test_a_window_does_not_depend_on_what_was_asked_before(plan: Plan, steps: list[int]) -> None:
    in_order = {step: samples_of(step, plan) for step in sorted(set(steps))}
    schedule._order.cache_clear()
    for step in steps:
        assert samples_of(step, plan) == in_order[step]


def test_epochs_and_seeds_have_orders_of_their_own() -> None:
    orders = {(seed, epoch): tuple(schedule._order(50, seed, epoch)) for seed in range(4) for epoch in range(4)}
    assert len(set(orders.values())) == 16


def test_a_window_of_a_far_step_costs_no_replay() -> None:
    assert samples_of(10_000_000, a_plan())[0].epoch == 10_000_000 * 32 // 244


def test_an_epoch_is_shuffled_once_and_not_once_a_sample() -> None:
    plan = a_plan(244, 2)
    schedule._order.cache_clear()
    for step in range(16):  # 512 places: two whole epochs and a part of the third
        for rank in range(2):
            window(step, rank, plan)
    assert schedule._order.cache_info().misses == 3


# These figures are the promise to every run that was ever stopped: if they change, no run can be resumed exactly.
FIRST_STEPS = [
    [(0, 9), (0, 3), (0, 1), (0, 7)],
    [(0, 0), (0, 5), (0, 2), (0, 4)],
    [(0, 8), (0, 6), (1, 0), (1, 1)],
    [(1, 6), (1, 4), (1, 8), (1, 2)],
    [(1, 5), (1, 3), (1, 9), (1, 7)],
]


def test_the_stream_of_samples_is_the_one_that_old_runs_were_trained_on() -> None:
    plan = a_plan(10, batch__total=4, batch__micro=2, train__seed=3)
    assert [samples_of(step, plan) for step in range(5)] == FIRST_STEPS
    assert window(2, 0, plan) == [[(0, 8), (0, 6)], [(1, 0), (1, 1)]]
    two = replace(plan, world=2)
    assert window(2, 0, two) == [[(0, 8), (1, 0)]]
    assert window(2, 1, two) == [[(0, 6), (1, 1)]]


def test_seeds_are_the_ones_that_old_runs_were_trained_with() -> None:
    assert draw_seed("order", 0, 0) == 8073061470549175911
    assert draw_seed("augment", 1, 2, 3) == 6868190801309730695


def test_seeds_do_not_depend_on_the_process() -> None:
    program = "from sft_dist.schedule import draw_seed; print(draw_seed('order', 0, 0))"
    done = subprocess.run([sys.executable, "-c", program], env={"PYTHONHASHSEED": "7"}, capture_output=True, text=True, check=True)
    assert done.stdout == "8073061470549175911\n"


@given(st.lists(st.integers(0, 10**6), min_size=1, max_size=4), st.lists(st.integers(0, 10**6), min_size=1, max_size=4))
def test_a_seed_depends_on_every_part_and_fits_into_63_bits(one: list[int], other: list[int]) -> None:
    assert (draw_seed(*one) == draw_seed(*other)) == (one == other)
    assert 0 <= draw_seed(*one) < 2**63


@given(st.fractions(min_value=Fraction(1, 9), max_value=40, max_denominator=50), st.integers(0, 120))
def test_marks_are_counted_as_one_by_one(every: Fraction, step: int) -> None:
    assert marks(step, every) == sum(1 for k in range(1, 1100) if math.floor(k * every) <= step)


@given(st.fractions(min_value=Fraction(1, 9), max_value=40, max_denominator=50), st.integers(1, 90))
def test_due_falls_on_the_marks_and_on_the_end(every: Fraction, total: int) -> None:
    at = {math.floor(k * every) for k in range(1, 1100)} | {total}
    assert [step for step in range(1, total + 1) if due(step, every, total)] == sorted(step for step in at if 1 <= step <= total)


@pytest.mark.parametrize(
    ("every", "total", "steps"),
    [
        (Fraction(3), 10, [3, 6, 9, 10]),
        (Fraction(5, 2), 10, [2, 5, 7, 10]),
        (Fraction(61, 8), 38, [7, 15, 22, 30, 38]),
        (Fraction(1, 2), 3, [1, 2, 3]),
        (Fraction(100), 7, [7]),
    ],
)
def test_due_on_these_steps_and_no_others(every: Fraction, total: int, steps: list[int]) -> None:
    assert [step for step in range(1, total + 1) if due(step, every, total)] == steps


def factors(**changes: object) -> list[float]:
    plan = a_plan(100, train__duration="10 steps", **{f"schedule__{key}": value for key, value in changes.items()})
    return [lr_factor(step, plan) for step in range(plan.total_steps)]


def test_a_constant_rate_stays() -> None:
    assert factors() == [1.0] * 10


def test_warm_up_rises_linearly_to_the_full_rate() -> None:
    assert factors(warmup="4 steps") == [0.25, 0.5, 0.75, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0]
    assert factors(warmup="10 steps")[-1] == 1.0


def test_steps_fall_by_gamma_where_torchs_steplr_lets_them_fall() -> None:
    assert factors(name="step", step_every="4 steps", gamma=0.5) == [1.0, 1.0, 1.0, 1.0, 0.5, 0.5, 0.5, 0.5, 0.25, 0.25]
    assert factors(name="step", step_every="4 steps", gamma=0.5) == [0.5 ** (step // 4) for step in range(10)]  # StepLR's closed form


def test_steps_that_fall_by_epochs_fall_after_the_last_step_of_the_epoch() -> None:
    plan = a_plan(
        50, batch__total=20, train__duration="4 epochs", schedule__name="step", schedule__step_every="1 epoch", schedule__gamma=0.5
    )
    assert [lr_factor(step, plan) for step in range(10)] == [1.0, 1.0, 0.5, 0.5, 0.5, 0.25, 0.25, 0.125, 0.125, 0.125]


def test_the_warm_up_does_not_move_the_falls() -> None:
    assert factors(name="step", step_every="4 steps", gamma=0.5, warmup="2 steps") == [0.5, 1.0, 1.0, 1.0, 0.5, 0.5, 0.5, 0.5, 0.25, 0.25]


def test_cosine_follows_torchs_cosineannealinglr() -> None:
    closed_form = [0.1 + 0.9 * (1 + math.cos(math.pi * step / 10)) / 2 for step in range(10)]  # T_max = 10, eta_min = 0.1 of the rate
    assert factors(name="cosine", final=0.1) == pytest.approx(closed_form, abs=1e-15)


def test_cosine_after_a_warm_up_takes_these_values() -> None:
    expected = [
        0.5,
        1.0,
        1.0,
        0.9657457896300791,
        0.8681980515339464,
        0.7222075445642904,
        0.55,
        0.3777924554357096,
        0.23180194846605365,
        0.13425421036992097,
    ]
    assert factors(name="cosine", final=0.1, warmup="2 steps") == pytest.approx(expected, abs=1e-15)


@pytest.mark.parametrize("name", ["constant", "step", "cosine"])
def test_the_rate_never_rises_after_the_warm_up_and_stays_within_its_bounds(name: str) -> None:
    after = factors(name=name, warmup="3 steps", step_every="2 steps")[2:]
    assert all(later <= earlier for earlier, later in pairwise(after))
    assert all(0 <= factor <= 1 for factor in after)


def test_cosine_stays_at_its_end_when_a_run_is_already_past_a_shortened_duration() -> None:
    plan = a_plan(100, train__duration="10 steps", schedule__name="cosine", schedule__final=0.25)
    assert lr_factor(10, plan) == lr_factor(25, plan) == 0.25
