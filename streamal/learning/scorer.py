"""Whole batches predicted by functions generated from the model, bit for bit as the estimator itself predicts.

Between two learned examples a model is a constant function, so its weights can be bound once and a batch be scored in
a flat loop without a look-up per feature and class. Source is generated per shape (how many features, which are scaled,
how many classes) and compiled once; binding new weights to it costs microseconds. Names and numbers enter as arguments,
never as source. Being equal to the last bit, it does not matter to a replay how instances were cut into batches.

A scorer is made for one layout, the feature names of an instance in their order (the order of summation matters to the
last bit). Whatever differs (another layout, a string, a missing value) goes through the slow path it is given.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any, Final

from river.linear_model import LinearRegression, LogisticRegression
from river.multiclass import OneVsRestClassifier

from streamal.learning.estimators import CHUNK, DENSITY_FLOOR, NO_SPREAD, LeanGaussianNB
from streamal.learning.scaling import FARTHEST, Scaling
from streamal.messages import VALUE, Features, Prediction

Slow = Callable[[Features], Prediction]
Scorer = Callable[[Sequence[Features]], list[Prediction]]
Layout = tuple[str, ...]

MAX_TERMS: Final = 2_048
"""Features times classes; beyond, generated code is slow to compile and gains little."""


def make_scorer(
    estimator: object, scaling: Scaling | None, layout: Layout, labels: Layout, slow: Slow
) -> Scorer | None:
    """Return a scorer for instances of this layout, or None where there is none for this estimator or size.

    `labels` are the names of the estimator's classes 0, 1, ... in that order.
    """
    if not layout or len(layout) * max(len(labels), 1) > MAX_TERMS:
        return None
    if isinstance(estimator, LeanGaussianNB) and scaling is None:
        return bind_gaussian(estimator, layout, labels, slow)
    if isinstance(estimator, LinearRegression) and scaling is not None:
        return bind_linear([estimator], scaling, layout, (VALUE,), slow, link="identity")
    if isinstance(estimator, OneVsRestClassifier) and scaling is not None:
        members = [estimator.classifiers[code] for code in range(len(labels))]
        if all(type(member) is LogisticRegression for member in members):
            return bind_linear(members, scaling, layout, labels, slow, link="one_vs_rest")
    return None


def bind_linear(
    members: Sequence[Any], scaling: Scaling, layout: Layout, labels: Layout, slow: Slow, *, link: str
) -> Scorer:
    """Bind the weights of linear models, one for each label, to the function of their shape."""
    shift, scale, kinds = [], [], []
    for moment in map(scaling.moment, layout):
        mean, deviation = moment or (0.0, 0.0)
        shift.append(mean)
        scale.append(deviation)
        kinds.append("unknown" if moment is None else "scaled" if deviation else "constant")
    weights = [[found.get(name, 0.0) for name in layout] for found in (member.weights for member in members)]
    intercepts = [member.intercept for member in members]
    bind = compile_linear(tuple(kinds), len(labels), link)
    scorer: Scorer = bind(layout, shift, scale, weights, intercepts, labels, slow, math.exp, FARTHEST)
    return scorer


def bind_gaussian(estimator: LeanGaussianNB, layout: Layout, labels: Layout, slow: Slow) -> Scorer:
    """Bind priors and densities of every class to the function of their shape."""
    priors = [prior for _, prior in sorted(estimator.log_priors().items())]
    columns = [estimator.terms(name) for name in layout]
    terms = [[column.get(code, NO_SPREAD) for column in columns] for code in range(len(labels))]
    scorer: Scorer = compile_gaussian(len(layout), len(labels))(
        layout, priors, terms, labels, slow, DENSITY_FLOOR, math.exp, math.log
    )
    return scorer


SCALED: Final = {
    "scaled": "z{i} = far if (z := (v{i} - m{i}) / s{i}) > far else -far if z < -far else z",
    # Every kind reads its value, so that a string where a number is usual raises and goes the slow way.
    "constant": "z{i} = v{i} * 0.0",
    "unknown": "z{i} = v{i} * (1.0 if v{i}.__class__ is bool else 0.0)",
}
LOOP: Final = """
def bind({arguments}):
    {bindings}
    def score(batch):
        found = []
        add = found.append
        for x in batch:
            if tuple(x) != layout:
                add(slow(x))
                continue
            try:
                {values} = x.values()
                {evaluate}
            except TypeError:
                add(slow(x))
                continue
            {conclude}
        return found
    return score
"""


@lru_cache(maxsize=128)
def compile_linear(kinds: tuple[str, ...], classes: int, link: str) -> Callable[..., Any]:
    """Return `bind` for a shape: given weights it returns the scorer."""
    features, outputs = range(len(kinds)), range(classes)
    scores = [f"a{j} = " + " + ".join([*(f"z{i} * w{j}_{i}" for i in features), f"b{j}"]) for j in outputs]
    if link == "identity":
        conclude = ["add({c0: a0})"]
    else:
        conclude = [f"p{j} = 0 if a{j} < -30 else 1 if a{j} > 30 else 1 / (1 + exp(-a{j}))" for j in outputs]
        conclude += normalise(classes)
    return generate(
        "layout, shift, scale, weights, intercepts, labels, slow, exp, far",
        [
            unpack(f"m{i}" for i in features) + "= shift",
            unpack(f"s{i}" for i in features) + "= scale",
            *(unpack(f"w{j}_{i}" for i in features) + f"= weights[{j}]" for j in outputs),
            unpack(f"b{j}" for j in outputs) + "= intercepts",
            unpack(f"c{j}" for j in outputs) + "= labels",
        ],
        len(kinds),
        [SCALED[kind].format(i=i) for i, kind in enumerate(kinds)] + scores,
        conclude,
    )


@lru_cache(maxsize=128)
def compile_gaussian(features: int, classes: int) -> Callable[..., Any]:
    """Return `bind` for a shape: given priors and densities it returns the scorer."""
    logs = []
    for j in range(classes):
        factors = [f"(floor + n{j}_{i} * exp((d := v{i} - m{j}_{i}) * d * h{j}_{i}))" for i in range(features)]
        chunks = [" * ".join(factors[start : start + CHUNK]) for start in range(0, features, CHUNK)]
        logs.append(f"l{j} = " + " + ".join([f"r{j}", *(f"log({chunk})" for chunk in chunks)]))
    outputs = range(classes)
    conclude = [
        "top = " + (f"max({', '.join(f'l{j}' for j in outputs)})" if classes > 1 else "l0"),
        *(f"p{j} = exp(l{j} - top)" for j in outputs),
        *normalise(classes),
    ]
    bindings = [
        unpack(f"r{j}" for j in outputs) + "= priors",
        *(
            unpack(f"({', '.join(f'{part}{j}_{i}' for part in 'mhn')})" for i in range(features)) + f"= terms[{j}]"
            for j in outputs
        ),
        unpack(f"c{j}" for j in outputs) + "= labels",
    ]
    return generate("layout, priors, terms, labels, slow, floor, exp, log", bindings, features, logs, conclude)


def normalise(classes: int) -> list[str]:
    """Return the lines that divide p0, p1, ... by their sum, or share equally when it is 0."""
    outputs = range(classes)
    return [
        "t = " + " + ".join(f"p{j}" for j in outputs),
        "if t:",
        "    add({" + ", ".join(f"c{j}: p{j} / t" for j in outputs) + "})",
        "else:",
        "    add(dict.fromkeys(labels, 1 / len(labels)))",
    ]


def unpack(names: Any) -> str:
    """Return the target of an assignment to all names.

    >>> unpack(["a", "b"])
    'a, b, '
    """
    return "".join(f"{name}, " for name in names)


def generate(
    arguments: str, bindings: list[str], features: int, evaluate: list[str], conclude: list[str]
) -> Callable[..., Any]:
    """Compile `LOOP` with these lines in its places, and return its `bind`."""
    source = LOOP.format(
        arguments=arguments,
        bindings="\n    ".join(bindings),
        values=unpack(f"v{i}" for i in range(features)).rstrip(),
        evaluate="\n                ".join(evaluate),
        conclude="\n            ".join(conclude),
    )
    namespace: dict[str, Any] = {}
    exec(compile(source, "<scorer>", "exec"), namespace)
    bind: Callable[..., Any] = namespace["bind"]
    return bind
