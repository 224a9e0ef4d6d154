"""One partition's decisions: utility, strategy, budget and coin in a fixed order, and the requests that came of them.

For each instance: count it and let allowance accrue; let exploration say whether this is the drawn position of its
block; let the strategy propose a propensity from the model that has learnt the pending instances; toss the coin.
Exploration goes first, then the cold start's loan, then the strategy's wish, unless one like it waits; the budget has
the last word on each. Nothing here depends on how a stretch of instances was cut into batches, so a replay need not
know the cuts.

A strategy that pools decides otherwise: what exploration and the loan do not ask about waits until the end of a window
(see `streamal.pooling`), and then the best of it is asked about, as many as there are tokens.

Requests that a torn transaction left visible, though its ledger was never stored, are adopted: over the stretch they
lie in these instances are asked about and no others, so that nobody is asked twice and the bound still holds.

Of the instances that nobody is asked about, a share drawn by chance may go to the log as well, without a label or with
the one that the served model is sure of. It changes no decision, and costs the budget nothing.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Final

from streamal.events import (
    Event,
    InstancesDecided,
    LabelRequested,
    RequestResolved,
    UnlabelledTaken,
    VoteTaken,
)
from streamal.learning.fold import Fold
from streamal.learning.lookahead import Lookahead
from streamal.learning.model import Model
from streamal.learning.moments import MomentAccumulator
from streamal.messages import (
    MAX_CLASSES,
    OPINIONS,
    Answer,
    AnswerKind,
    Features,
    Instance,
    Label,
    LabelRequest,
    Moments,
    Outcome,
    OutcomeKind,
    Prediction,
    Reason,
    Task,
    Unlabelled,
    Vote,
    best_label,
)
from streamal.pending import PendingRequests
from streamal.pooling import Window
from streamal.selection.budget import Budget, BudgetPlan, Limit
from streamal.selection.coin import Coin
from streamal.selection.exploration import Exploration
from streamal.selection.registry import build
from streamal.selection.strategy import Candidate, Choice, Proposal, QueryStrategy, Standing, StrategySpec
from streamal.voting import revises, verdict, why_repeated

CLOCK_AHEAD: Final = 60.0
"""Seconds a record's timestamp may be ahead of this machine's clock; more would end a period before its time."""
MOMENTS_EVERY: Final = 1_000
MOMENTS_SPACING: Final = 1.0
"""Seconds between two records of moments of a partition, at least."""
LEAST_TAUGHT: Final = 100
"""Examples that a model must have learned before its predictions become labels: one that knows a handful is as sure as
it is wrong, and would never hear otherwise. Kappa of naive Bayes with a bar of 0.99 and a share of 0.2 (weather, mean
of 3 seeds): .20 without this, .35 with it, .35 without self-training."""
OUTLOOK: Final = 0.5
"""How far ahead to predict with the copy, in expected requests: each request changes the copy."""
ENDINGS: Final[Mapping[AnswerKind, OutcomeKind]] = {
    "label": "learned",
    "unsure": "abstained",
    "invalid": "invalid",
    "cancel": "cancelled",
}
REPLAY: Final = "replay"
"""The annotator's name where an instance brought its own label."""

OFF: Final[Mapping[str, Any]] = {"answers": 1, "unlabelled": 0.0, "self_training": None, "duplicate_digits": 0}
"""Fields of a plan that the audit leaves out where they change nothing: so it is as it was before there were any."""

Asked = tuple[float, float, Reason, bool | None]
"""Utility, propensity as executed, reason, and whether the strategy would have asked anyhow (None: nobody can say)."""


@dataclass(frozen=True, slots=True)
class SamplingPlan:
    """How one partition is sampled.

    `serve` asks for the served model's prediction of every instance; otherwise only requests carry one. `answers` is
    how many annotators a request waits for: each costs what an instance's label does. `unlabelled` is the share of the
    instances not asked about that the model is to learn from without an answer, `self_training` the probability from
    which on it takes its own prediction for their label, once it has learned `LEAST_TAUGHT` examples; None for never.
    The strategy does not get an instance that agrees with one that waits to `duplicate_digits` digits of each fraction;
    0 lets it have all of them.
    """

    budget: BudgetPlan
    strategy: str = "class_conditional"
    parameters: Mapping[str, Any] = field(default_factory=dict)
    window: int = 512
    explore: float = 0.05
    seed: int = 0
    task: Task = "classification"
    serve: bool = False
    answers: int = 1
    unlabelled: float = 0.0
    self_training: float | None = None
    duplicate_digits: int = 0

    def as_json(self) -> dict[str, Any]:
        """Return the plan as a JSON object, for the audit."""
        found = {name: value for name, value in asdict(self).items() if name not in OFF or value != OFF[name]}
        if not self.budget.spare:
            del found["budget"]["spare"]
        return found

    @classmethod
    def from_json(cls, found: Mapping[str, Any]) -> SamplingPlan:
        """Read back `as_json`.

        >>> SamplingPlan.from_json(SamplingPlan(BudgetPlan(rate=0.05)).as_json()) == SamplingPlan(BudgetPlan(rate=0.05))
        True
        """
        budget = dict(found["budget"])
        limits = tuple(Limit(**limit) for limit in budget.pop("limits"))
        return cls(**{**found, "budget": BudgetPlan(**budget, limits=limits)})

    def build_strategy(self, fold: Fold) -> QueryStrategy:
        """Build the strategy of one partition."""
        spec = StrategySpec(self.budget.rate, self.window, self.parameters, lambda: fold.served)
        return build(self.strategy, spec, self.task)


@dataclass(frozen=True, slots=True)
class Handover:
    """What a new owner of a partition needs: all that its predecessor left in the log.

    `ledger` is None for a partition without a history. `requests` are the label requests since the oldest pending
    one, in order; `outcomes` those of this partition since then. `recent` are the last instances before the position,
    to warm soft state with and to fill the open window. `adopted` are requests that a torn transaction left, about
    instances of that window or still to come; `votes` are those on requests that still wait, `kept` the offsets of the
    instances that it left without a label.
    """

    ledger: dict[str, Any] | None = None
    requests: Sequence[LabelRequest] = ()
    outcomes: Sequence[Outcome] = ()
    recent: Sequence[Instance] = ()
    adopted: Sequence[LabelRequest] = ()
    votes: Sequence[Vote] = ()
    kept: Collection[int] = ()


class Lane:
    """Everything of one partition that changes as it is decided on."""

    def __init__(self, plan: SamplingPlan, partition: int, fold: Fold) -> None:
        self._partition = partition
        self._fold = fold
        self._strategy = plan.build_strategy(fold)
        self._coin = Coin(plan.seed, partition)
        self._window = None if self._strategy.pools is None else Window(self._strategy.pools)
        self._set_plan(plan)
        self._lookahead = Lookahead()
        self._moments = MomentAccumulator()
        self._moments_at = -math.inf
        self.pending = PendingRequests(plan.duplicate_digits)
        self._latest = math.inf
        self._adopted: dict[int, LabelRequest] = {}
        self._adopted_end = 0
        self._kept: Collection[int] = ()
        self.warmed_from: int | None = None
        """The oldest of the past instances that the soft state was built from, or the open window filled with."""

    def _set_plan(self, plan: SamplingPlan) -> None:
        self._plan = plan
        self._budget = Budget(plan.budget)
        self._exploration = Exploration(
            plan.budget.rate, plan.explore, self._coin, begin=self._budget.first_exploration
        )
        self._standing = Standing(rate=plan.budget.rate, cap=self._budget.cap)
        if self._window is not None:
            self._window.fit(plan.budget)

    def replan(self, plan: SamplingPlan) -> bool:
        """Go on with another budget where the ledger stands; returns whether it is another one.

        What was earned stays earned: only the instances to come count at the new rate.
        """
        if plan.budget == self._plan.budget:
            return False
        ledger = self.ledger()
        self._set_plan(replace(self._plan, budget=plan.budget))
        self._restore(ledger)
        return True

    def _restore(self, ledger: Mapping[str, Any]) -> None:
        self._budget.restore(ledger["budget"])
        self._exploration.restore(ledger["exploration"])
        if ledger["budget"]["rate"] != self._plan.budget.rate:
            self._exploration.begin_anew(self._budget.settle(self._exploration.owed))

    @property
    def plan(self) -> SamplingPlan:
        """How this partition is sampled now."""
        return self._plan

    @property
    def seen(self) -> int:
        """Instances decided on so far."""
        return self._budget.seen

    @property
    def asked(self) -> int:
        """Label requests made so far."""
        return self._budget.asked

    @property
    def allowed(self) -> float:
        """What the rate allows by now, in labels."""
        return self._budget.allowed

    def ledger(self) -> dict[str, Any]:
        """Return the exact state as a small JSON object."""
        found: dict[str, Any] = {
            "budget": self._budget.state(),
            "exploration": self._exploration.state(),
            "strategy": self._strategy.state(),
        }
        if self._window is not None:
            found["window"] = self._window.state()
        return found

    def take_over(self, handover: Handover) -> None:
        """Go on where the former owner of the partition stopped; called once, before anything else."""
        ledger, recent = handover.ledger, handover.recent
        if ledger is not None:
            self._restore(ledger)
        for request in handover.requests:
            self.pending.add(request)
        for outcome in handover.outcomes:
            self.pending.remove(outcome)
        for vote in handover.votes:
            self.pending.count(vote)
        self._adopted = {request.offset: request for request in handover.adopted}
        self._kept = handover.kept
        self._adopted_end = max([*self._adopted, *self._kept], default=-1) + 1
        if self._strategy.recalls:
            self._recall(handover.requests, handover.outcomes)
        if self._window is not None and ledger is not None:
            self._window.restore(ledger.get("window", {}), recent)
        if recent and (self._strategy.warmup or self._window is not None):
            self.warmed_from = recent[0].offset
        if recent and self._strategy.warmup:
            self._warm(recent)
        if ledger is not None:
            self._strategy.restore(ledger["strategy"])

    def _recall(self, requests: Sequence[LabelRequest], outcomes: Sequence[Outcome]) -> None:
        """Show the strategy what is remembered of the requests, each once, and of what became of them."""
        remembered: dict[int, Outcome | LabelRequest] = {outcome.offset: outcome for outcome in outcomes}
        remembered.update((request.offset, request) for request in requests)
        for _, made in sorted(remembered.items()):
            utility = made.utility if made.strategy == self._plan.strategy else math.inf
            proposal = Proposal(made.propensity, utility)
            self._strategy.update(made.features, made.prediction, proposal, asked=True)
        for outcome in outcomes:
            self._strategy.resolved(outcome)

    def _warm(self, recent: Sequence[Instance]) -> None:
        predictions = self._fold.model.predict([instance.features for instance in recent])
        for instance, prediction in zip(recent, predictions, strict=True):
            proposal = self._strategy.propose(instance.features, prediction, self._standing)
            self._strategy.update(instance.features, prediction, proposal, asked=False)

    def decide(self, instances: Sequence[Instance], now: float) -> list[Event]:
        """Decide on instances in offset order; the last event counts them."""
        events: list[Event] = []
        self._latest = now + CLOCK_AHEAD
        declined: Counter[str] = Counter()
        asked_before = self._budget.asked
        utilities: list[float] = []
        batch = [instance.features for instance in instances]
        if self._fold.model.scales:
            self._moments.add(batch)
        served = self._fold.model.predict(batch) if self._plan.serve else None
        done = 0
        while done < len(instances):
            outlook = self._outlook(batch, served, done)
            for prediction in outlook:
                instance = instances[done]
                asked = self._consider(instance, prediction, declined, utilities)
                said = served[done] if served else None
                done += 1
                made: list[Event] = []
                if asked is not None:
                    made += self._request(instance, said, asked, now)
                elif self._window is None or not self._window.waits:
                    events += self._keep(instance, said)
                if self._window is not None and self._window.full:
                    made += self._end_window(self._window, instance.offset, declined, now)
                events += made
                if made and self._fold.model.lookahead and len(self.pending):
                    break  # the copy has learnt it, or is due
        events.append(
            InstancesDecided(
                partition=self._partition,
                count=len(instances),
                asked=self._budget.asked - asked_before,
                declined=declined,
                offsets=[instance.offset for instance in instances],
                predictions=served or (),
                utilities=utilities,
            )
        )
        return events

    def _outlook(
        self, batch: Sequence[Mapping[str, Any]], served: list[Prediction] | None, done: int
    ) -> list[Prediction]:
        """Predict the next instances with the model that utilities come from."""
        model = self._foreseeing()
        if model is self._fold.served and served is not None:
            return served[done:]
        if not model.lookahead:
            return model.predict(batch[done:])
        ahead = max(1, int(OUTLOOK / self._plan.budget.rate))
        return model.predict(batch[done : done + ahead])

    def _foreseeing(self) -> Model:
        """Return the model that utilities come from."""
        pending = ((request.features, request.prediction) for request in self.pending)
        return self._lookahead.model(self._fold.served, pending, len(self.pending))

    def _consider(
        self, instance: Instance, prediction: Prediction, declined: Counter[str], utilities: list[float]
    ) -> Asked | None:
        """Say how the instance is asked about; None if nobody is asked, yet or at all."""
        budget, exploration, standing, window = self._budget, self._exploration, self._standing, self._window
        pending = len(self.pending)
        seen = budget.seen + 1
        unanswered = pending / (budget.asked + 1) if budget.tokens >= 0.0 else 0.0
        drawn = exploration.step(seen, unanswered)
        budget.accrue(exploration.floor, min(instance.timestamp, self._latest))
        standing.seen = seen
        standing.asked = budget.asked
        standing.pending = pending
        standing.epsilon = exploration.epsilon
        standing.level = budget.tokens + exploration.owed
        standing.full = budget.full
        standing.gathered = 0 if window is None else len(window)
        proposal = self._strategy.propose(instance.features, prediction, standing)
        propensity, utility = proposal
        if not math.isfinite(utility):
            utility = math.inf
        utilities.append(utility)
        alike = (wanted := self._coin.toss(instance.offset) < propensity) and self._repeats(instance.features)
        wanted = wanted and not alike
        reason: Reason | None = None
        made = self._adopted.get(instance.offset)
        if made is not None and window is not None and made.budget["seen"] > seen:
            made = None  # the window's end chose it, and will again
        if self._adopted if window is not None else instance.offset < self._adopted_end:
            if made is not None:
                reason, propensity = made.reason, made.propensity
        elif drawn:
            reason, propensity = "exploration", exploration.floor
        elif budget.may_borrow(exploration.to_come):
            reason, propensity = "cold_start", 1.0
        elif wanted:
            reason = "uncertainty"
        if window is not None:
            window.add(instance, decided=reason is not None)
        elif reason is None:
            declined["near_duplicate" if alike else "low_utility"] += 1
        if reason is None:
            asked = False
        elif made is not None:
            asked = True
        else:
            refusal = budget.refusal(self._price(instance), pending, free=reason != "uncertainty", explored=drawn)
            asked = refusal is None
            if refusal is not None:
                declined[refusal] += 1
        self._strategy.update(instance.features, prediction, proposal, asked=asked)
        if reason is None or not asked:
            return None
        price = self._price(instance)
        lacks = budget.refusal(price, pending, free=False)
        told = window is None and lacks in (None, "rate")
        would_select = wanted and lacks is None if told else None
        budget.spend(price, explored=drawn)
        exploration.done |= drawn
        return utility, propensity, reason, would_select

    def _repeats(self, features: Features) -> bool:
        """Say whether it could be asked about, but one like it waits for its answer, and no allowance is lost yet."""
        return self._budget.tokens >= 1.0 and not self._budget.full and self.pending.like(features)

    def _price(self, instance: Instance) -> float:
        """Return what all answers about an instance cost."""
        return instance.cost * self._plan.answers

    def _end_window(self, window: Window, end: int, declined: Counter[str], now: float) -> list[Event]:
        """Ask about the best of the window, as many as the tokens allow, and decline the rest."""
        self._standing.gathered = len(window)
        instances = window.end()
        if self._adopted:
            return self._adopt(instances, end, declined, now)
        events: list[Event] = []
        choices: Sequence[Choice] = ()
        count = min(len(instances), int(self._budget.tokens))
        pool, repeats = self.pending.split(instances)
        pool += repeats[: max(0, count - len(pool))]
        if repeated := len(instances) - len(pool):
            declined["near_duplicate"] += repeated
        if count > 0:
            candidates, known = self._candidates(pool), self.pending.latest()
            choices = window.chooser.choose(candidates, known, count, self._standing)
        declined["low_utility"] += len(pool) - len(choices)
        chosen: set[int] = set()
        for place, utility, propensity, synthetic in choices:
            instance = pool[place]
            if synthetic is not None and self._repeats(synthetic):
                declined["near_duplicate"] += 1
                continue
            refusal = self._budget.refusal(self._price(instance), len(self.pending), free=False)
            if refusal is not None:
                declined[refusal] += 1
                continue
            self._budget.spend(self._price(instance), explored=False)
            asked: Asked = utility, propensity, "uncertainty", True
            events += self._request(instance, None, asked, now, synthetic)
            chosen.add(instance.offset)
        for instance in instances:
            if instance.offset not in chosen:
                events += self._keep(instance, None)
        return events

    def _adopt(self, instances: Sequence[Instance], end: int, declined: Counter[str], now: float) -> list[Event]:
        """Take what a torn transaction has asked about up to the window's end for the window's choice."""
        events: list[Event] = []
        held = {instance.offset: instance for instance in instances}
        for made in [made for made in self._adopted.values() if made.offset <= end]:
            forgotten = Instance(made.offset, 0.0, made.instance_id, made.features, made.display)
            instance = held.pop(made.offset, forgotten)
            self._budget.spend(self._price(instance), explored=False)
            events += self._request(instance, None, (made.utility, made.propensity, made.reason, None), now)
        declined["low_utility"] += len(held)
        for instance in held.values():
            events += self._keep(instance, None)
        return events

    def _keep(self, instance: Instance, served: Prediction | None) -> list[UnlabelledTaken]:
        """Put an instance that nobody is asked about on the log, if chance picks it and the model learns from it."""
        plan, model = self._plan, self._fold.model
        if not plan.unlabelled or self._coin.pick(instance.offset) >= plan.unlabelled or instance.offset in self._kept:
            return []
        label = probability = None
        if plan.self_training is not None and model.examples >= LEAST_TAUGHT:
            # not the copy that has learnt what is pending: it has been told its own guesses already
            label, probability = sure_of(served or model.predict([instance.features])[0], plan.self_training)
        if label is None and not model.observes:
            return []
        record = Unlabelled(
            partition=self._partition,
            offset=instance.offset,
            instance_id=instance.id,
            features=instance.features,
            model_version=self._fold.version,
            label=label,
            probability=probability,
        )
        return [UnlabelledTaken(record)]

    def _candidates(self, instances: Sequence[Instance]) -> list[Candidate]:
        """Let the model see them as it stands now."""
        predictions = self._foreseeing().predict([instance.features for instance in instances])
        return [
            Candidate(instance.features, prediction, self._coin.toss(instance.offset))
            for instance, prediction in zip(instances, predictions, strict=True)
        ]

    def _request(
        self,
        instance: Instance,
        served: Prediction | None,
        asked: Asked,
        now: float,
        synthetic: Features | None = None,
    ) -> list[Event]:
        """Make the label request; where the instance brought a label that is taken, the outcome follows at once."""
        utility, propensity, reason, would_select = asked
        if (made := self._adopted.pop(instance.offset, None)) is not None:
            if self.pending.gone(made.offset) is not None:
                return [LabelRequested(made, adopted=True)]  # the torn transaction has left its outcome as well
            return self._await(made, instance, now, adopted=True)
        features = instance.features if synthetic is None else synthetic
        if served is None:
            served = self._fold.model.predict([features])[0]
        plan = self._plan.budget
        request = LabelRequest(
            partition=self._partition,
            offset=instance.offset,
            instance_id=instance.id,
            features=features,
            display=instance.display if synthetic is None else None,
            prediction=served,
            utility=utility,
            propensity=propensity,
            reason=reason,
            would_select=would_select,
            strategy=self._plan.strategy,
            model_version=self._fold.version,
            requested_at=round(now, 3),
            expires_at=None if plan.expiry is None else round(now + plan.expiry, 3),
            budget={"seen": self.seen, "asked": self.asked, "allowed": round(self.allowed, 9)},
            synthetic=synthetic is not None,
            answers=self._plan.answers,
        )
        return self._await(request, instance, now)

    def _await(self, request: LabelRequest, instance: Instance, now: float, *, adopted: bool = False) -> list[Event]:
        self.pending.add(request)
        self._lookahead.asked(request.features, request.prediction)
        events: list[Event] = [LabelRequested(request, adopted)]
        if instance.label is not None and not request.synthetic and self.takes(instance.label):
            events.append(self._end(request, "learned", instance.label, REPLAY, now))
        return events

    def takes(self, label: Label) -> bool:
        """Say whether the model has learned this class, or may learn one more."""
        classes = self._fold.model.classes
        return not isinstance(label, str) or label in classes or len(classes) < MAX_CLASSES

    def why_no_vote(self, offset: int, answer: Answer) -> tuple[str, str] | None:
        """Return reason and message for an answer that a waiting request cannot count, None where it can."""
        request = self.pending.get(offset)
        if request is None or request.answers == 1 or answer.kind not in OPINIONS:
            return None
        if not answer.annotator:
            message = (
                f"the request waits for answers by {request.answers} different annotators, and this one does not say "
                "whose it is: send `annotator` with each answer"
            )
            return "missing_annotator", message
        votes = self.pending.votes(offset)
        return None if revises(votes, answer) else why_repeated(votes, answer)

    def resolve(self, offset: int, answer: Answer, now: float) -> RequestResolved | VoteTaken:
        """End a waiting request by an answer, or count it if it is one of several and not the last."""
        request = self.pending.get(offset)
        if request is None:
            message = f"request {answer.request_id} does not wait for an answer"
            raise LookupError(message)
        if request.answers == 1 or answer.kind == "cancel":
            return self._end(request, ENDINGS[answer.kind], answer.label, answer.annotator, now, answer.revision)
        vote = self._vote(offset, answer, now)
        self.pending.count(vote)
        if len(self.pending.votes(offset)) < request.answers:
            return VoteTaken(vote)
        return self._conclude(request, now)

    def _vote(self, offset: int, answer: Answer, now: float) -> Vote:
        name = answer.annotator or ""
        return Vote(self._partition, offset, name, answer.kind, answer.label, answer.revision, round(now, 3))

    def _conclude(self, request: LabelRequest, now: float) -> RequestResolved:
        """End a request by the votes there are."""
        kind, label = verdict(self.pending.votes(request.offset))
        return self._end(request, ENDINGS[kind], label, None, now)

    def corrects(self, offset: int, answer: Answer) -> bool:
        """Say whether an answer is a later revision of one that ended the request not long ago."""
        before = self.pending.gone(offset)
        if before is None or before.kind in ("expired", "cancelled") or answer.kind not in OPINIONS:
            return False
        if before.votes:
            return revises(before.votes, answer)
        return answer.revision > before.revision and answer.label != before.label

    def correct(self, offset: int, answer: Answer, now: float) -> RequestResolved:
        """Correct what an earlier revision said; called only if the answer `corrects`.

        One vote of several is counted anew with the others, and often the label stands.
        """
        before = self.pending.gone(offset)
        if before is None:
            message = f"request {answer.request_id} has not been answered, so there is nothing to correct"
            raise LookupError(message)
        corrected = replace(
            before,
            kind="corrected",
            label=answer.label,
            annotator=answer.annotator,
            revision=answer.revision,
            resolved_at=round(now, 3),
        )
        if before.votes:
            latest = self._vote(offset, answer, now)
            votes = tuple(latest if vote.annotator == latest.annotator else vote for vote in before.votes)
            _, label = verdict(votes)
            kind: OutcomeKind = "confirmed" if label == before.label else "corrected"
            corrected = replace(
                corrected, kind=kind, label=label, annotator=None, revision=before.revision + 1, votes=votes
            )
        self.pending.remove(corrected)
        self._strategy.resolved(corrected)
        return RequestResolved(corrected, max(0.0, now - before.requested_at))

    def why_unmatched(self, partition: int, offset: int, answer: Answer) -> tuple[str, str]:
        """Return reason and message for an answer to a request that does not wait."""
        gone = self.pending.gone(offset) if partition == self._partition else None
        if gone is None:
            return "unknown", "no such request waits: it was never made, or it ended too long ago to be remembered"
        if gone.kind == "expired":
            return "expired", "the request's time was up before this answer came"
        if gone.kind == "cancelled" and answer.kind != "cancel":
            return "cancelled", "the request was taken back before this answer came"
        if gone.votes:
            ended = "ended", "the request ended before this answer came: it had all of them, or its time was up"
            return (why_repeated(gone.votes, answer) if answer.kind in OPINIONS else None) or ended
        if answer.kind == "label" and gone.label != answer.label:
            message = "the request was answered differently before; the first answer counts, unless a later `revision`"
            return "conflict", message
        return "duplicate", "the request was answered before"

    def expire(self, now: float) -> list[RequestResolved]:
        """End the requests whose time is up, by what votes there are."""
        events = []
        for request in self.pending.expired(now):
            if self.pending.votes(request.offset):
                events.append(self._conclude(request, now))
                continue
            self._budget.refund()
            events.append(self._end(request, "expired", None, None, now))
        return events

    def _end(
        self,
        request: LabelRequest,
        kind: OutcomeKind,
        label: Label | None,
        annotator: str | None,
        now: float,
        revision: int = 0,
    ) -> RequestResolved:
        outcome = Outcome(
            kind=kind,
            partition=request.partition,
            offset=request.offset,
            instance_id=request.instance_id,
            features=request.features,
            label=label,
            weight=1.0,
            prediction=request.prediction,
            utility=request.utility,
            propensity=request.propensity,
            reason=request.reason,
            would_select=request.would_select,
            strategy=request.strategy,
            model_version=request.model_version,
            requested_at=request.requested_at,
            resolved_at=round(now, 3),
            annotator=annotator,
            revision=revision,
            synthetic=request.synthetic,
            votes=self.pending.votes(request.offset),
        )
        self.pending.remove(outcome)
        self._strategy.resolved(outcome)
        if label is None:
            # no example follows; still the copy has learnt a guess about what waits no longer
            self._lookahead.changed(1)
        return RequestResolved(outcome, max(0.0, now - request.requested_at))

    def moments_due(self, now: float) -> Moments | None:
        """Return the moments of the instances since the last ones: at each doubling, later at most once a second."""
        count = self._moments.count
        doubled = count >= self.seen / 2
        due = count >= MOMENTS_EVERY and now - self._moments_at >= MOMENTS_SPACING
        if not count or not (doubled or due):
            return None
        self._moments_at = now
        return Moments(self._partition, count, self._moments.take())

    def model_changed(self, records: int, *, replaced: bool = False) -> None:
        """Take note that so many outcomes were folded; where another model is served since, the copy is of no use."""
        if replaced:
            self._lookahead = Lookahead()
        self._lookahead.changed(records)


def sure_of(prediction: Prediction, bar: float) -> tuple[str, float] | tuple[None, None]:
    """Return the most probable class and its probability, if that reaches the bar; of one class anybody is sure.

    >>> sure_of({"ok": 0.9, "fraud": 0.1}, 0.9), sure_of({"ok": 0.8, "fraud": 0.2}, 0.9), sure_of({"ok": 1.0}, 0.9)
    (('ok', 0.9), (None, None), (None, None))
    """
    label = best_label(prediction) if len(prediction) > 1 else None
    if label is None or not prediction[label] >= bar:
        return None, None
    return label, prediction[label]
