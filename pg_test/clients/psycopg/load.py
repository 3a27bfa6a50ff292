"""Loads a file of planes in one transaction, and records it: load.py DSN LOADER_ID FILE"""

import sys

import psycopg

COPY = "COPY planes FROM STDIN (FORMAT csv, HEADER, NULL 'NA')"


def load(dsn, loader_id, path):
    with psycopg.connect(dsn, autocommit=True) as db:
        run = None
        try:
            with db.transaction(), db.cursor() as cursor:
                cursor.execute("SELECT loader.record_execution_start(%s)", [loader_id])
                run = cursor.fetchone()[0]
                with open(path, "rb") as file, cursor.copy(COPY) as copy:
                    while block := file.read(65536):
                        copy.write(block)
                db.execute("SELECT loader.record_execution_end(%s, 'SUCCESS', %s)",
                           [run, cursor.rowcount])
        except Exception as error:
            if run is not None:
                db.execute("SELECT loader.record_execution_end(%s, 'FAILED', error_message => %s)",
                           [run, str(error)])
            raise


if __name__ == "__main__":
    load(sys.argv[1], int(sys.argv[2]), sys.argv[3])
