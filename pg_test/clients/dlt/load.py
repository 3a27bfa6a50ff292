"""Runs a pipeline of dlt, and records it: load.py DSN LOADER_ID FILE"""

import csv
import sys

import dlt
import psycopg


@dlt.resource(name="planes", write_disposition="replace", schema_contract={"columns": "freeze"})
def planes(path):
    with open(path) as file:
        yield from csv.DictReader(file)


def load(dsn, loader_id, path):
    pipeline = dlt.pipeline("planes", destination=dlt.destinations.postgres(dsn), dataset_name="fleet")
    # dlt has connections of its own. This one is open as long as it runs, so that the server knows.
    with psycopg.connect(dsn, autocommit=True) as db:
        run = None
        try:
            with db.transaction():
                start = db.execute("SELECT loader.record_execution_start(%s)", [loader_id])
                run = start.fetchone()[0]
                pipeline.run(planes(path))
                records = pipeline.last_trace.last_normalize_info.row_counts["planes"]
                db.execute("SELECT loader.record_execution_end(%s, 'SUCCESS', %s)", [run, records])
        except Exception as error:
            # Otherwise the next run loads what is pending, and ignores the data that it is given.
            pipeline.drop_pending_packages()
            if run is not None:
                db.execute("SELECT loader.record_execution_end(%s, 'FAILED', error_message => %s)",
                           [run, str(error)])
            raise


if __name__ == "__main__":
    load(sys.argv[1], int(sys.argv[2]), sys.argv[3])
