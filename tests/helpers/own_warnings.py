"""Warnings of this package in pytest's `caplog`."""


def own_records(caplog):
    """Log records of the root logger: Orbax may warn of a slow disk by a logger of its own."""
    return [record for record in caplog.records if record.name == "root"]


def own_messages(caplog):
    """Messages of `own_records`."""
    return [record.getMessage() for record in own_records(caplog)]
