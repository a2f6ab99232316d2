"""Runs moto's S3 without a line of log for every request and with connections kept open. Run in the venv.

    s3_server.py HOST PORT
"""

import logging
import sys

from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import WSGIRequestHandler, run_simple


def main(host, port):
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    WSGIRequestHandler.protocol_version = "HTTP/1.1"
    run_simple(host, int(port), DomainDispatcherApplication(create_backend_app), threaded=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
