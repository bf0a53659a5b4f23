"""Settings files: the options of each attention layer of a model, as `thinformer tune` writes them.

People may edit such a file::

    {
     "version": 2,
     "layers": {
      "encoder.layer.0.attention.self": {"size": 64, "correction": "queries"},
      "encoder.layer.1.attention.self": {"exact": true}
     }
    }

``measured``, beside ``layers`` and in each layer, says how the settings were found. It is not read.
A file for the cache of a decoder has ``sizes``, a list of one number for each layer, in place of
``layers``.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from thinformer.attending.options import (
    CORRECTIONS,
    SETTING_NAMES,
    LayerOptions,
    layer_options,
    left_out,
)
from thinformer.support import checks

VERSION = 2  # of the file; in version 1 a layer without a correction had none
FILE = "thinformer.json"  # in a model's folder
SHOWN = 3  # names in an error
# the names that commands give to the methods, and the settings of each
WAYS: dict[str, dict[str, Any]] = {
    "none": {"correction": None},
    "herding": {"correction": None, "temperature": "auto"},
    **{name: {"correction": name} for name in CORRECTIONS},
}


def load_settings(path: str | os.PathLike) -> dict[str, dict[str, Any]]:
    """Load the settings of a model's attention layers from a file.

    `thinformer tune` and `thinformer.torch.save_settings` write such files.

    `convert` and `thinformer.torch.transformers.configure` take the path itself, or the returned
    dict, changed or not.

    Parameters
    ----------
    path : str or path
        A file, or a model's folder that holds thinformer.json. The file is JSON: ``version``, which
        is 2, and ``layers``, an object for each layer. The object has ``g``, ``size`` or
        ``"exact": true``. It may have the other fields of `KeySelection` and `LayerOptions`, with
        their defaults: ``pre_thin``, ``correction``, ``temperature``, ``min_length``, ``fallback``,
        ``error_threshold``, ``seed`` and ``unsupported``. ``measured``, beside ``layers`` and in
        each layer, is not read.

    Returns
    -------
    dict of str to dict
        By the layers' names, arguments of `thinformer.torch.transformers.configure`.

    Raises
    ------
    ValueError
        Something else is in the file; names it, and what is taken there.
    OSError
        The file cannot be read.

    Notes
    -----
    A layer of a ``size`` keeps as many keys of every sequence, however long. Sequences of no more
    tokens than that attend exactly.
    """
    path = _file(path)
    layers = _content(path, "layers")
    if not isinstance(layers, dict) or not layers:
        raise ValueError(f"{path}: layers must be an object with settings of layers")
    return {name: _of_layer(f"{path}: {name}", layer) for name, layer in layers.items()}


def save_settings(
    path: str | os.PathLike,
    layers: Mapping[str, Mapping[str, Any]],
    measured: Mapping[str, Any],
) -> None:
    """Write what `load_settings` reads, a line a layer."""
    rows = [f"  {json.dumps(name)}: {json.dumps(layer)}" for name, layer in layers.items()]
    _write(_file(path), '"layers": {\n' + ",\n".join(rows) + "\n }", measured)


def load_sizes(path: str | os.PathLike) -> list[int]:
    """Load the number of keys of each layer of a decoder's cache, as `save_sizes` writes it.

    Raises
    ------
    ValueError
        Something else is in the file; names it, and what is taken there.
    OSError
        The file cannot be read.
    """
    path = Path(path)
    sizes = _content(path, "sizes")
    if not isinstance(sizes, list) or not sizes:
        raise ValueError(f"{path}: sizes must be a list of one number of keys for each layer")
    return [checks.integer(f"{path}: size of layer {i}", n, 1) for i, n in enumerate(sizes)]


def save_sizes(path: str | os.PathLike, sizes: Sequence[int], measured: Mapping[str, Any]) -> None:
    """Write what `load_sizes` reads."""
    _write(Path(path), f'"sizes": {json.dumps(list(sizes))}', measured)


def of_layers(
    settings: str | os.PathLike | Mapping[str, Any], others: LayerOptions, names: Iterable[str]
) -> dict[str, LayerOptions]:
    """Return the options of a model's attention layers, by name.

    Parameters
    ----------
    settings : path or dict
        A file, or what is loaded from one.
    others : LayerOptions
        Made of the other arguments of a public function, which must have been left out.
    names : iterable of str
        The names of all attention layers of the model.

    Raises
    ------
    TypeError, ValueError
        The settings are no settings, or not those of these layers; another argument is given.
    """
    left_out("settings are of each layer", others, LayerOptions())
    if isinstance(settings, Mapping):
        title = "settings"
        layers = {name: _of_layer(f"{title}: {name}", layer) for name, layer in settings.items()}
    elif isinstance(settings, str | os.PathLike):
        title, layers = str(settings), load_settings(settings)
    else:
        raise TypeError(
            f"settings must be a file's path or a dict of layers; got {type(settings).__name__}"
        )
    names = list(names)
    unknown = [name for name in layers if name not in names]
    if unknown:
        raise ValueError(
            f"{title}: the model has no attention layer {_listed(unknown)}; it has "
            f"{_listed(names) or 'none'}"
        )
    missing = [name for name in names if name not in layers]
    if missing:
        raise ValueError(
            f'{title}: has nothing for {_listed(missing)} of the model; {{"exact": true}} leaves a '
            f"layer as it is"
        )
    return {name: layer_options(**layers[name]) for name in names}


def entry_of(layer: LayerOptions) -> dict[str, Any]:
    """Return the entry of a layer in a file: what it must have, and what is not by default."""
    if layer.exact:
        return {"exact": True}
    own, defaults = layer.settings(), LayerOptions().settings()
    entry = {name: value for name, value in own.items() if value != defaults[name]}
    if "size" not in entry:
        return {"g": own["g"], **entry}
    entry.pop("g", None)
    return entry


def _content(path: Path, key: str) -> Any:
    """What a file has under its key, "layers" or "sizes"; None where it has nothing there."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=_unlike)
    except ValueError as error:  # also of UTF-8
        raise ValueError(f"{path}: is no settings file: {error}") from None
    if not isinstance(content, dict) or "version" not in content:
        raise ValueError(f"{path}: is no settings file: it has no version")
    if content["version"] != VERSION or isinstance(content["version"], bool):
        raise ValueError(f"{path}: version must be {VERSION}; got {content['version']!r}")
    _known(str(path), content, ("version", key, "measured"))
    return content.get(key)


def _write(path: Path, body: str, measured: Mapping[str, Any]) -> None:
    lines = [
        "{",
        f' "version": {VERSION},',
        f" {body},",
        f' "measured": {json.dumps(measured)}',
        "}",
    ]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def _file(path: str | os.PathLike) -> Path:
    """The file of a path, which may be a model's folder."""
    return Path(path) / FILE if Path(path).is_dir() else Path(path)


def _of_layer(title: str, layer: Any) -> dict[str, Any]:
    """The settings of a layer, if they are some."""
    if not isinstance(layer, Mapping):
        raise ValueError(f"{title}: must be an object of settings; got {layer!r}")
    _known(title, layer, (*SETTING_NAMES, "measured"))
    settings = {name: value for name, value in layer.items() if name != "measured"}
    try:
        made = layer_options(**settings)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{title}: {error}") from None
    others = [name for name, value in settings.items() if name != "exact" and value is not None]
    if made.exact and others:
        raise ValueError(f"{title}: is exact, so {others[0]} has no meaning; leave out one of them")
    if "g" in settings and made.selection.size is not None:
        raise ValueError(f"{title}: takes g or size; got both")
    if not made.exact and "g" not in settings and made.selection.size is None:
        raise ValueError(f'{title}: must have g, size or "exact": true')
    return settings


def _known(title: str, content: Mapping[str, Any], keys: tuple[str, ...]) -> None:
    """Raise for a key that means nothing."""
    for key in content:
        if key not in keys:
            raise ValueError(f"{title}: {key!r} is unknown; takes {', '.join(keys)}")


def _unlike(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object of JSON, whose last value of a key would win in silence."""
    content = dict(pairs)
    if len(content) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"{twice!r} is there twice")
    return content


def _listed(names: list[str]) -> str:
    """Some names, and how many more."""
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(map(repr, names[:SHOWN])) + more
