"""Vaultferry: carries secrets between vaults."""

VERSION = "0.1.0"
