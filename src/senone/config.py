"""Strict configuration: frozen dataclasses from dictionaries, YAML and `a.b=c` overrides.

Unknown keys and wrong types are errors that name the dotted key. Model files only see plain dataclasses.
"""

import dataclasses
import difflib
import types
import typing
from pathlib import Path
from typing import Any, TypeVar

import yaml

from senone.errors import SenoneError

T = TypeVar("T")


class ConfigError(SenoneError):
    """A key that does not exist, or a value of the wrong type."""


def from_dict(cls: type[T], values: dict[str, Any], where: str = "") -> T:
    """Build the frozen dataclass `cls` from `values`; keys left out keep their defaults.

    Raises ConfigError naming the dotted key, with the nearest known key where one is unknown.
    """
    if not isinstance(values, dict):
        raise ConfigError(f"config key '{where or cls.__name__}' needs a table of keys, got {values!r}")
    kinds = typing.get_type_hints(cls)
    names = [field.name for field in dataclasses.fields(cls)]  # type: ignore[arg-type]
    for key in values:
        if key not in names:
            raise ConfigError(_unknown(f"{where}{key}", str(key), names))
    try:
        return cls(**{key: _convert(kinds[key], value, f"{where}{key}") for key, value in values.items()})
    except TypeError as error:
        raise ConfigError(f"config {where or cls.__name__}: {error}") from None


def to_dict(config: Any) -> dict[str, Any]:
    """The configuration as plain JSON values (tuples become lists)."""
    return _plain(dataclasses.asdict(config))


def changed(config: Any) -> dict[str, Any]:
    """The keys whose values are not the defaults, as plain JSON values, sorted."""
    values = to_dict(config)
    defaults = {
        field.name: field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
        for field in dataclasses.fields(config)
    }
    plain = {key: to_dict(item) if dataclasses.is_dataclass(item) else _plain(item) for key, item in defaults.items()}
    return {key: values[key] for key in sorted(values) if values[key] != plain[key]}


def at_least(config: Any, least: int, *keys: str) -> None:
    """Raise ConfigError naming the first of `keys` that holds a number below `least`, or no number."""
    for key in keys:
        value = getattr(config, key)
        numbers = value if isinstance(value, tuple) else (value,)
        if not numbers or not all(number >= least for number in numbers):
            raise ConfigError(f"{key}: {value} must be {least} or more")


def override(config: T, settings: list[str]) -> T:
    """A copy of `config` with each `a.b=c` applied; the value is read as YAML."""
    values = to_dict(config)
    for setting in settings:
        path, mark, text = setting.partition("=")
        if not mark:
            raise ConfigError(f"setting '{setting}' is not of the form key=value")
        *parents, last = path.split(".")
        table = values
        for depth, name in enumerate(parents):
            if not isinstance(table, dict) or name not in table:
                raise ConfigError(_unknown(".".join(parents[: depth + 1]), name, list(table)))
            if table[name] is None:
                table[name] = {}
            table = table[name]
        if not isinstance(table, dict):
            raise ConfigError(f"config key '{'.'.join(parents)}' holds a value, not a table of keys")
        table[last] = yaml.safe_load(text)
    return from_dict(type(config), values)


def read_yaml(path: str | Path) -> dict[str, Any]:
    """The YAML file as a dictionary. Raises ConfigError naming the file."""
    try:
        values = yaml.safe_load(Path(path).read_text())
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not YAML: {' '.join(str(error).split())}") from None
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise ConfigError(f"{path} must hold a table of keys")
    return values


def _unknown(path: str, key: str, names: list[str]) -> str:
    near = difflib.get_close_matches(key, names, n=1)
    hint = f"did you mean '{near[0]}'?" if near else f"known keys: {', '.join(names)}"
    return f"unknown config key '{path}'; {hint}"


def _convert(kind: Any, value: Any, where: str) -> Any:
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if dataclasses.is_dataclass(kind) and isinstance(kind, type):
        return value if isinstance(value, kind) else from_dict(kind, value, f"{where}.")
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in args:
            return None
        rest = [arg for arg in args if arg is not type(None)]
        for arg in rest[:-1]:
            try:
                return _convert(arg, value, where)
            except ConfigError:
                continue
        return _convert(rest[-1], value, where)
    if origin is tuple and isinstance(value, list | tuple):
        if len(args) == 2 and args[1] is Ellipsis:
            return tuple(_convert(args[0], item, f"{where}[{i}]") for i, item in enumerate(value))
        if len(args) != len(value):
            raise ConfigError(f"config key '{where}' needs {len(args)} values, got {len(value)}")
        return tuple(
            _convert(arg, item, f"{where}[{i}]") for i, (arg, item) in enumerate(zip(args, value, strict=True))
        )
    if origin is dict and isinstance(value, dict):
        return {key: _convert(args[1], item, f"{where}.{key}") for key, item in value.items()}
    if origin is typing.Literal:
        if value in args:
            return value
        raise ConfigError(f"config key '{where}' must be one of {', '.join(map(str, args))}, got {value!r}")
    if kind is float and isinstance(value, int | str) and not isinstance(value, bool):
        try:  # YAML reads 1e-4 as a string
            return float(value)
        except ValueError:
            pass
    boolean_as_int = kind is int and isinstance(value, bool)
    if kind is Any or (isinstance(kind, type) and isinstance(value, kind) and not boolean_as_int):
        return value
    name = getattr(kind, "__name__", str(kind))
    raise ConfigError(f"config key '{where}' needs {name}, got {value!r}")


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value
