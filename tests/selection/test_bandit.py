"""The arms take turns by their shares, and these follow the drop of the unbiased error, not what an arm finds."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from random import Random
from statistics import fmean
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from specimens import Constant, Partition, Settled, stream

from streamal.errors import ConfigError
from streamal.lane import SamplingPlan
from streamal.messages import Features, Outcome, Prediction, Reason
from streamal.selection.bandit import HORIZON, LONGEST_TURN, MOST_ARMS, Bandit, in_turn, least_share
from streamal.selection.budget import BudgetPlan
from streamal.selection.registry import build
from streamal.selection.strategy import Proposal, QueryStrategy, Standing, StrategySpec, Unmindful
from streamal.service.ledgers import Pointers, encode_metadata

RATE = 0.1
STANDING = Standing(rate=RATE, cap=23.0)
SURE: Prediction = {"a": 0.8, "b": 0.2}
NOTHING = Constant({})


class Wisher(Unmindful):
    """An arm that wants what a feature of its name says, and keeps all it is told."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.recalls = name.startswith("recalling")
        self.told: list[tuple[Proposal, bool]] = []
        self.outcomes: list[Outcome] = []
        self.restored: Mapping[str, Any] = {}

    def propose(self, features: Features, prediction: Prediction, standing: Standing) -> Proposal:
        return Proposal(float(features[self.name] or 0.0), 7.0)

    def update(self, features: Features, prediction: Prediction, proposal: Proposal, *, asked: bool) -> None:
        self.told.append((proposal, asked))

    def resolved(self, outcome: Outcome) -> None:
        self.outcomes.append(outcome)

    def state(self) -> dict[str, Any]:
        return {"name": self.name}

    def restore(self, state: Mapping[str, Any]) -> None:
        self.restored = state


def spec(parameters: Mapping[str, Any], rate: float = RATE) -> StrategySpec:
    return StrategySpec(rate, 64, parameters, lambda: NOTHING)


def bandit(*arms: str, horizon: int = HORIZON) -> tuple[Bandit, dict[str, Wisher]]:
    built: dict[str, Wisher] = {}

    def wisher(name: str, given: StrategySpec) -> QueryStrategy:
        assert given.parameters == {}
        return built.setdefault(name, Wisher(name))

    return Bandit(spec({"arms": list(arms), "horizon": horizon}), wisher), built


def answer(label: str, propensity: float = 0.01, reason: Reason = "exploration", kind: Any = "learned") -> Outcome:
    """Return the outcome of a request about which the model said "a"."""
    return Outcome(
        kind=kind,
        partition=0,
        offset=0,
        instance_id="0",
        features={},
        label=label,
        weight=1.0,
        prediction=SURE,
        utility=1.0,
        propensity=propensity,
        reason=reason,
        would_select=False,
        strategy="bandit",
        model_version=0,
        requested_at=0.0,
        resolved_at=0.0,
        annotator=None,
    )


def shares(chosen: Bandit) -> list[float]:
    return [standing[0] for standing in chosen.state()["arms"].values()]


def leader(chosen: Bandit) -> int:
    """Return whose turn it is, by what is proposed."""
    names = list(chosen.state()["arms"])
    return int(10.0 * chosen.propose({name: at / 10.0 for at, name in enumerate(names)}, SURE, STANDING).propensity)


def ask(chosen: Bandit, *, asked: bool = True) -> None:
    wishes = dict.fromkeys(chosen.state()["arms"], 0.5)
    chosen.update(wishes, SURE, chosen.propose(wishes, SURE, STANDING), asked=asked)


@given(
    weights=st.lists(st.floats(0.01, 1.0), min_size=2, max_size=6),
    begin=st.integers(0, 10**9),
)
def test_the_turns_are_even_and_in_proportion_to_the_shares(weights: list[float], begin: int) -> None:
    shares = [weight / sum(weights) for weight in weights]
    turns = [in_turn(number, shares) for number in range(begin, begin + 100)]
    for arm, share in enumerate(shares):
        assert turns.count(arm) == pytest.approx(100.0 * share, abs=4.0)


def test_the_propensity_is_that_of_the_arm_whose_turn_it_is() -> None:
    chosen, _ = bandit("x", "y", "z")
    wishes = {"x": 0.3, "y": 0.1, "z": 0.9}
    found = []
    for number in range(12):
        proposal = chosen.propose(wishes, SURE, STANDING)
        assert proposal == (list(wishes.values())[in_turn(number, shares(chosen))], 7.0)
        found.append(proposal.propensity)
        chosen.resolved(answer("a"))
    assert set(found) == {0.3, 0.1, 0.9}


def test_a_turn_ends_by_a_payment_or_after_many_requests() -> None:
    chosen, _ = bandit("x", "y")
    for _ in range(LONGEST_TURN - 1):
        ask(chosen)
        ask(chosen, asked=False)
        chosen.resolved(answer("a", reason="uncertainty"))
        assert leader(chosen) == 0
    ask(chosen)
    assert leader(chosen) == 1
    chosen.resolved(answer("a"))
    assert leader(chosen) == in_turn(2, [0.5, 0.5]) == 0


def test_the_shares_follow_exp4_on_the_drop_of_the_error() -> None:
    """Simulate the rule beside it: shares of the choices, the weighted mean of the losses, and forgetting."""
    chosen, _ = bandit("x", "y", "z", horizon=50)
    random, least, kept = Random(0), least_share(3, 50), 1.0 - 1.0 / 50
    expected = [1.0 / 3.0] * 3
    losses: list[tuple[float, float]] = []
    for number in range(300):
        made = [0, 0, 0]
        for _ in range(random.randrange(2 * LONGEST_TURN)):
            made[leader(chosen)] += 1
            ask(chosen)
        loss, weight = random.choice([0.0, 1.0]), random.choice([20.0, 200.0])
        chosen.resolved(answer("b" if loss else "a", 1.0 / weight))
        if losses and sum(made):
            aged = [kept ** (number - 1 - at) for at in range(number)]
            total = sum(age * w for age, (w, _) in zip(aged, losses, strict=True))
            mean = sum(age * w * lost for age, (w, lost) in zip(aged, losses, strict=True)) / total
            drop = (mean - loss) * weight / (total / sum(aged))
            rewards = [least * drop * count / (sum(made) * share) for count, share in zip(made, expected, strict=True)]
            grown = [
                max(least, share * math.exp(min(1.0, max(-1.0, reward))))
                for share, reward in zip(expected, rewards, strict=True)
            ]
            expected = [share / sum(grown) for share in grown]
        losses.append((weight, loss))
        assert shares(chosen) == pytest.approx(expected)
    assert max(expected) > 1.2 * min(expected)


def test_finding_errors_is_no_reward() -> None:
    chosen, _ = bandit("x", "y")
    chosen.resolved(answer("a"))
    for _ in range(100):
        ask(chosen)
        chosen.resolved(answer("b", reason="uncertainty"))
        chosen.resolved(answer("b", kind="corrected"))
        chosen.resolved(answer("b", kind="abstained"))
    assert shares(chosen) == [0.5, 0.5]


@pytest.mark.parametrize(("label", "sign"), [("a", 1.0), ("b", -1.0)])
def test_who_chose_gets_the_reward_and_the_blame(label: str, sign: float) -> None:
    chosen, _ = bandit("x", "y")
    for said in "abab":
        chosen.resolved(answer(said))
    choosing = leader(chosen)
    assert shares(chosen) == [0.5, 0.5], "nobody chose anything"
    ask(chosen)
    chosen.resolved(answer(label))
    assert sign * (shares(chosen)[choosing] - shares(chosen)[1 - choosing]) > 0.0


def good_share(seed: int, payments: int, gain: float) -> float:
    """Return the share of the first arm after a life in which its turns lower the error, and the other finds errors."""
    random, (chosen, _) = Random(seed), bandit("good", "noisy")
    for _ in range(payments):
        good = leader(chosen) == 0
        for _ in range(3):
            ask(chosen)
            chosen.resolved(answer("a" if good else "b", 0.5, "uncertainty"))
        chosen.resolved(answer("b" if random.random() < 0.3 - gain * good else "a"))
    return shares(chosen)[0]


def test_it_finds_the_arm_that_lowers_the_error() -> None:
    assert fmean(good_share(seed, 300, 0.2) for seed in range(5)) > 0.7


def test_without_a_difference_no_arm_wins_for_good() -> None:
    found = [good_share(seed, 100, 0.0) for seed in range(30)]
    assert fmean(found) == pytest.approx(0.5, abs=0.1)
    least = least_share(2, HORIZON) / (1.0 + least_share(2, HORIZON))
    assert least <= min(found) < max(found) <= 1.0 - least


def test_the_arms_hear_of_all_that_happens_with_their_own_proposals() -> None:
    chosen, built = bandit("x", "y")
    wishes = {"x": 0.2, "y": 0.6}
    chosen.update(wishes, SURE, chosen.propose(wishes, SURE, STANDING), asked=True)
    outcome = answer("a", reason="uncertainty")
    chosen.resolved(outcome)
    assert built["x"].told == [(Proposal(0.2, 7.0), True)]
    assert built["y"].told == [(Proposal(0.6, 7.0), True)]
    assert built["x"].outcomes == built["y"].outcomes == [outcome]


def test_what_is_recalled_reaches_the_arms_that_recall_and_is_no_choice() -> None:
    chosen, built = bandit("x", "recalling")
    assert chosen.recalls
    assert not bandit("x", "y")[0].recalls
    state = chosen.state()
    chosen.update({}, SURE, Proposal(0.5, 0.5), asked=True)
    assert built["recalling"].told == [(Proposal(0.5, math.inf), True)], "nobody knows whose utility it is"
    assert built["x"].told == []
    assert chosen.state() == state


def test_shares_are_kept_by_name_when_the_arms_change() -> None:
    former, _ = bandit("x", "y")
    former.restore({"arms": {"x": [0.75, 3, {}], "y": [0.25, 0, {}]}, "paid": [9, 5.0, 50.0, 10.0]})
    state = orjson.loads(orjson.dumps(former.state()))
    heir, built = bandit("z", "x")
    heir.restore(state)
    assert shares(heir) == [0.5, 0.75]
    assert built["x"].restored == {"name": "x"}
    turns = []
    for _ in range(100):
        turns.append(leader(heir))
        heir.restore({**state, "paid": [len(turns), 5.0, 50.0, 10.0]})
    assert turns.count(1) == pytest.approx(60, abs=4)


@pytest.mark.parametrize("arms", [("class_conditional", "random"), ("split", "periodic", "class_conditional")])
def test_with_exact_arms_a_new_owner_goes_on_exactly(arms: Sequence[str]) -> None:
    plan = SamplingPlan(BudgetPlan(0.3), "bandit", {"arms": list(arms)}, explore=0.3)
    instances = stream(600)
    calm, shaken = Partition(plan, Settled(), delay=30), Partition(plan, Settled(), delay=30)
    calm.run(instances, {170, 410})
    for start, stop in ((0, 170), (170, 410), (410, 600)):
        shaken.run(instances[start:stop])
        shaken.crash(Settled(), instances[:stop])
    assert shaken.requests == calm.requests
    assert shaken.lane.ledger() == calm.lane.ledger()
    found = shaken.lane.ledger()["strategy"]
    assert found["paid"][0] > 20, "there were many payments"
    assert len({arm[0] for arm in found["arms"].values()}) > 1, "and rewards"


@pytest.mark.parametrize(
    "arms",
    [
        "random",
        ["random"],
        ["random", "random"],
        ["random", "bandit"],
        ["random", 7],
        ["random", ["periodic"]],
        ["random", "periodic", "split", "class_conditional", "fixed_uncertainty", "variable_uncertainty", "odd"],
    ],
    ids=str,
)
def test_arms_that_cannot_be_are_explained(arms: object) -> None:
    with pytest.raises(ConfigError, match=r"strategy.parameters.arms = .* expected a list of 2 to 6 different"):
        build("bandit", spec({"arms": arms}), "classification")


def test_an_arm_that_does_not_exist_or_fit_is_explained() -> None:
    with pytest.raises(ConfigError, match=r"strategy.parameters.arms: .*did you mean 'random'"):
        build("bandit", spec({"arms": ["randm", "periodic"]}), "classification")
    with pytest.raises(ConfigError, match=r"strategy.parameters.arms: .*needs a model with several members"):
        build("bandit", spec({"arms": ["random", "reinforced"]}), "classification")
    with pytest.raises(ConfigError, match=r"strategy.parameters.arms: 'pool' chooses at the end of a window"):
        build("bandit", spec({"arms": ["random", "pool"]}), "classification")
    with pytest.raises(ConfigError, match=r"horizon = 9: expected a whole number from 10 to 100000"):
        build("bandit", spec({"horizon": 9}), "classification")


def test_the_ledger_stays_small_with_the_most_arms() -> None:
    arms = ["class_conditional", "random", "periodic", "variable_uncertainty", "randomised_uncertainty", "split"]
    assert len(arms) == MOST_ARMS
    plan = SamplingPlan(BudgetPlan(0.123456789), "bandit", {"arms": arms})
    partition = Partition(plan, Settled())
    partition.run(stream(4_000))
    ledger = partition.lane.ledger()
    ledger["budget"] |= {"seen": 10**12 + 1, "asked": 10**11 + 1, "refunded": 10**10 + 1, "clock": 1_795_255_200.123}
    assert len(encode_metadata(ledger, Pointers(10**12, 10**12, 10**12)).encode()) < 1_024


def spent(arms: Sequence[str], rate: float, count: int) -> float:
    partition = Partition(SamplingPlan(BudgetPlan(rate), "bandit", {"arms": list(arms)}), Settled(), delay=30)
    partition.run(stream(count))
    return partition.lane.asked / partition.lane.allowed


@pytest.mark.parametrize(
    "arms", [("class_conditional", "random"), ("variable_uncertainty", "random"), ("split", "periodic")]
)
def test_whatever_the_arms_the_allowance_is_spent(arms: Sequence[str]) -> None:
    assert spent(arms, 0.1, 4_000) >= 0.95
