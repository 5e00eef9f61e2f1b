"""From a name and options in a configuration to a strategy."""

from __future__ import annotations

import difflib
import importlib
import inspect
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import cast

from raylora.core.errors import InputError, named
from raylora.core.reduce import REDUCTIONS, Reduce, Seeded, Weighing
from raylora.core.tree import ADAPTERS
from raylora.core.types import ClientUpdate, State, Strategy

Factory = Callable[..., Strategy]


def create_from(registry: Mapping[str, Factory], name: str, options: Mapping[str, object], context: Mapping[str, object]) -> Strategy:
    """`strategies.create` over any registry. context: values that a factory gets if it has parameters of these names."""
    factory = imported(name) if ":" in name else known(registry, name)
    try:
        parameters = inspect.signature(factory).parameters
    except ValueError:
        raise InputError(f"strategy.name {name}: expected a function of Python, found {factory!r}") from None
    owners = {key: [other for other in registry if key in defaults(registry[other], tuple(context))] for key in options}
    require_known(name, options, parameters, hidden=tuple(context), owners=owners)
    given = {**{key: value for key, value in context.items() if key in parameters}, **options}
    if "reduce" in given:
        given["reduce"] = reduction(given["reduce"])
        require_clients(given["reduce"], context.get("clients"))
    missing = [key for key, p in parameters.items() if p.default is p.empty and p.kind in NAMED and key not in given]
    if missing:
        raise InputError(f"strategy.{missing[0]}: {name} needs this option, found none")
    try:
        strategy = factory(**given)
    except InputError:
        raise
    except (Exception, SystemExit) as error:
        raise (theirs(name, error) if ":" in name else error) from None
    if not isinstance(strategy, Strategy):
        raise InputError(f"strategy.name {name}: expected a factory that returns a Strategy, found {type(strategy).__name__}")
    if unknown := sorted(set(strategy.adapters) - set(ADAPTERS)):
        raise InputError(f"strategy.name {name}: expected adapters of {', '.join(map(repr, ADAPTERS))}, found {unknown[0]!r}")
    if strategy.optimiser not in ("", "adamw", "sgd"):
        raise InputError(f"strategy.name {name}: derived for the optimiser {strategy.optimiser!r}: expected adamw, sgd or none")
    strategy = replace(strategy, name=strategy.name or name)
    return strategy if isinstance(given.get("reduce"), Seeded) else skipping_empty_rounds(strategy)


NAMED = (inspect.Parameter.KEYWORD_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)


def defaults(factory: Factory, hidden: Sequence[str] = ()) -> dict[str, object]:
    """{option: its default} of a factory."""
    parameters = inspect.signature(factory).parameters.items()
    return {key: p.default for key, p in parameters if p.default is not p.empty and p.kind in NAMED and key not in hidden}


def require_known(
    name: str,
    options: Mapping[str, object],
    parameters: Mapping[str, inspect.Parameter],
    hidden: Sequence[str],
    owners: Mapping[str, Sequence[str]],
) -> None:
    """Raise InputError for an option that the factory does not have, with the nearest one (none of the hidden ones) and the methods that have
    it (`owners`), or with the reason why the method takes no reduction."""
    if any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        return
    for key in options:
        if key in hidden and key in parameters:
            raise InputError(f"strategy.{key}: {name} is given this by the run itself, found {options[key]!r}")
        if key == "reduce" and key not in parameters:
            raise InputError(f"strategy.reduce: {name} {NO_REDUCE.get(name, 'has no reduction to replace')}, found {options[key]}")
        if key not in parameters:
            others = f" (it is one of {', '.join(owners[key])})" if owners[key] else ""
            raise InputError(f"strategy.{key}: {name} has no such option{others}{nearest(key, [k for k in parameters if k not in hidden])}")


def require_clients(reduce: object, clients: object) -> None:
    """Raise InputError if a reduction needs more clients than there are (None: not known)."""
    if isinstance(reduce, Weighing) and isinstance(clients, int) and reduce.needs > clients:
        raise InputError(f"strategy.reduce: expected at least {reduce.needs} clients, found {clients}")


NO_REDUCE = {
    "local": "aggregates nothing",
    "centralised": "has one client",
    "rate_my_lora": "rates the clients itself",
    "scaffold": "needs the plain mean, for its control variates",
    "hetlora": "weighs the clients by the norms of their products",
    "fedex_lora": "needs the plain mean, or its residual would not be exact",
    "lora_fair": "corrects the plain mean",
}


def known(registry: Mapping[str, Factory], name: str) -> Factory:
    """The registered factory. Raises InputError with the nearest name."""
    if name not in registry:
        own = "; one of your own is written package.module:function" if "." in name else ""
        raise InputError(f"strategy.name: unknown strategy {name}{nearest(name, registry)}{own}")
    return registry[name]


def imported(name: str) -> Factory:
    """The factory of `package.module:factory`. Raises InputError if there is none."""
    module_name, _, attribute = name.partition(":")
    if not module_name or module_name.startswith("."):
        why = "a relative name" if module_name else "Empty module name"
        raise InputError(f"strategy.name {name}: cannot import {module_name} ({why})")
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        where = "; looked for in the current folder and on PYTHONPATH" if isinstance(error, ModuleNotFoundError) else ""
        raise InputError(f"strategy.name {name}: cannot import {module_name} ({error}{where})") from None
    except (Exception, SystemExit) as error:
        raise theirs(name, error) from None
    factory = getattr(module, attribute, None)
    if not callable(factory):
        functions = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
        raise InputError(f"strategy.name {name}: {module_name} has no function {attribute}{nearest(attribute, functions)}")
    return cast(Factory, factory)


def theirs(name: str, error: BaseException) -> InputError:
    """What went wrong in the user's code, with its place there."""
    inside = [f for f in traceback.extract_tb(error.__traceback__) if not f.filename.startswith("<")][-1]
    file, line = (error.filename, error.lineno) if isinstance(error, SyntaxError) else (inside.filename, inside.lineno)
    return InputError(f"strategy.name {name}: {named(error)} ({file}:{line})")


def reduction(value: object) -> Reduce:
    """A reduction from its name, from {name, options}, or as it is. Raises InputError for what is unknown or out of range."""
    if callable(value):
        return cast(Reduce, value)
    options = dict(value) if isinstance(value, Mapping) else {"name": value}
    name = str(options.pop("name", None))
    if name not in REDUCTIONS:
        raise InputError(f"strategy.reduce: unknown reduction {name}{nearest(name, REDUCTIONS)}")
    signature = inspect.signature(REDUCTIONS[name])
    try:
        signature.bind(**options)
    except TypeError:
        expected = ", ".join(signature.parameters) or "no option"
        raise InputError(f"strategy.reduce {name}: expected {expected}, found {', '.join(map(str, options)) or 'none'}") from None
    try:
        return REDUCTIONS[name](**options)
    except TypeError:
        raise InputError(f"strategy.reduce {name}: expected numbers, found {', '.join(f'{k} {v!r}' for k, v in options.items())}") from None


def nearest(word: str, words: Iterable[str]) -> str:
    """The end of a message: the nearest known word, or all of them."""
    words = sorted(words)
    close = difflib.get_close_matches(word, words, n=1)
    return f", did you mean {close[0]}?" if close else f", expected one of {', '.join(words) or 'none'}"


def skipping_empty_rounds(strategy: Strategy) -> Strategy:
    """A round from which no update came back changes nothing but its number."""

    def aggregate(state: State, updates: Sequence[ClientUpdate]) -> State:
        return strategy.aggregate(state, updates) if updates else replace(state, values={**state.values, "round": state.round + 1})

    return replace(strategy, aggregate=aggregate)
