"""Attacks that a silo makes on a model with its own data, to know what the model would tell others of it."""
