"""A database per colour: preflight, replication both ways, the fence, the switch and recovery.

Driven by two URLs. It knows nothing of docker, kubectl, targets, the ledger or the console; its state is in the two
databases only, in the schema `bg`.
"""
