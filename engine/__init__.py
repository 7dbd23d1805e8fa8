"""How a model learns and is scored: config, data, training, checkpoints, evaluation, reports.

Nothing is imported here, so that a tool can answer `--help` before torch is loaded; import the module you need.
"""
