"""Statements about one row, of which only the values change: their text is written once.

Exists because sessions begin, live and end by them a hundred times a second, and the ORM spends several times what the
database takes on writing the same text again, in a thread that everything else waits for. Protects the rule that a
value is stored as its model's field stores it (encrypted where that encrypts): the fields prepare it here, too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, TypeVar

from django.db import connection
from django.db.models import Field, Model
from django.db.models.functions import Now
from django.db.models.sql import Query

M = TypeVar("M", bound=Model)


@dataclass(frozen=True, slots=True)
class Of:
    """What stands in that field of that row."""

    model: type[Model]
    pk: object
    field: str


def update(model: type[Model], where: Mapping[str, object], values: Mapping[str, object]) -> int:
    """How many rows were changed. ``where``: fields that have these values, or ``Of`` another row's.

    What ``filter(**where).update(**values)`` does. Raises what the database raises.
    """
    named = tuple(name for name, value in values.items() if not isinstance(value, Now))
    timed = tuple(name for name, value in values.items() if isinstance(value, Now))
    asked = tuple((name, (one.model, one.field) if isinstance(one, Of) else None) for name, one in where.items())
    given = [_prepared(model, name, values[name]) for name in named]
    given += [
        _prepared(one.model, "pk", one.pk) if isinstance(one, Of) else _prepared(model, name, one)
        for name, one in where.items()
    ]
    with connection.cursor() as cursor:
        cursor.execute(_update(connection.vendor, model, named, timed, asked), given)
        return int(cursor.rowcount)


def insert(rows: Sequence[Model], *, now: str = "") -> None:
    """Store new rows of one model that have their keys. ``now``: the field that gets the database's time.

    What ``bulk_create(rows)`` does. Raises what the database raises.
    """
    model = type(rows[0])
    fields = tuple(one for one in _fields(model) if one.name != now)
    statement = _insert(connection.vendor, model, tuple(one.name for one in fields), now, len(rows))
    values = [one.get_db_prep_save(one.pre_save(row, True), connection) for row in rows for one in fields]
    with connection.cursor() as cursor:
        cursor.execute(statement, values)
    for row in rows:
        row._state.adding, row._state.db = False, connection.alias


def rows(model: type[M], where: Mapping[str, object], order: str = "") -> list[M]:
    """Whole rows in which these fields have these values, or one of them where it is a tuple.

    What ``filter(**where).order_by(order)`` gives. Raises what the database raises.
    """
    asked = [(name, one if isinstance(one, tuple) else (one,)) for name, one in where.items()]
    if not all(several for _, several in asked):
        return []
    statement = _select(connection.vendor, model, tuple((name, len(several)) for name, several in asked), order)
    given = [_prepared(model, name, one) for name, several in asked for one in several]
    return list(model._default_manager.raw(statement, given))


def _prepared(model: type[Model], name: str, value: object) -> Any:
    return _field(model, name).get_db_prep_save(value, connection)


@lru_cache(maxsize=200)
def _field(model: type[Model], name: str) -> Field[object, object]:
    return model._meta.pk if name == "pk" else model._meta.get_field(name)  # type: ignore[return-value]  # no relation


@lru_cache(maxsize=20)
def _fields(model: type[Model]) -> tuple[Field[object, object], ...]:
    return tuple(model._meta.local_concrete_fields)


@lru_cache(maxsize=100)
def _update(
    vendor: str,
    model: type[Model],
    named: tuple[str, ...],
    timed: tuple[str, ...],
    where: tuple[tuple[str, tuple[type[Model], str] | None], ...],
) -> str:
    sets = [f"{_column(model, name)} = %s" for name in named] + [f"{_column(model, name)} = {_now()}" for name in timed]
    conditions = [f"{_column(model, name)} = {'%s' if of is None else _one(*of)}" for name, of in where]
    return f"UPDATE {_table(model)} SET {', '.join(sets)} WHERE {' AND '.join(conditions)}"  # noqa: S608 - our names


@lru_cache(maxsize=100)
def _select(vendor: str, model: type[Model], where: tuple[tuple[str, int], ...], order: str) -> str:
    columns = ", ".join(_quoted(one.column) for one in _fields(model))
    conditions = [f"{_column(model, name)} IN ({', '.join(['%s'] * several)})" for name, several in where]
    ordered = f" ORDER BY {_column(model, order)}" if order else ""
    return f"SELECT {columns} FROM {_table(model)} WHERE {' AND '.join(conditions)}{ordered}"  # noqa: S608 - our names


def _one(model: type[Model], name: str) -> str:
    return f"(SELECT {_column(model, name)} FROM {_table(model)} WHERE {_column(model, 'pk')} = %s)"  # noqa: S608


@lru_cache(maxsize=100)
def _insert(vendor: str, model: type[Model], named: tuple[str, ...], now: str, count: int) -> str:
    columns = [_column(model, name) for name in (*named, *([now] if now else []))]
    values = f"({', '.join([*['%s'] * len(named), *([_now()] if now else [])])})"
    return f"INSERT INTO {_table(model)} ({', '.join(columns)}) VALUES {', '.join([values] * count)}"  # noqa: S608


def _now() -> str:
    return str(Query(None).get_compiler(connection=connection).compile(Now())[0])


def _column(model: type[Model], name: str) -> str:
    return _quoted(_field(model, name).column)


def _table(model: type[Model]) -> str:
    return _quoted(model._meta.db_table)


def _quoted(name: str | None) -> str:
    assert name is not None, "only fields of a relation to many have no column"
    return connection.ops.quote_name(name)
