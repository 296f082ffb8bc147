"""The commands, one module each.

The first line of a module's docstring is its line of `scalesearch --help`. GROUPS are the configuration groups that it
reads, each with its usual choice; `Arguments` its own keys; EXAMPLE a command line; `run` does the work and returns the
exit code. Modules import heavy libraries in functions, so that help and completion are quick.
"""
