"""Control agents, one file each."""

if __name__ != "offrl.agents":
    raise ImportError(f"this package is offrl.agents, not {__name__}")
