"""Makes the calls with every type and in every way that psycopg has, and prints what came of each:
calls.py RECORDER_DSN READER_DSN"""

import datetime
import decimal
import sys

import psycopg
from psycopg.rows import dict_row

START = "SELECT loader.record_execution_start(%s)"
END = "SELECT loader.record_execution_end(%s, %s, %s, %s)"


def show(what, call):
    try:
        result = call()
        print(f"{what}: {type(result).__name__}")
    except psycopg.Error as error:
        print(f"{what}: {type(error).__name__} {error.sqlstate}")


def start(db, loader_id=1, **options):
    return db.execute(START, [loader_id], **options).fetchone()[0]


def end(db, *values):
    values += (None,) * (4 - len(values))
    return db.execute(END, values).fetchone()[0]


def parameters(db):
    show("start, int", lambda: start(db, 1))
    show("start, str", lambda: start(db, "1"))
    show("start, None", lambda: start(db, None))
    show("start, Decimal", lambda: start(db, decimal.Decimal(1)))
    show("start, float", lambda: start(db, 1.0))
    show("start, unknown loader", lambda: start(db, 99))
    show("end, int and None", lambda: end(db, start(db), "SUCCESS"))
    show("end, smallint count", lambda: end(db, start(db), "SUCCESS", 12))
    show("end, integer count", lambda: end(db, start(db), "SUCCESS", 1_000_000))
    show("end, bigint count", lambda: end(db, start(db), "SUCCESS", 3_000_000_000))
    show("end, numeric count", lambda: end(db, start(db), "SUCCESS", 2**70))
    show("end, str count", lambda: end(db, start(db), "SUCCESS", "12"))
    show("end, text", lambda: end(db, start(db), "FAILED", None, "naïve: \N{SNOWMAN}"))
    show("end, text with NUL", lambda: end(db, start(db), "FAILED", None, "a\0b"))
    show("end, Exception", lambda: end(db, start(db), "FAILED", None, str(ValueError("bad"))))


def errors(db):
    run = start(db)
    end(db, run, "SUCCESS", 1)
    for what, call in [
        ("ended", lambda: end(db, run, "FAILED", None, "too late")),
        ("status", lambda: end(db, start(db), "DONE")),
        ("count", lambda: end(db, start(db), "SUCCESS", -1)),
        ("unknown", lambda: end(db, 123456789, "SUCCESS")),
        ("loader", lambda: start(db, 99)),
    ]:
        try:
            call()
        except psycopg.Error as error:
            diag = error.diag
            print(f"error, {what}: {diag.sqlstate}", diag.constraint_name, bool(diag.message_detail),
                  bool(diag.message_hint))


def ways(dsn):
    with psycopg.connect(dsn, autocommit=True) as db:
        for _ in range(2):
            show("prepared", lambda: start(db, prepare=True))
        show("binary", lambda: start(db, binary=True))
        with psycopg.ClientCursor(db) as cursor:
            show("bound by the client", lambda: start(cursor))
        with psycopg.RawCursor(db) as cursor:
            show("raw", lambda: cursor.execute("SELECT loader.record_execution_start($1)", [1])
                 .fetchone()[0])
        with db.pipeline():
            first, second = db.execute(START, [1]), db.execute(START, [1])
        show("pipeline", lambda: first.fetchone()[0] + second.fetchone()[0])
        with db.cursor() as cursor:
            cursor.executemany(START, [[1], [2]], returning=True)
            show("executemany", lambda: cursor.fetchone()[0])
        notices = []
        db.add_notice_handler(lambda notice: notices.append(notice.severity))
        end(db, start(db), "SUCCESS", 3_000_000_000)
        print("notices:", *notices)
    # The default: the first statement begins a transaction, and leaving the block commits it.
    with psycopg.connect(dsn) as db:
        run = start(db)
        print("transaction:", db.info.transaction_status.name)
        end(db, run, "SUCCESS", 1)


def read(dsn):
    with psycopg.connect(dsn, autocommit=True, row_factory=dict_row) as db:
        page = db.execute("SELECT loader.get_execution_history(page_size => %s) AS page", [2])
        page = page.fetchone()["page"]
        print("page:", type(page).__name__, len(page["executions"]),
              type(page["executions"][0]["id"]).__name__, type(page["next_cursor"]).__name__)
        show("next page", lambda: db.execute(
            'SELECT loader.get_execution_history(page_size => %s, "cursor" => %s, started_from => %s) AS p',
            [2, page["next_cursor"], datetime.datetime(2020, 1, 1, tzinfo=datetime.UTC)],
        ).fetchone()["p"])
        row = db.execute("SELECT * FROM loader.execution_details WHERE NOT is_running LIMIT 1").fetchone()
        print("row:", *(f"{name}={type(value).__name__}" for name, value in row.items()))
        print("aware:", row["execution_start"].tzinfo is not None)
        row = db.execute("SELECT * FROM loader.activity_feed ORDER BY event_time DESC,"
                         " execution_id DESC LIMIT 1").fetchone()
        print("feed:", type(row["event_time"]).__name__, type(row["message"]).__name__)
        row = db.execute("SELECT * FROM loader.recorder_status()").fetchone()
        print("status:", row["preloaded"], type(row["worker_pid"]).__name__, row["detail"])
        show("no right", lambda: start(db))


if __name__ == "__main__":
    recorder, reader = sys.argv[1:]
    with psycopg.connect(recorder, autocommit=True) as session:
        parameters(session)
        errors(session)
    ways(recorder)
    read(reader)
