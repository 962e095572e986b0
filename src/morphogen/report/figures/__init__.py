"""The figures of the three papers from runs' ledgers, one file a paper."""
