"""A study's memory: one SQLite file, written by its coordinator; rebuilt from the run directories if lost."""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trickbag.errors import StudyError
from trickbag.study.protocol import Point, Round

FILE = "study.sqlite"
VERSION = 1
_SCHEMA = """
CREATE TABLE IF NOT EXISTS decisions (
    number INTEGER PRIMARY KEY, time TEXT NOT NULL, stage TEXT NOT NULL, round TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS readings (
    arm TEXT NOT NULL, seed INTEGER NOT NULL, split TEXT NOT NULL, factors TEXT NOT NULL, run TEXT NOT NULL,
    status TEXT NOT NULL, value REAL, metrics TEXT NOT NULL, seconds REAL NOT NULL,
    PRIMARY KEY (arm, seed, split));
CREATE TABLE IF NOT EXISTS openings (
    number INTEGER PRIMARY KEY, time TEXT NOT NULL, split TEXT NOT NULL, arms TEXT NOT NULL,
    seeds TEXT NOT NULL, runs TEXT NOT NULL, note TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS events (
    number INTEGER PRIMARY KEY, time TEXT NOT NULL, event TEXT NOT NULL, job TEXT NOT NULL,
    attempt INTEGER NOT NULL, detail TEXT NOT NULL);
"""
_COLUMNS = {
    "decisions": {"number", "time", "stage", "round"},
    "readings": {"arm", "seed", "split", "factors", "run", "status", "value", "metrics", "seconds"},
    "openings": {"number", "time", "split", "arms", "seeds", "runs", "note"},
    "events": {"number", "time", "event", "job", "attempt", "detail"},
}


@dataclass(frozen=True)
class Row:
    """One row of ``readings``: what is known of an arm and seed on a split."""

    arm: str
    seed: int
    split: str
    factors: tuple[str, ...]
    run: str
    status: str
    value: float | None
    metrics: Mapping[str, float]
    seconds: float


def now() -> str:
    """The time as it is recorded: ISO 8601, UTC."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


def covered_by(openings: Iterable[Mapping[str, Any]]) -> set[tuple[str, int]]:
    """Arms and seeds whose numbers on the sealed split have been opened."""
    return {(arm, seed) for row in openings for arm in row["arms"] for seed in row["seeds"]}


class Store:
    """The study's SQLite file, in write-ahead mode. Every method is one transaction.

    A file that is no whole database is set aside, and an empty one takes its place: ``damaged`` says so, and
    whoever conducts the study fills it again from the run directories.

    Args:
        folder: the study's directory, on a local disk.
        readonly: for looking only; a missing or damaged file is then an empty store, and left as it is.

    Raises:
        StudyError: the file was written by a newer version, or cannot be opened.
    """

    def __init__(self, folder: Path, *, readonly: bool = False) -> None:
        self.path, self.readonly, self.damaged = folder / FILE, readonly, False
        try:
            self._open()
        except sqlite3.DatabaseError as error:
            if isinstance(error, sqlite3.OperationalError):
                fix = "check its permissions and the room on its disk"
                raise StudyError(f"cannot open {self.path}: {error}", fix=fix) from None
            self.damaged = True
            if not readonly:
                self._set_aside()
            self._open()

    def _open(self) -> None:
        empty = self.readonly and (self.damaged or not self.path.exists())
        if empty:
            self._db = sqlite3.connect(":memory:", isolation_level=None)
        elif self.readonly:
            self._db = sqlite3.connect(f"{self.path.resolve().as_uri()}?mode=ro", uri=True, timeout=30)
        else:
            self._db = sqlite3.connect(self.path, timeout=30, isolation_level=None)
        try:
            if not self.readonly:
                self._db.execute("PRAGMA journal_mode=WAL")
                self._db.execute("PRAGMA synchronous=FULL")
            found = self._db.execute("PRAGMA user_version").fetchone()[0]
            if found > VERSION:
                raise StudyError(
                    f"{self.path} was written by a newer version of trickbag", fix="use that version"
                )
            if empty or not self.readonly:
                self._db.executescript(_SCHEMA)
                self._db.execute(f"PRAGMA user_version={VERSION}")
            for table, columns in _COLUMNS.items():
                there = {row[1] for row in self._db.execute(f"PRAGMA table_info({table})")}
                if not columns <= there:
                    raise sqlite3.DatabaseError(f"its table {table} is damaged")
            if self._db.execute("PRAGMA quick_check").fetchone()[0] != "ok":
                raise sqlite3.DatabaseError("its pages are damaged")
        except sqlite3.DatabaseError:
            self._db.close()
            raise

    def _set_aside(self) -> None:
        for suffix in ("", "-wal", "-shm"):
            path = self.path.with_name(self.path.name + suffix)
            if path.exists():
                number = 1
                while (aside := path.with_name(f"{path.name}.damaged-{number}")).exists():
                    number += 1
                path.rename(aside)

    def close(self) -> None:
        """Close the file."""
        self._db.close()

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def rounds(self) -> list[Round]:
        """Every decision, oldest first."""
        return [
            _round(json.loads(text)) for (text,) in self._all("SELECT round FROM decisions ORDER BY number")
        ]

    def decide(self, one: Round) -> None:
        """Record the next decision."""
        text = json.dumps(_plain(one), sort_keys=True)
        self._write("INSERT INTO decisions (time, stage, round) VALUES (?, ?, ?)", [(now(), one.stage, text)])

    def put(self, rows: Iterable[Row]) -> None:
        """Record readings; a newer one of the same arm, seed and split takes the place of the older."""
        values = [
            (
                row.arm,
                row.seed,
                row.split,
                json.dumps(row.factors),
                row.run,
                row.status,
                row.value,
                json.dumps(dict(row.metrics)),
                row.seconds,
            )
            for row in rows
        ]
        self._write("INSERT OR REPLACE INTO readings VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)", values)

    def readings(self) -> list[Row]:
        """Everything that was read."""
        return [
            Row(
                arm, seed, split, tuple(json.loads(factors)), run, status, value, json.loads(metrics), seconds
            )
            for arm, seed, split, factors, run, status, value, metrics, seconds in self._all(
                "SELECT * FROM readings ORDER BY split, arm, seed"
            )
        ]

    def open_split(
        self, split: str, arms: Sequence[str], seeds: Sequence[int], runs: Sequence[str], note: str = ""
    ) -> None:
        """Record that a sealed split is about to be read."""
        lists = (json.dumps(list(arms)), json.dumps(list(seeds)), json.dumps(list(runs)))
        self._write(
            "INSERT INTO openings (time, split, arms, seeds, runs, note) VALUES (?, ?, ?, ?, ?, ?)",
            [(now(), split, *lists, note)],
        )

    def openings(self) -> list[dict[str, Any]]:
        """Every look at a sealed split: time, split, arms, seeds, runs, note."""
        names = ("time", "split", "arms", "seeds", "runs", "note")
        rows = self._all(f"SELECT {', '.join(names)} FROM openings ORDER BY number")
        return [
            dict(zip(names, (t, split, *map(json.loads, lists), note), strict=True))
            for t, split, *lists, note in rows
        ]

    def log(self, event: str, job: str, attempt: int = 0, detail: str = "") -> None:
        """Record what happened to a job."""
        self._write(
            "INSERT INTO events (time, event, job, attempt, detail) VALUES (?, ?, ?, ?, ?)",
            [(now(), event, job, attempt, detail)],
        )

    def events(self) -> list[dict[str, Any]]:
        """What happened to jobs, oldest first: time, event, job, attempt, detail."""
        names = ("time", "event", "job", "attempt", "detail")
        rows = self._all(f"SELECT {', '.join(names)} FROM events ORDER BY number")
        return [dict(zip(names, row, strict=True)) for row in rows]

    def _write(self, statement: str, rows: Sequence[Sequence[Any]]) -> None:
        try:
            with closing(self._db.cursor()) as cursor:
                cursor.execute("BEGIN IMMEDIATE")
                try:
                    cursor.executemany(statement, rows)
                    cursor.execute("COMMIT")
                except sqlite3.Error:
                    if self._db.in_transaction:
                        cursor.execute("ROLLBACK")
                    raise
        except sqlite3.Error as error:
            raise StudyError(
                f"cannot write {self.path}: {error}",
                fix="make room on the disk, then trickbag study resume; nothing that was recorded is lost",
            ) from None

    def _all(self, query: str) -> list[Any]:
        return self._db.execute(query).fetchall()


def _plain(one: Round) -> dict[str, Any]:
    def points(many: Iterable[Point]) -> list[Any]:
        return [[sorted(point.cell), point.seed] for point in many]

    return {
        "stage": one.stage,
        "points": points(one.points),
        "sealed": points(one.sealed),
        "why": dict(one.why),
    }


def _round(plain: dict[str, Any]) -> Round:
    def points(many: Iterable[Any]) -> tuple[Point, ...]:
        return tuple(Point(frozenset(cell), seed) for cell, seed in many)

    return Round(plain["stage"], points(plain["points"]), points(plain["sealed"]), plain["why"])
