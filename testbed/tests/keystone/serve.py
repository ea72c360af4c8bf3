"""A real Keystone on loopback: python3 serve.py ADDRESS:PORT."""

import sys

import waitress

address = sys.argv.pop()  # Keystone reads the command line too
from keystone.wsgi.api import application  # noqa: E402

waitress.serve(application, listen=address, threads=4)
