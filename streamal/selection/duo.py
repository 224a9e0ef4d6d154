"""Doubt and coverage side by side: most of the allowance where the model is unsure, the rest where nobody has looked.

Uncertainty never asks again where the model is sure and wrong. So a share of the allowance goes to
`streamal.selection.coreset` and the rest to `streamal.selection.class_conditional`. Each proposes at its part of the
rate, and an instance is asked about if either wants it. Their draws count as independent, which makes the propensity
``1 - (1 - p) * (1 - q)``; what they agree on is asked once, and the steering spends the difference.

Source: the pair of farthest-first exploration and margin is that of Osugi, Kun, Scott: Balancing Exploration and
Exploitation: A New Algorithm for Active Machine Learning (2005), whose shares adapt; fixed ones are streamal's own.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Final

from streamal.messages import Features, Prediction
from streamal.selection.class_conditional import ClassConditional
from streamal.selection.coreset import Coreset
from streamal.selection.grounded import Grounded
from streamal.selection.strategy import Proposal, Standing, StrategySpec, Unmindful

COVERAGE: Final = 0.2
"""Enough for a tree to find regions it has never split, and a fifth less for its boundaries."""


class Duo(Unmindful):
    """Shares the allowance between the default strategy and coverage; the utility is the default strategy's.

    `coverage` (0.2) is coverage's share, `points` as in `streamal.selection.coreset.Coreset`. Memory: that of the
    two.
    """

    recalls = True

    def __init__(self, spec: StrategySpec) -> None:
        self._spec = spec
        self._share = spec.number("coverage", COVERAGE, least=0.0, most=1.0)
        self._doubt = ClassConditional(spec)
        self._coverage = Coreset(spec)
        self._declined = False
        self.warmup = max(self._doubt.warmup, self._coverage.warmup)

    def propose(self, features: Features, prediction: Prediction, standing: Standing) -> Proposal:
        """Let both propose, each at its part of the rate."""
        part = self._share * standing.rate
        doubt = self._doubt.propose(features, prediction, replace(standing, rate=standing.rate - part))
        coverage = self._coverage.propose(features, prediction, replace(standing, rate=part))
        return Grounded(1.0 - (1.0 - doubt.propensity) * (1.0 - coverage.propensity), doubt.utility, coverage)

    def update(self, features: Features, prediction: Prediction, proposal: Proposal, *, asked: bool) -> None:
        """Show it to both."""
        if not (asked or self._declined):
            # All so far was asked about, so a new owner may have recalled it. Coverage needs these requests; among
            # their scores, which are the highest of their time, nothing that follows would rank as it should.
            self._declined = True
            self._doubt = ClassConditional(self._spec)
        self._doubt.update(features, prediction, proposal, asked=asked)
        if isinstance(proposal, Grounded):
            coverage = proposal.grounds
        else:
            distance = self._coverage.utility(features, prediction)
            coverage = Proposal(proposal.propensity, math.inf if distance is None else distance)
        self._coverage.update(features, prediction, coverage, asked=asked)
