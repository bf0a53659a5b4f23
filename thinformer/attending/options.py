"""The options of attention, checked where they are made: `KeySelection` and `LayerOptions`.

They travel as one object from the public functions to the place that uses them. A new setting is a
field of one of them: settings files, and all functions that take a `LayerOptions`, have it at once.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, Literal, get_args

from thinformer.halving.plan import PRE_THIN, Plan, PreThin, plan
from thinformer.support import checks

Correction = Literal["nystrom", "queries"]
Fallback = Literal["exact"]
Unsupported = Literal["raise", "exact"]
CORRECTIONS, FALLBACKS = get_args(Correction), get_args(Fallback)
UNSUPPORTED = get_args(Unsupported)
ERROR_THRESHOLD = 0.4  # of a fallback that names none
# min_length="auto" thins from so many tokens on (`thinformer bench-models`), and where there are at
# least so many tokens for each key that is kept; at 2,048 tokens a layer alone gains least with one
# head of 32, 1.05 times as fast, and 3.1 times with 16 heads of 128
FASTER_FROM = {"cpu": 2048}
TOKENS_PER_KEY = 8
NEVER = 2**62  # tokens, which no sequence has


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
        How the kept keys compensate for the others; see `thinformer.attention`. None is the
        published method.
    temperature : float or "auto", optional
        The temperature of a correction's kernel on keys. Without a correction, it selects the keys
        by herding.
    min_length : int or "auto"
        A sequence of fewer tokens keeps all its keys. "auto" thins where it is faster than exact
        attention by what was measured on a CPU; see `least_length`.

    Raises
    ------
    ValueError
        A field is out of its range, or does not go with another; names it.
    """

    g: int = 2
    size: int | None = None
    pre_thin: PreThin = "even"
    correction: Correction | None = "queries"
    temperature: float | Literal["auto"] | None = None
    min_length: int | Literal["auto"] = "auto"

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
        if isinstance(self.min_length, str) and self.min_length != "auto":
            raise ValueError(f"min_length must be 'auto' or an integer; got {self.min_length!r}")
        if not isinstance(self.min_length, str):
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

    def least_length(self, device: str = "cpu") -> int:
        """The number of tokens from which on a sequence is thinned on a type of device.

        It is `min_length`, if that is a number. "auto" asks for 2,048 tokens and for 8 tokens a
        kept key, and never thins on a GPU, where nothing was measured.
        """
        if not isinstance(self.min_length, str):
            return self.min_length
        if device not in FASTER_FROM:
            return NEVER
        # 2^g sqrt(n) keys are an 8th of n tokens where n is (8 2^g)^2
        enough = (TOKENS_PER_KEY << min(self.g, 25)) ** 2
        if self.size is not None:
            enough = TOKENS_PER_KEY * self.size
        return max(FASTER_FROM[device], enough)

    def on(self, device: str) -> KeySelection:
        """The same selection, whose `min_length` is a number: that of a type of device."""
        if not isinstance(self.min_length, str):
            return self
        return replace(self, min_length=self.least_length(device))

    def plan(self, tokens: int, delta: float = 0.5) -> Plan:
        """The plan of a sequence of that many tokens, and of the number of keys it keeps."""
        size = tokens if tokens < self.least_length() else self.size
        return plan(tokens, self.g, size, delta, self.pre_thin)


@dataclass(frozen=True)
class LayerOptions:
    """How one attention layer of a model attends.

    Attributes
    ----------
    selection : KeySelection
        Which keys it keeps.
    fallback : {"exact", None}
        What to do where the estimated error of a head is above `error_threshold`. None: nothing,
        and no error is estimated.
    error_threshold : float, optional
        Not negative; None is 0.4 with a fallback.
    exact : bool
        Leave the layer exact.
    seed : int, optional
        In evaluation a layer draws its random numbers from this seed and from its own weights, so
        that layers differ and the same input gives the same output. In training, and where it is
        None, each call draws a seed from torch's default generator.
    unsupported : {"raise", "exact"}
        What to do with attention that cannot be thinned: causal, biased, or with a mask that
        differs by query. "exact" computes it as the model does by itself.

    Raises
    ------
    TypeError, ValueError
        A field is out of its range, or does not go with another; names it.

    Examples
    --------
    >>> from thinformer.torch import KeySelection, LayerOptions
    >>> options = LayerOptions(KeySelection(size=64))
    >>> options.leaves_exact(queries=4000, keys=200), options.leaves_exact(queries=4000, keys=4000)
    (True, False)
    """

    selection: KeySelection = field(default_factory=KeySelection)
    fallback: Fallback | None = "exact"
    error_threshold: float | None = None
    exact: bool = False
    seed: int | None = 0
    unsupported: Unsupported = "raise"

    def __post_init__(self) -> None:
        if not isinstance(self.selection, KeySelection):
            raise TypeError(
                f"selection must be a KeySelection; got {type(self.selection).__name__}"
            )
        checks.boolean("exact", self.exact)
        checks.choice("unsupported", self.unsupported, UNSUPPORTED)
        if self.seed is not None:
            _store(self, "seed", checks.integer("seed", self.seed, 0))
            if self.seed >= 2**63:
                raise ValueError(f"seed must be below 2^63, the range of int64; got {self.seed}")
        if self.fallback is None and self.error_threshold is not None:
            raise ValueError(
                f"error_threshold belongs to a fallback, which is None; "
                f"got {self.error_threshold!r}"
            )
        if self.fallback is None:
            return
        checks.choice("fallback", self.fallback, FALLBACKS)
        if self.error_threshold is None:
            return
        if checks.finite_number("error_threshold", self.error_threshold) < 0:
            raise ValueError(f"error_threshold must not be negative; got {self.error_threshold!r}")

    @property
    def threshold(self) -> float | None:
        """The estimated error above which a head is exact; None without a fallback."""
        if self.fallback is None:
            return None
        return ERROR_THRESHOLD if self.error_threshold is None else self.error_threshold

    def leaves_exact(self, queries: int, keys: int, device: str = "cpu") -> bool:
        """Whether attention of that many queries to that many keys is exact.

        It is for an `exact` layer, for fewer than `min_length` keys, and for a single query, which
        is a step of decoding. With "auto" the queries must be as many as the keys must be.
        """
        if self.exact or queries == 1:
            return True
        if not isinstance(self.selection.min_length, str):
            return keys < self.selection.min_length
        tokens = min(queries, keys)
        # the first comparison decides nearly every call, and is made at every call of a layer
        return tokens < FASTER_FROM.get(device, NEVER) or tokens < self.selection.least_length(
            device
        )

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


def given_options(
    options: LayerOptions | None, defaults: LayerOptions | None = None, **settings: Any
) -> LayerOptions:
    """Return the options given, or those that keyword arguments make.

    `defaults` are those of the function that takes the keywords, where it has its own.

    Raises
    ------
    TypeError
        `options` is something else.
    ValueError
        A keyword is out of its range, or is given beside `options`.
    """
    defaults = LayerOptions() if defaults is None else defaults
    # a threshold is its fallback's
    made = layer_options(**{**defaults.settings(), **settings})
    if options is None:
        return made
    if not isinstance(options, LayerOptions):
        raise TypeError(f"options must be a LayerOptions; got {type(options).__name__}")
    left_out("options has all settings", made, defaults, settings)
    return options


def left_out(
    reason: str, made: LayerOptions, defaults: LayerOptions, names: Any = SETTING_NAMES
) -> None:
    """Raise for a setting that is not its default, where settings come from elsewhere."""
    values, unset = made.settings(), defaults.settings()
    for name in names:
        if values[name] != unset[name]:
            raise ValueError(f"{reason}: {name} must be left out; got {values[name]!r}")


def _store(options: Any, name: str, value: Any) -> None:
    """Store a checked field of a frozen object, once, while it is made."""
    object.__setattr__(options, name, value)


# the method of the paper, for every length: no correction, and no control of the error
PUBLISHED = LayerOptions(KeySelection(correction=None, min_length=0), fallback=None, seed=None)
