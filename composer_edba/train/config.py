"""Reads a run from YAML and overrides; what is wrong is refused by its full name, before anything heavy is imported."""

from __future__ import annotations

import types
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Union, get_args, get_origin

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from composer_edba.spelling import nearest
from composer_edba.train.checks import check
from composer_edba.train.names import YAMLS, shipped_runs
from composer_edba.train.schema import Config, ConfigError, Key, schema_keys

__all__ = ["Config", "ConfigError", "load_config", "schema_keys"]


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """Reads a run from a YAML file.

    Args:
        path: The YAML file, or the name of one that comes with the package, as ``digits/edba``.
        overrides: ``key=value`` strings that win over the file; the key is a full dotted name, the value YAML.

    Raises:
        ConfigError: In one line: what cannot be read, is unknown, has a wrong type or value, or is unset.
    """
    try:
        return _load(_found(path), overrides)
    except OmegaConfBaseException as error:
        raise ConfigError(f"{error.full_key or path}: {_first_line(error)}") from error
    except RecursionError as error:
        raise ConfigError(f"{path}: nested too deeply; a run needs no more than four levels") from error


def _load(path: Path, overrides: Sequence[str]) -> Config:
    # Interpolations stay unresolved: they may point at defaults, which only the schema has.
    given = OmegaConf.to_container(OmegaConf.merge(_read(path), *map(_override, overrides)), resolve=False)
    assert isinstance(given, dict)
    config = OmegaConf.structured(Config)
    keys = {key.name: key for key in schema_keys()}
    for name, value in _leaves(given, keys):
        _assign(config, keys[name], value)
    required = [(key, *key.name.rpartition(".")) for key in keys.values() if key.required]
    unset = [f"{key.name} ({key.help})" for key, head, _, leaf in required if OmegaConf.is_missing(config[head], leaf)]
    if unset:
        raise ConfigError(f"required, but unset: {', '.join(unset)}; set it in {path} or as key=value")
    loaded = OmegaConf.to_object(config)
    assert isinstance(loaded, Config)
    check(loaded)
    return loaded


def _found(path: str | Path) -> Path:
    """A file of the user's, or else the shipped one of that name."""
    given, shipped = Path(path), shipped_runs()
    if (name := str(given).removesuffix(".yaml")) in shipped and not given.is_file():
        return YAMLS / f"{name}.yaml"
    if given.exists():
        return given
    hint = nearest(name, shipped, list_always=True)
    raise ConfigError(f"{path}: cannot read this YAML file (there is none), nor is it a shipped run; {hint}")


def _read(path: Path) -> DictConfig:
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{path}: cannot read this YAML file ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not a text file") from error
    expected = "a run is a mapping of sections, as seed: 0 or data: {name: digits}"
    with _valid_yaml(str(path)):
        root = yaml.compose(text, Loader=yaml.SafeLoader)
        # OmegaConf makes a mapping of a bare word too, with that one key and no value.
        if root is not None and not isinstance(root, yaml.MappingNode):
            raise ConfigError(f"{path}: holds no mapping; {expected}")
        loaded = OmegaConf.create({}) if root is None else OmegaConf.create(text)
    assert isinstance(loaded, DictConfig)
    return loaded


def _override(text: str) -> DictConfig:
    name, equals, value = text.partition("=")
    # OmegaConf reads brackets and backslashes in a key as syntax, and stumbles over stray ones.
    if not equals or not name.strip() or name.startswith("-") or any(char in name for char in "[]\\"):
        raise ConfigError(f"{text!r}: not an override; write key=value, as optimizer.lr=0.1")
    with _valid_yaml(repr(text), "the value is "):
        return OmegaConf.from_dotlist([f"{name.strip()}={value}"])


@contextmanager
def _valid_yaml(where: str, what: str = "") -> Iterator[None]:
    """Refuses what YAML cannot read, or OmegaConf cannot hold, saying where it stands."""
    try:
        yield
    except OmegaConfBaseException as error:
        key = f"{error.full_key}: " if error.full_key else ""
        raise ConfigError(f"{where}: {key}{_first_line(error)}") from error
    except ConfigError:
        raise
    except yaml.YAMLError as error:
        mark, problem = getattr(error, "problem_mark", None), getattr(error, "problem", None)
        place = f" at line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise ConfigError(f"{where}: {what}not valid YAML{place}{f': {problem}' if problem else ''}") from error
    except ValueError as error:  # a number without digits, as 0x_
        raise ConfigError(f"{where}: {what}not valid YAML: {error}") from error


def _leaves(given: Mapping[Any, Any], keys: Mapping[str, Key], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yields the schema's keys that are given, with their values, refusing what the schema does not know."""
    sections = {name.rpartition(".")[0] for name in keys}
    for part, value in given.items():
        name = f"{prefix}{part}"
        if name in keys:
            yield name, value
        elif name not in sections:
            # Down to the key itself: its name tells more than the section's.
            while isinstance(value, Mapping) and value:
                part, value = next(iter(value.items()))
                name = f"{name}.{part}"
            siblings = dict.fromkeys(key[len(prefix) :].partition(".")[0] for key in keys if key.startswith(prefix))
            # Those of the same section first, so that they win a tie.
            ranked = sorted(keys, key=lambda known: not (prefix and known.startswith(prefix)))
            raise ConfigError(f"{name}: unknown key; {nearest(name, ranked, list(siblings))}")
        elif isinstance(value, Mapping):
            yield from _leaves(value, keys, f"{name}.")
        elif value is not None:
            inside = ", ".join(key.rpartition(".")[2] for key in keys if key.startswith(f"{name}."))
            raise ConfigError(f"{name}: {value!r} is no section; expected a mapping with keys among {inside}")


def _assign(config: DictConfig, key: Key, value: Any) -> None:
    expected = ConfigError(f"{key.name}: {value!r} has the wrong type; expected {_type_words(key.type)}")
    if key.free and not (value is None or isinstance(value, Mapping)):
        raise expected
    try:
        OmegaConf.update(config, key.name, {} if key.free and value is None else value, merge=False)
    except OmegaConfBaseException as error:
        raise expected from error


def _type_words(annotation: Any) -> str:
    if get_origin(annotation) in (Union, types.UnionType):
        return " or ".join(_type_words(option) for option in get_args(annotation))
    if get_origin(annotation) is list:
        return f"a list, each {_type_words(get_args(annotation)[0])}"
    if get_origin(annotation) is dict:
        return "a mapping (dict)"
    words = {int: "an integer (int)", float: "a number (float)", bool: "true or false (bool)", str: "text (str)"}
    return "null" if annotation is types.NoneType else words[annotation]


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0]
