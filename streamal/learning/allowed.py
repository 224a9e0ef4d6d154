"""Which classes and functions the snapshot of a model may name: a finite list for each preset, none of them by rule.

A pickle can name anything that can be imported, and what it names can be called. So each preset has the exact list of
what its snapshots are made of, found by training it on all kinds of streams (tests/learning/test_allowed.py does so
again, and fails when one is missing or too many).

A factory's model has no such list, so one is made when it is built: what the pickle of the fresh model names, and the
classes that can be met from there, since a tree makes its nodes later. Only River and the factory's own package are
looked through, and never a part of River that reads, downloads or runs things. Functions come from the fresh model
only.
"""

from __future__ import annotations

import io
import pickle
from collections.abc import Iterator, Mapping, Sequence
from importlib import import_module
from types import ModuleType
from typing import Any, Final

from streamal.learning.model import Model
from streamal.learning.online import PROTOCOL

Allowed = frozenset[str]
"""Globals as `module:name`."""


def names(text: str) -> Allowed:
    """Return globals from lines that name a module and what of it is used.

    >>> sorted(names("collections Counter deque"))
    ['collections:Counter', 'collections:deque']
    """
    lines = [line.split() for line in text.strip().splitlines()]
    return frozenset(f"{module}:{name}" for module, *found in lines for name in found)


NUMBERS: Final = names("""
    streamal.learning.encoding Indicators
    streamal.learning.online OnlineModel
""")
SCALED: Final = NUMBERS | names("""
    builtins float
    collections Counter defaultdict
    river.preprocessing.scale StandardScaler
    streamal.learning.scaling Scaling
""")
GRADIENT: Final = SCALED | names("""
    river._river_rust.vectordict VectorDict
    river.optim.initializers Zeros
    river.optim.schedulers Constant
    river.optim.sgd SGD
""")
LOGISTIC: Final = GRADIENT | names("""
    river.linear_model.log_reg LogisticRegression
    river.multiclass.ovr OneVsRestClassifier
    river.optim.losses Log
""")
LINEAR: Final = GRADIENT | names("""
    river.linear_model.lin_reg LinearRegression
    river.optim.losses Squared
""")
FLOORED: Final = NUMBERS | names("streamal.learning.estimators FlooredSplitter LeanGaussian")
CHANGE: Final = names("""
    random Random
    river._river_rust.drift AdaptiveWindowing
    river.drift.adwin ADWIN
""")
ALLOWED: Final[Mapping[str, Allowed]] = {
    "logistic_regression": LOGISTIC,
    "softmax": SCALED
    | names("""
        river.optim.losses CrossEntropy
        river.optim.schedulers Constant
        river.optim.sgd SGD
        streamal.learning.estimators PortableSoftmax
    """),
    "gaussian_nb": NUMBERS
    | names("""
        collections Counter defaultdict
        functools partial
        streamal.learning.estimators LeanGaussian LeanGaussianNB
    """),
    "hoeffding_tree": FLOORED
    | names("""
        river.tree.hoeffding_tree_classifier HoeffdingTreeClassifier
        river.tree.nodes.branch NumericBinaryBranch
        river.tree.nodes.htc_nodes LeafNaiveBayes
    """),
    "hoeffding_adaptive_tree": FLOORED
    | CHANGE
    | names("""
        river.stats.mean Mean
        river.tree.hoeffding_adaptive_tree_classifier HoeffdingAdaptiveTreeClassifier
        river.tree.nodes.hatc_nodes AdaLeafClassifier AdaNumBinaryBranchClass
    """),
    "adaptive_forest": FLOORED
    | CHANGE
    | names("""
        builtins float int
        collections defaultdict
        functools partial
        river.forest.adaptive_random_forest ARFClassifier BaseTreeClassifier
        river.metrics.accuracy Accuracy
        river.metrics.confusion ConfusionMatrix
        river.tree.nodes.arf_htc_nodes RandomLeafNaiveBayes
        river.tree.nodes.branch NumericBinaryBranch
    """),
    "knn": SCALED
    | names("""
        collections deque
        river._river_rust.vectordict euclidean_distance_tuple
        river.neighbors.knn_classifier KNNClassifier
        river.neighbors.lazy LazySearch
    """),
    "text_logistic": LOGISTIC | names("streamal.learning.encoding Words"),
    "linear_regression": LINEAR,
    "hoeffding_tree_regressor": LINEAR
    | names("""
        river.stats.mean Mean
        river.stats.var Var
        river.tree.hoeffding_tree_regressor HoeffdingTreeRegressor
        river.tree.nodes.branch NumericBinaryBranch
        river.tree.nodes.htr_nodes LeafAdaptive
        river.tree.splitter.ebst_splitter EBSTNode EBSTNode._update_estimator_univariate
        river.tree.splitter.tebst_splitter TEBSTSplitter
    """),
}
WATCHED: Final = names("""
    river._river_rust.stats RsEWMean
    river.drift.binary.hddm_w HDDMW SampleInfo
    river.stats.ewmean EWMean
    streamal.learning.drift WatchedModel
""")
"""What stands around any of them while its errors are watched."""
CONTAINERS: Final = names("""
    builtins complex dict float frozenset int list set
    collections Counter OrderedDict defaultdict deque
    functools partial
    random Random
""")
"""What a factory's model may hold of Python's own: containers, numbers, and a call that only an allowed thing makes.

Not `getattr`, by which bound methods are kept: it would lead to everything. Estimators that hold one of their own
methods (River's passive-aggressive ones, leveraging bagging) have no snapshots.
"""
OWN: Final = names("streamal.learning.online FactoryModel")
HELD: Final = names("""
    river.naive_bayes.gaussian GaussianNB._make_gaussian
    river.tree.splitter.ebst_splitter EBSTNode._update_estimator_multivariate EBSTNode._update_estimator_univariate
""")
"""Functions of River that parts of its estimators hold which a fresh one has not made yet."""
WITH_FILES: Final = frozenset({"checks", "datasets", "evaluate", "stream"})
"""Parts of River, at any depth, that read, download or run things, and are no part of any model."""


def allowed_in(model: Model, package: str) -> Allowed:
    """Return what the snapshots of a factory's fresh model may name; `package` is the factory's own.

    A model that cannot be pickled gets an empty list: it will have no snapshots.
    """
    packages = ("river", package)
    try:
        recorder = Recorder(pickle.dumps(model, PROTOCOL))
        recorder.load()
    except (pickle.PicklingError, AttributeError, TypeError, RecursionError):
        return frozenset()
    first = {name for name in recorder.found if harmless(name.partition(":")[0], packages)}
    starts = [import_module(name.partition(":")[0]) for name in first]
    return frozenset(first | OWN | CONTAINERS | HELD | set(met_from(starts, packages)))


class Recorder(pickle.Unpickler):
    """Loads a pickle that this process has just made, and takes note of what it names."""

    def __init__(self, payload: bytes) -> None:
        super().__init__(io.BytesIO(payload))
        self.found: set[str] = set()

    def find_class(self, module_name: str, global_name: str) -> Any:
        """Return anything, and take note of it."""
        self.found.add(f"{module_name}:{global_name}")
        return super().find_class(module_name, global_name)


def met_from(modules: Sequence[ModuleType], packages: Sequence[str]) -> Iterator[str]:
    """Yield the classes that these modules know, and those that their modules know, and so on."""
    waiting, seen = list(modules), set(modules)
    while waiting:
        for found in list(vars(waiting.pop()).values()):
            if not isinstance(found, type | ModuleType):
                continue
            home = found.__name__ if isinstance(found, ModuleType) else found.__module__
            if not harmless(home, packages):
                continue
            if isinstance(found, type):
                yield f"{home}:{found.__qualname__}"
            if (module := import_module(home)) not in seen:
                seen.add(module)
                waiting.append(module)


def harmless(module_name: str, packages: Sequence[str]) -> bool:
    """Say whether a module belongs to one of the packages, and to no part of River that reads files.

    >>> harmless("river.tree", ["river"]), harmless("riverbed", ["river"]), harmless("river.drift.datasets", ["river"])
    (True, False, False)
    """
    package, *inner = module_name.split(".")
    return package in packages and not (package == "river" and WITH_FILES.intersection(inner))
