"""Prints events until one says that an execution has ended: listen.py DSN"""

import json
import sys

import psycopg


def listen(dsn):
    with psycopg.connect(dsn, autocommit=True) as db:
        db.execute("LISTEN loader_execution")
        print("listening", flush=True)
        for notification in db.notifies():
            event = json.loads(notification.payload)
            print(event["event_type"], event["execution_id"], event["status"], flush=True)
            if event["event_type"] != "EXECUTION_STARTED":
                break


if __name__ == "__main__":
    listen(sys.argv[1])
