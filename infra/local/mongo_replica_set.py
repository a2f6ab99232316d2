"""Initiates a replica set of one member unless that is done, and waits until it takes writes. Run in the venv.

    mongo_replica_set.py NAME HOST:PORT
"""

import sys
import time

import pymongo
from pymongo.errors import OperationFailure

NOT_YET_INITIALIZED = 94
ALREADY_INITIALIZED = 23
# The caller asks again, after it has looked whether the server still runs.
PRIMARY_SECONDS = 10
POLL_SECONDS = 0.02


def main(name, address):
    client = pymongo.MongoClient(f"mongodb://{address}/", directConnection=True, serverSelectionTimeoutMS=2000)
    try:
        client.admin.command("replSetGetStatus")
    except OperationFailure as error:
        if error.code != NOT_YET_INITIALIZED:
            raise
        try:
            client.admin.command("replSetInitiate", {"_id": name, "members": [{"_id": 0, "host": address}],
                                                     "settings": {"electionTimeoutMillis": 2000}})
        except OperationFailure as raced:
            if raced.code != ALREADY_INITIALIZED:
                raise
    until = time.monotonic() + PRIMARY_SECONDS
    while not client.admin.command("hello")["isWritablePrimary"]:
        if time.monotonic() > until:
            sys.exit(f"no primary within {PRIMARY_SECONDS} s")
        time.sleep(POLL_SECONDS)


if __name__ == "__main__":
    try:
        main(*sys.argv[1:])
    except pymongo.errors.PyMongoError as error:
        sys.exit(str(error).splitlines()[0])
