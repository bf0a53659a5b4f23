"""The options of attention, checked where they are made: `KeySelection` and `LayerOptions`.

They travel as one object from the public functions to the place that uses them. A new setting is a
field of one of them: settings files, and all functions that take a `LayerOptions`, have it at once.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal, get_args

from thinformer.halving.plan import PRE_THIN, Plan, plan
from thinformer.support import checks

Correction = Literal["nystrom", "queries"]
Fallback = Literal["exact"]
CORRECTIONS, FALLBACKS = get_args(Correction), get_args(Fallback)
MIN_LENGTH = 256  # tokens below which a layer of a model stays exact


@dataclass(frozen=True)
class KeySelection:
    """Which keys attention keeps, and how it compensates for the others.

    Attributes
    ----------
    g : int
        Oversampling: 2^g sqrt(n) keys are kept, n the largest power of four not above the number of
        tokens.
    size : int, optional
        The number of keys to keep, instead of the one that g gives.
    pre_thin : {"even", "stride"}
        How a sequence is brought to a length that halves evenly; see `thinformer.compress_kv`.
    correction : {None, "nystrom", "queries"}
        How the kept keys compensate for the others; see `thinformer.attention`.
    temperature : float or "auto", optional
        The temperature of a correction's kernel on keys. Without a correction, it selects the keys
        by herding.
    min_length : int
        A sequence of fewer tokens keeps all its keys.

    Raises
    ------
    ValueError
        A field is out of its range, or does not go with another; names it.
    """

    g: int = 2
    size: int | None = None
    pre_thin: str = "even"
    correction: str | None = None
    temperature: float | str | None = None
    min_length: int = MIN_LENGTH

    def __post_init__(self) -> None:
        _store(self, "g", checks.integer("g", self.g, 0))
        if self.size is not None:
            _store(self, "size", checks.integer("size", self.size, 1))
        checks.choice("pre_thin", self.pre_thin, PRE_THIN)
        if self.correction is not None:
            checks.choice("correction", self.correction, (None, *CORRECTIONS))
        if isinstance(self.temperature, str) and self.temperature != "auto":
            raise ValueError(
                f"temperature must be None, 'auto' or a number; got {self.temperature!r}"
            )
        if not (self.temperature is None or isinstance(self.temperature, str)):
            checks.positive("temperature", self.temperature)
        if self.method != "halving" and self.pre_thin != "even":
            special = "temperature" if self.correction is None else "correction"
            raise ValueError(
                f"pre_thin must be 'even' with a {special}, which does not thin; "
                f"got {self.pre_thin!r}"
            )
        _store(self, "min_length", checks.integer("min_length", self.min_length, 0))

    @property
    def method(self) -> str:
        """How the keys are selected: "halving", "herding", "nystrom" or "queries"."""
        if self.correction is not None:
            return self.correction
        return "halving" if self.temperature is None else "herding"

    @property
    def tau(self) -> float | None:
        """The temperature as a number; None where a formula gives it, or none is needed."""
        if self.temperature is None or isinstance(self.temperature, str):
            return None
        return float(self.temperature)

    def plan(self, tokens: int, delta: float = 0.5) -> Plan:
        """The plan of a sequence of that many tokens, and of the number of keys it keeps."""
        size = tokens if tokens < self.min_length else self.size
        return plan(tokens, self.g, size, delta, self.pre_thin)


@dataclass(frozen=True)
class LayerOptions:
    """How one attention layer of a model attends.

    Attributes
    ----------
    selection : KeySelection
        Which keys it keeps.
    fallback : {None, "exact"}
        What to do where the estimated error of a head is above `error_threshold`.
    error_threshold : float, optional
        Not negative; required by a fallback.
    exact : bool
        Leave the layer exact.

    Raises
    ------
    TypeError, ValueError
        A field is out of its range, or does not go with another; names it.

    Examples
    --------
    >>> from thinformer.torch import KeySelection, LayerOptions
    >>> options = LayerOptions(KeySelection(size=64, correction="queries"))
    >>> options.leaves_exact(queries=1000, keys=200), options.leaves_exact(queries=1000, keys=1000)
    (True, False)
    """

    selection: KeySelection = field(default_factory=KeySelection)
    fallback: str | None = None
    error_threshold: float | None = None
    exact: bool = False

    def __post_init__(self) -> None:
        if not isinstance(self.selection, KeySelection):
            raise TypeError(
                f"selection must be a KeySelection; got {type(self.selection).__name__}"
            )
        checks.boolean("exact", self.exact)
        if self.fallback is None and self.error_threshold is not None:
            raise ValueError(
                f"error_threshold belongs to a fallback, which is None; "
                f"got {self.error_threshold!r}"
            )
        if self.fallback is None:
            return
        checks.choice("fallback", self.fallback, FALLBACKS)
        if self.error_threshold is None:
            raise ValueError(
                f"error_threshold must be a number with fallback={self.fallback!r}: the estimated "
                f"error above which the output is exact attention; got None"
            )
        if checks.finite_number("error_threshold", self.error_threshold) < 0:
            raise ValueError(f"error_threshold must not be negative; got {self.error_threshold!r}")

    def leaves_exact(self, queries: int, keys: int) -> bool:
        """Whether attention of that many queries to that many keys is exact.

        It is for an `exact` layer, for fewer than `min_length` keys, and for a single query, which
        is a step of decoding.
        """
        return self.exact or queries == 1 or keys < self.selection.min_length

    def settings(self) -> dict[str, Any]:
        """All settings by name, those of the selection among them."""
        own = asdict(self)
        return own.pop("selection") | own


SELECTION_NAMES = tuple(each.name for each in fields(KeySelection))
LAYER_NAMES = tuple(each.name for each in fields(LayerOptions) if each.name != "selection")
SETTING_NAMES = SELECTION_NAMES + LAYER_NAMES


def layer_options(**settings: Any) -> LayerOptions:
    """Return the options that settings by name make, with defaults for all others."""
    own = {name: settings.pop(name) for name in LAYER_NAMES if name in settings}
    return LayerOptions(KeySelection(**settings), **own)


def given_options(options: LayerOptions | None, **settings: Any) -> LayerOptions:
    """Return the options given, or those that keyword arguments make.

    Raises
    ------
    TypeError
        `options` is something else.
    ValueError
        A keyword is out of its range, or is given beside `options`.
    """
    made = layer_options(**settings)
    if options is None:
        return made
    if not isinstance(options, LayerOptions):
        raise TypeError(f"options must be a LayerOptions; got {type(options).__name__}")
    left_out("options has all settings", made, settings)
    return options


def left_out(reason: str, made: LayerOptions, names: Any = SETTING_NAMES) -> None:
    """Raise for a setting that is not its default, where settings come from elsewhere."""
    values, defaults = made.settings(), LayerOptions().settings()
    for name in names:
        if values[name] != defaults[name]:
            raise ValueError(f"{reason}: {name} must be left out; got {values[name]!r}")


def _store(options: Any, name: str, value: Any) -> None:
    """Store a checked field of a frozen object, once, while it is made."""
    object.__setattr__(options, name, value)
