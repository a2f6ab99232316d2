#!/usr/bin/env python3
"""Reads the lake with the Delta readers that others use, and compares it with a ledger of accepted deliveries.

    pip install -r load-tests/requirements.txt
    python load-tests/read_lake.py --lake data/lake --accepted accepted.jsonl

The ledger holds one JSON object per line with an "id". Prints what is missing or doubled, and exits with 1 if
anything is, or if the readers disagree.
"""

import argparse
import json
import pathlib
import sys
from collections import Counter

import duckdb
import duckdb_extension_delta
from deltalake import DeltaTable

# Ids printed of each kind of fault: enough to look into, whatever the damage.
SHOWN_IDS = 20


def read_with_deltalake(table: pathlib.Path) -> list[str]:
    """Every delivery id, through delta-rs."""
    return DeltaTable(str(table)).to_pyarrow_table(columns=["delivery_id"])["delivery_id"].to_pylist()


def connect_duckdb() -> duckdb.DuckDBPyConnection:
    """DuckDB with its Delta reader, loaded from the wheel: nothing is downloaded."""
    wheel = pathlib.Path(duckdb_extension_delta.__file__).parent
    extension = next(wheel.parent.glob("**/delta.duckdb_extension"))
    connection = duckdb.connect(config={"allow_unsigned_extensions": "true"})
    connection.execute(f"LOAD '{extension}'")
    return connection


def count_positions(connection: duckdb.DuckDBPyConnection, table: pathlib.Path) -> tuple[int, int]:
    """Rows of the positions table, and those among them whose key another row has, too."""
    rows, keys = connection.execute(
        "select count(*), count(distinct (delivery_id, attempt, sequence)) from delta_scan(?)", [str(table)]
    ).fetchone()
    return rows, rows - keys


def read_ledger(path: pathlib.Path) -> set[str]:
    """The ids of a ledger; a last line that was cut off by a kill was never acknowledged."""
    lines = path.read_text().split("\n")
    return {json.loads(line)["id"] for line in lines[:-1] if line.strip()}


def report(name: str, ids: list[str]) -> bool:
    """Prints a kind of fault; whether there is any."""
    print(f"{name}: {len(ids)}")
    for delivery in ids[:SHOWN_IDS]:
        print(f"  {delivery}")
    return bool(ids)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lake", required=True, type=pathlib.Path, help="the lake's folder")
    parser.add_argument("--accepted", required=True, type=pathlib.Path, help="the ledger, JSON lines with an id")
    arguments = parser.parse_args()

    deliveries = arguments.lake.resolve() / "deliveries"
    positions = arguments.lake.resolve() / "positions"
    accepted = read_ledger(arguments.accepted)
    by_delta = Counter(read_with_deltalake(deliveries))
    connection = connect_duckdb()
    rows = connection.execute("select delivery_id from delta_scan(?)", [str(deliveries)]).fetchall()
    by_duckdb = Counter(row[0] for row in rows)
    stages = connection.execute(
        "select stage, count(*) from delta_scan(?) group by stage order by stage", [str(deliveries)]
    ).fetchall()
    misplaced = connection.execute(
        "select delivery_id from delta_scan(?) where date <> cast(finished_at at time zone 'UTC' as date)",
        [str(deliveries)],
    ).fetchall()

    print(f"accepted: {len(accepted)}")
    print(f"in the lake: {by_delta.total()} rows (deltalake), {by_duckdb.total()} rows (DuckDB)")
    for stage, count in stages:
        print(f"  {stage}: {count}")
    failed = report("missing", sorted(accepted - by_delta.keys()))
    failed |= report("doubled", sorted(delivery for delivery, count in by_delta.items() if count > 1))
    failed |= report("in a wrong date", sorted(row[0] for row in misplaced))
    if by_delta != by_duckdb:
        print("deltalake and DuckDB do not read the same rows")
        failed = True
    if (positions / "_delta_log").is_dir():
        rows, doubled = count_positions(connection, positions)
        print(f"positions: {rows} rows, {doubled} doubled")
        failed |= doubled > 0
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
