"""Environments: making, wrapping, small ones with known answers."""

if __name__ != "offrl.envs":
    raise ImportError(f"this package is offrl.envs, not {__name__}")
