"""Runs moto's S3 without a line of log for every request, with connections kept open, and without moto's own dispatcher,
which looks through the folders of all its services at each request, one request at a time. Run in the venv.

    s3_server.py HOST PORT
"""

import logging
import sys

from moto.moto_server.werkzeug_app import create_backend_app
from werkzeug.serving import WSGIRequestHandler, run_simple


def main(host, port):
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    WSGIRequestHandler.protocol_version = "HTTP/1.1"
    run_simple(host, int(port), create_backend_app("s3"), threaded=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
