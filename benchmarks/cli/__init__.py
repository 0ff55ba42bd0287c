"""The command line `agentrec`: one door to all that can be done here without writing Python.

`benchmarks.cli.main` knows the names of the commands; each imports what it needs when it is called.
"""
