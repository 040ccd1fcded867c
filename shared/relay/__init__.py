"""The relay: stands next to a Vault, listens to its audit log, and tells Vaultferry which secrets to look at.

    sockets → frames → projected notices → pending, in memory → spool, on disk → forwarder → POST /audit, or the app itself
    (listeners) (frames)  (shared.audit)      (pending)            (spool)       (forwarder)  (http_forward)

Sockets are read whatever happens behind them, for a Vault whose audit device is not read stalls every request. What is kept
is no log but a set of changed paths. Whatever may have been missed becomes a gap mark, which the other side answers with
a full run. `python -m shared.relay` needs nothing but the standard library and aiohttp (`infra/relay/`).
"""
