"""What usually goes wrong on a machine with a config, and what to do: `python -m deployments.doctor`.

Facts are collected first, each kind by one function that does all of the looking; the checks are
pure functions from facts to findings.
"""
